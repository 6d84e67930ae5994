//! The driver's calls with their errors as errors; what is legal when, the ledger knows.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};

use crate::{Access, Error, Result};

/// A driver of CUDA 10.2, the first with these calls. The bindings panic over a call that the driver lacks.
const OLDEST_VERSION: i32 = 10_020;

/// One device's primary context, which every library in the process shares.
#[derive(Debug)]
pub(super) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context belongs to no thread; each call makes it current for the calling one.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver's calls may be made by several threads at once.
unsafe impl Sync for Driver {}

/// Where a range begins on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address(pub(super) u64);

/// One physical allocation.
#[derive(Debug)]
pub(super) struct Extent(sys::CUmemGenericAllocationHandle);

impl Address {
    /// Some bytes on, inside the same range.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u64))
    }
}

impl Driver {
    pub(super) fn open(ordinal: i32) -> Result<Self> {
        // SAFETY: loads the driver's library, whose initialisers are as trusted as the driver itself.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver { reason: "libcuda cannot be loaded".to_owned() });
        }
        let (mut version, mut num_devices, mut device) = (0, 0, 0);
        let mut context = std::ptr::null_mut();
        let no_driver = |error: Error| Error::NoDriver { reason: error.to_string() };
        // SAFETY: `version` outlives the call, the only one that may come before `cuInit`.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })
            .map_err(no_driver)?;
        if version < OLDEST_VERSION {
            return Err(Error::NoDriver {
                reason: format!("version {version} is older than {OLDEST_VERSION}"),
            });
        }
        // SAFETY: may be called any number of times.
        check("cuInit", unsafe { sys::cuInit(0) }).map_err(no_driver)?;
        // SAFETY: `num_devices` outlives the call.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut num_devices) })?;
        if !(0..num_devices).contains(&ordinal) {
            return Err(Error::NoDevice { device: ordinal, num_devices });
        }
        // SAFETY: `device` outlives the call.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal) })?;
        // SAFETY: `context` outlives the call; what is retained is given back by `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut context, device)
        })?;
        Ok(Self { device, context })
    }

    pub(super) fn granularity(&self) -> Result<usize> {
        let _bound = self.bind()?;
        let (mut bytes, properties) = (0, self.properties());
        let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: both pointers outlive the call.
        check("cuMemGetAllocationGranularity", unsafe {
            sys::cuMemGetAllocationGranularity(&raw mut bytes, &raw const properties, option)
        })?;
        Ok(bytes)
    }

    pub(super) fn reserve(&self, len: usize) -> Result<Address> {
        let _bound = self.bind()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call; alignment and place are left to the driver.
        check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&raw mut address, len, 0, 0, 0) })?;
        Ok(Address(address))
    }

    pub(super) fn free(&self, address: &Address, len: usize) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: a whole reservation of ours; the driver refuses if something is mapped in it.
        check("cuMemAddressFree", unsafe { sys::cuMemAddressFree(address.0, len) })
    }

    pub(super) fn create(&self, len: usize) -> Result<Extent> {
        let _bound = self.bind()?;
        let (mut handle, properties) = (0, self.properties());
        // SAFETY: both pointers outlive the call.
        let created = unsafe { sys::cuMemCreate(&raw mut handle, len, &raw const properties, 0) };
        check("cuMemCreate", created).map_err(|error| memory_for(len, created, error))?;
        Ok(Extent(handle))
    }

    pub(super) fn release(&self, extent: &Extent) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: a handle of ours, which its owner lets go of.
        check("cuMemRelease", unsafe { sys::cuMemRelease(extent.0) })
    }

    pub(super) fn map(&self, at: Address, len: usize, extent: &Extent) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: addresses of a reservation of ours where nothing is mapped, as the ledger has checked, and a whole handle.
        let mapped = unsafe { sys::cuMemMap(at.0, len, 0, extent.0, 0) };
        check("cuMemMap", mapped).map_err(|error| memory_for(len, mapped, error))
    }

    pub(super) fn set_access(&self, at: Address, len: usize, access: Access) -> Result<()> {
        let _bound = self.bind()?;
        let flags = match access {
            Access::None => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_NONE,
            Access::Read => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
            Access::ReadWrite => sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let wanted = sys::CUmemAccessDesc { location: self.location(), flags };
        // SAFETY: one of our mappings, from which no pin needs more, as the ledger has checked; the pointer outlives the
        // call.
        let set = unsafe { sys::cuMemSetAccess(at.0, len, &raw const wanted, 1) };
        check("cuMemSetAccess", set).map_err(|error| memory_for(len, set, error))
    }

    pub(super) fn unmap(&self, at: Address, len: usize) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: one of our mappings, which nobody has pinned, as the ledger has checked.
        check("cuMemUnmap", unsafe { sys::cuMemUnmap(at.0, len) })
    }

    /// From a part of one mapping that is readable.
    pub(super) fn read(&self, at: Address, bytes: &mut [u8]) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the caller has checked the device's side; the host's is exclusively borrowed and as long as is said. The
        // call returns when all is copied.
        check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), at.0, bytes.len()) })
    }

    /// To a part of one mapping that is writable.
    pub(super) fn write(&self, at: Address, bytes: &[u8]) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the caller has checked the device's side; the host's is borrowed and as long as is said.
        check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(at.0, bytes.as_ptr().cast(), bytes.len()) })?;
        // That call may return when the bytes are staged and not yet there, and unmapping would not wait for them.
        // Not for the whole context, which is an error, and spoils the recording, while some thread records a graph.
        // SAFETY: a context is current; null is its default stream, which the copy was on.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) })
    }

    /// From a part of one mapping that is readable to one of the same length that is writable, at another address.
    pub(super) fn copy(&self, from: Address, to: Address, len: usize) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the caller has checked both.
        check("cuMemcpyDtoD", unsafe { sys::cuMemcpyDtoD_v2(to.0, from.0, len) })
    }

    /// Until all that the context was told to do is done.
    pub(super) fn wait(&self) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: a context is current; null is its default stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) })
    }

    fn location(&self) -> sys::CUmemLocation {
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
    }

    fn properties(&self) -> sys::CUmemAllocationProp {
        sys::CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: self.location(),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        }
    }

    /// Makes the context current for this thread until the guard is dropped, and then what was current before.
    fn bind(&self) -> Result<Bound> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.context) })?;
        Ok(Bound)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`. A failure leaves the context to the end of the process.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A context that is current for this thread.
#[must_use]
struct Bound;

impl Drop for Bound {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: takes off what `bind` put on this thread's stack of contexts.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

fn check(call: &'static str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the pointer outlives the call.
    let named = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    let name = if named == CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: a constant string of the driver.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        format!("error {}", result as u32)
    };
    Err(Error::Driver { call, name })
}

/// Out of memory is something to act upon, where memory was asked for.
fn memory_for(len: usize, result: CUresult, error: Error) -> Error {
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY { Error::OutOfMemory { len } } else { error }
}
