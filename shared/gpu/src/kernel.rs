//! Kernels and their launches.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute};

use crate::driver::check;
use crate::gpu::{Context, Remains};
use crate::image::is_whole_elf;
use crate::{Error, Gpu, Result};

/// Shared memory that every kernel may have without asking.
const FREE_SHARED_BYTES: usize = 48 << 10;

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
}

// SAFETY: a function lives as long as its module, which it holds, and belongs to no thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Kernel {}

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
        self.context.is(&kernel.code.context)?;
        if shared_bytes > kernel.max_shared_bytes {
            return Err(Error::Illegal(format!(
                "a launch with {shared_bytes} bytes of shared memory, where the kernel was set up for {}",
                kernel.max_shared_bytes
            )));
        }
        let _bound = self.context.bind()?;
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: function, stream and pointers live; the driver reads the one parameter, as long as the kernel
        // says it is, which is `P`'s size, and copies it before it returns. The rest is the caller's to prove.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                kernel.function,
                grid.0,
                grid.1,
                grid.2,
                block,
                1,
                1,
                shared_bytes as u32,
                self.context.stream,
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
        Ok(Kernel { code: Arc::clone(&self.code), function, max_shared_bytes: max_dynamic_shared_bytes })
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        self.context.bury(Remains::Module(self.module));
    }
}
