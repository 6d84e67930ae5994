//! Kernels and their launches.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID};

use crate::driver::check;
use crate::gpu::{Context, Remains};
use crate::image::is_whole_elf;
use crate::{Capability, Error, Gpu, Result};

/// Shared memory that every kernel may have without asking.
const FREE_SHARED_BYTES: usize = 48 << 10;

/// The first architecture on which a kernel can begin before the one before it has ended.
const FIRST_WITH_EARLY_LAUNCH: Capability = Capability { major: 9, minor: 0 };

/// Machine code on the device.
#[derive(Clone, Debug)]
pub struct Module {
    code: Arc<Code>,
}

/// One entry of a module.
#[derive(Clone, Debug)]
pub struct Kernel {
    code: Arc<Code>,
    function: sys::CUfunction,
    max_shared_bytes: usize,
    shared_percent: Option<u8>,
}

// SAFETY: a function lives as long as its module, which it holds, and belongs to no thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Kernel {}

/// A launch's shape.
struct Launch<'a> {
    kernel: &'a Kernel,
    grid: (u32, u32, u32),
    block: u32,
    shared_bytes: usize,
    is_early: bool,
}

#[derive(Debug)]
struct Code {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: a module belongs to no thread.
unsafe impl Send for Code {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Code {}

impl Gpu {
    /// Loads machine code, as a compiler made it for this GPU's architecture (a cubin).
    ///
    /// # Errors
    /// It is no such thing, or for another architecture ([`Error::is_foreign_image`]).
    pub fn load(&self, image: &[u8]) -> Result<Module> {
        if !is_whole_elf(image) {
            return Err(Error::Illegal("a kernel image that is no whole ELF file".to_owned()));
        }
        let _bound = self.context.bind()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call, and so does the image, in which everything is that its headers name.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) })?;
        Ok(Module { code: Arc::new(Code { context: Arc::clone(&self.context), module }) })
    }

    /// Launches a kernel: `grid` blocks of `block` threads, each block with `shared_bytes` of dynamic shared
    /// memory, and one struct of parameters, which is copied now. What it does happens when the stream gets
    /// there.
    ///
    /// # Errors
    /// The driver refuses the shape. What goes wrong later, a later call reports.
    ///
    /// # Safety
    /// - The kernel has exactly one parameter, a struct that is laid out like `P`, which is `#[repr(C)]`.
    /// - With these parameters and this shape, the kernel touches only device memory that is allocated, in
    ///   which what it reads as numbers, indexes or addresses is valid as such, and which stays allocated until
    ///   the stream is done with it; buffers and views of this GPU do. Where the launch is recorded, this holds
    ///   whenever the graph is launched.
    /// - It needs no more shared memory than it is given.
    pub unsafe fn launch<P: Copy>(
        &self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<()> {
        let launch = Launch { kernel, grid, block, shared_bytes, is_early: false };
        // SAFETY: the caller's to prove.
        unsafe { self.launch_with(&launch, params) }
    }

    /// [`launch`](Self::launch), but the kernel's blocks may begin while the kernel before it on the stream
    /// still runs, as soon as there is room for them (programmatic dependent launch): what a block does first
    /// no longer waits for the last block of the launch before. In a recording the edge between the two kernels
    /// is of that kind. GPUs before Hopper launch it like any other.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    ///
    /// # Safety
    /// Those of [`launch`](Self::launch); and every block executes `griddepcontrol.wait` before it reads what a
    /// kernel before it on the stream writes, before it writes what such a kernel reads or writes, and before it
    /// ends: only so does the end of a kernel mean the end of all before it. (What a copy or a fill on the stream
    /// writes may be read at once: no kernel behind one begins before it is done.)
    pub unsafe fn launch_early<P: Copy>(
        &self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: usize,
        params: &P,
    ) -> Result<()> {
        let is_early = self.compute_capability() >= FIRST_WITH_EARLY_LAUNCH;
        let launch = Launch { kernel, grid, block, shared_bytes, is_early };
        // SAFETY: the caller's to prove.
        unsafe { self.launch_with(&launch, params) }
    }

    /// # Safety
    /// As [`launch_early`](Self::launch_early), or as [`launch`](Self::launch) where it is not early.
    unsafe fn launch_with<P: Copy>(&self, launch: &Launch<'_>, params: &P) -> Result<()> {
        let &Launch { kernel, grid, block, shared_bytes, is_early } = launch;
        self.context.is(&kernel.code.context)?;
        if shared_bytes > kernel.max_shared_bytes {
            return Err(Error::Illegal(format!(
                "a launch with {shared_bytes} bytes of shared memory, where the kernel was set up for {}",
                kernel.max_shared_bytes
            )));
        }
        let _bound = self.context.bind()?;
        let attribute = |id, value| CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = [
            attribute(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: i32::from(is_early) },
            ),
            attribute(
                CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                sys::CUlaunchAttributeValue { sharedMemCarveout: kernel.shared_percent.map_or(0, u32::from) },
            ),
        ];
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.context.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: if kernel.shared_percent.is_some() { 2 } else { 1 },
        };
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: function, stream, attributes and pointers live; the driver reads the one parameter, as long as the
        // kernel says it is, which is `P`'s size, and copies it before it returns. The rest is the caller's to prove.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }
}

impl Module {
    /// The kernel of a name, which may be launched with up to so much dynamic shared memory.
    ///
    /// # Errors
    /// There is none, or the GPU has not so much shared memory.
    pub fn kernel(&self, name: &str, max_dynamic_shared_bytes: usize) -> Result<Kernel> {
        let symbol =
            CString::new(name).map_err(|_| Error::Illegal("a kernel's name with a NUL".to_owned()))?;
        let _bound = self.code.context.bind()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: both pointers outlive the call; the module lives.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&raw mut function, self.code.module, symbol.as_ptr())
        })?;
        if max_dynamic_shared_bytes > FREE_SHARED_BYTES {
            let bytes = i32::try_from(max_dynamic_shared_bytes).unwrap_or(i32::MAX);
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function lives.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, attribute, bytes) })?;
        }
        Ok(Kernel {
            code: Arc::clone(&self.code),
            function,
            max_shared_bytes: max_dynamic_shared_bytes,
            shared_percent: None,
        })
    }
}

impl Kernel {
    /// The same kernel, whose launches ask for this much of a multiprocessor's fast memory to be shared memory, in
    /// percent, instead of as much as all blocks that fit can use. The border between that and the first cache moves only
    /// while nothing runs there: a kernel that wants it far from where its neighbours have it begins after their end, and
    /// they after its.
    #[must_use]
    pub fn with_shared_percent(&self, percent: u8) -> Self {
        Self { shared_percent: Some(percent.min(100)), ..self.clone() }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        self.context.bury(Remains::Module(self.module));
    }
}
