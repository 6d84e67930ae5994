//! The device, its context and its stream.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CStr;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute};

use crate::driver::{check, initialise};
use crate::{Error, Result};

/// One GPU with one stream. Clones are the same GPU.
///
/// It works in the device's primary context, which every library in the process shares. Any thread may call;
/// the calls of several threads come onto the stream in some order.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(crate) context: Arc<Context>,
}

/// What an architecture can do; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability {
    /// 8 for Ampere and Ada, 9 for Hopper.
    pub major: u32,
    /// The variant.
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest architecture with bf16 and asynchronous copies.
const OLDEST: Capability = Capability { major: 8, minor: 0 };

#[derive(Debug)]
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(crate) stream: sys::CUstream,
    name: String,
    capability: Capability,
    total_bytes: usize,
    num_multiprocessors: usize,
    l2_bytes: usize,
    driver_version: i32,
    pub(crate) recording: Mutex<Recording>,
}

/// What graphs ask of everybody else.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Whether the stream's calls are being recorded instead of done.
    pub(crate) is_on: bool,
    /// Graphs that may still be launched, and so read and write what they have recorded.
    pub(crate) num_graphs: usize,
    /// What was given back meanwhile.
    pub(crate) remains: Vec<Remains>,
}

/// Something that nobody owns any more, but a graph may use.
#[derive(Debug)]
pub(crate) enum Remains {
    Device(u64),
    Module(sys::CUmodule),
}

// SAFETY: contexts, streams and modules belong to no thread; each call makes the context current for the calling one.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's calls may be made by several threads at once.
unsafe impl Sync for Context {}

impl Gpu {
    /// The GPU of a number, as the driver counts them (`CUDA_VISIBLE_DEVICES` changes that). Takes a few hundred
    /// milliseconds and some hundred megabytes of its memory.
    ///
    /// # Errors
    /// No driver, library or GPU is there, or it is too old; whatever the driver refuses.
    pub fn open(ordinal: usize) -> Result<Self> {
        let driver_version = initialise()?;
        let (mut num_devices, mut device) = (0, 0);
        // SAFETY: `num_devices` outlives the call.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut num_devices) })?;
        let num_devices = usize::try_from(num_devices).unwrap_or(0);
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < num_devices);
        let number = number.ok_or(Error::NoDevice { ordinal, num_devices })?;
        // SAFETY: `device` outlives the call.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;

        let name = device_name(device)?;
        let attribute = |attribute| device_attribute(device, attribute);
        let capability = Capability {
            major: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            minor: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        };
        if capability < OLDEST {
            return Err(Error::OldDevice { ordinal, name, capability });
        }
        let num_multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let mut total_bytes = 0;
        // SAFETY: the pointer outlives the call.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut total_bytes, device) })?;

        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call; what is retained is given back by `Context`'s `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut handle, device) })?;
        let mut context = Context {
            device,
            context: handle,
            stream: std::ptr::null_mut(),
            name,
            capability,
            total_bytes,
            num_multiprocessors,
            l2_bytes,
            driver_version,
            recording: Mutex::default(),
        };
        let bound = context.bind()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer outlives the call. The stream does not wait for the default one, which nobody
        // here uses.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        drop(bound);
        context.stream = stream;
        Ok(Self { context: Arc::new(context) })
    }

    /// What the driver calls it, as "NVIDIA H100 80GB HBM3".
    #[must_use]
    pub fn name(&self) -> &str {
        &self.context.name
    }

    /// Its architecture.
    #[must_use]
    pub fn compute_capability(&self) -> Capability {
        self.context.capability
    }

    /// Multiprocessors: what blocks of a launch are spread over.
    #[must_use]
    pub fn num_multiprocessors(&self) -> usize {
        self.context.num_multiprocessors
    }

    /// Bytes of its second-level cache.
    #[must_use]
    pub fn l2_bytes(&self) -> usize {
        self.context.l2_bytes
    }

    /// Bytes of memory that it has.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.context.total_bytes
    }

    /// Bytes of memory that nobody, this process or another, has as yet.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn free_bytes(&self) -> Result<usize> {
        let _bound = self.context.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(free)
    }

    /// The CUDA version that the driver stands for: 13000 for 13.0.
    #[must_use]
    pub fn driver_version(&self) -> i32 {
        self.context.driver_version
    }

    /// Waits until the stream has nothing more to do.
    ///
    /// # Errors
    /// What went wrong in anything launched so far.
    pub fn synchronize(&self) -> Result<()> {
        self.context.synchronize()
    }
}

impl Context {
    /// Makes the context current for this thread until the guard is dropped, and then what was current before.
    pub(crate) fn bind(&self) -> Result<Bound> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.context) })?;
        Ok(Bound)
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Refuses what belongs to another stream: the order of the calls says nothing about that.
    pub(crate) fn is(&self, other: &Self) -> Result<()> {
        if std::ptr::eq(self, other) {
            return Ok(());
        }
        Err(Error::Illegal("memory of another GPU, or of the same one opened twice".to_owned()))
    }

    /// Holds off a recording while the guard lives.
    ///
    /// # Errors
    /// One is on: `call` cannot be part of a graph.
    pub(crate) fn outside_graph(&self, call: &str) -> Result<MutexGuard<'_, Recording>> {
        let recording = self.recording();
        if recording.is_on {
            return Err(Error::Illegal(format!("{call} cannot be part of a graph: do it before or after")));
        }
        Ok(recording)
    }

    pub(crate) fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what nobody owns any more, or keeps it for the graphs that may use it.
    pub(crate) fn bury(&self, remains: Remains) {
        let mut recording = self.recording();
        if recording.is_on || recording.num_graphs > 0 {
            recording.remains.push(remains);
        } else {
            // Under the lock, so that no recording begins meanwhile: freeing waits for the stream, which ends one.
            self.free(remains);
        }
    }

    /// Frees what was kept for graphs, where none is left.
    pub(crate) fn tidy(&self, recording: &mut Recording) {
        if !recording.is_on && recording.num_graphs == 0 {
            for remains in recording.remains.drain(..) {
                self.free(remains);
            }
        }
    }

    /// Frees what no work needs but such as is queued already. Where the driver refuses, the context is lost
    /// and the memory with it, until the process ends: nothing to be done about it here.
    fn free(&self, remains: Remains) {
        let Ok(_bound) = self.bind() else { return };
        // SAFETY: the stream lives as long as `self`.
        let _ = unsafe { sys::cuStreamSynchronize(self.stream) };
        let _ = match remains {
            // SAFETY: an allocation of ours, on which the one stream that knew it has finished.
            Remains::Device(address) => unsafe { sys::cuMemFree_v2(address) },
            // SAFETY: a module of ours, whose kernels are gone and have finished.
            Remains::Module(module) => unsafe { sys::cuModuleUnload(module) },
        };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Ok(_bound) = self.bind()
            && !self.stream.is_null()
        {
            // SAFETY: made by `open`; whatever used it held the context, and is gone.
            let _ = unsafe { sys::cuStreamSynchronize(self.stream) };
            // SAFETY: as above.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
        // SAFETY: retained once by `open`. A failure leaves the context to the end of the process.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A context that is current for this thread.
#[must_use]
pub(crate) struct Bound;

impl Drop for Bound {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: takes off what `bind` put on this thread's stack of contexts.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut name = [0_u8; 256];
    // SAFETY: the array outlives the call and is as long as is said.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device)
    })?;
    Ok(CStr::from_bytes_until_nul(&name)
        .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()))
}

fn device_attribute(device: sys::CUdevice, attribute: CUdevice_attribute) -> Result<usize> {
    let mut value = 0;
    // SAFETY: the pointer outlives the call.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
    Ok(usize::try_from(value).unwrap_or(0))
}
