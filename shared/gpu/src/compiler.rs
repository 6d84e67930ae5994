//! CUDA C++ to machine code at run time, by NVRTC.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::{CStr, CString};
use std::fmt;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use crate::{Error, Result};

/// A source that includes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What the compiler's messages call it.
    pub file: &'a str,
    /// The text.
    pub text: &'a str,
}

/// A compiler's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompilerVersion {
    /// 13 for CUDA 13.0.
    pub major: i32,
    /// 0 for CUDA 13.0.
    pub minor: i32,
}

impl fmt::Display for CompilerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The version of the compiler that there is.
///
/// # Errors
/// There is none.
pub fn compiler_version() -> Result<CompilerVersion> {
    find()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers outlive the call.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
    Ok(CompilerVersion { major, minor })
}

/// Compiles a source for an architecture, as `sm_90a`, to what [`Gpu::load`](crate::Gpu::load) takes. Takes seconds.
///
/// # Errors
/// There is no compiler; [`Error::Compilation`] with what it says.
pub fn compile(source: Source<'_>, architecture: &str) -> Result<Vec<u8>> {
    find()?;
    let nul = |_| Error::Illegal(format!("{} holds a NUL", source.file));
    let (text, file) = (CString::new(source.text).map_err(nul)?, CString::new(source.file).map_err(nul)?);
    let architecture_option = CString::new(format!("--gpu-architecture={architecture}")).map_err(nul)?;
    let options = [architecture_option.as_ptr(), c"--std=c++17".as_ptr()];

    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all pointers outlive the call; there are no headers.
    check("nvrtcCreateProgram", unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program.0,
            text.as_ptr(),
            file.as_ptr(),
            0,
            std::ptr::null(),
            std::ptr::null(),
        )
    })?;
    // SAFETY: the program lives, and as many options outlive the call as is said.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    if compiled == nvrtcResult::NVRTC_ERROR_COMPILATION {
        return Err(Error::Compilation {
            file: source.file.to_owned(),
            architecture: architecture.to_owned(),
            log: program.log().unwrap_or_default(),
        });
    }
    check("nvrtcCompileProgram", compiled)?;

    let mut len = 0;
    // SAFETY: the program lives; the pointer outlives the call.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut len) })?;
    let mut image = vec![0_u8; len];
    // SAFETY: the program lives; the vector is as long as NVRTC said.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    Ok(image)
}

/// A program that is destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> Result<String> {
        let mut len = 0;
        // SAFETY: the program lives; the pointer outlives the call.
        check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(self.0, &raw mut len) })?;
        let mut log = vec![0_u8; len];
        // SAFETY: the program lives; the vector is as long as NVRTC said.
        check("nvrtcGetProgramLog", unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) })?;
        Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by `nvrtcCreateProgram`, destroyed once.
            let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
        }
    }
}

fn find() -> Result<()> {
    // SAFETY: loads the library, whose initialisers are as trusted as the driver itself.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::NoLibrary { library: "libnvrtc.so" })
}

fn check(call: &'static str, result: nvrtcResult) -> Result<()> {
    if result == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: NVRTC has a constant string for every result.
    let name = unsafe {
        let name = sys::nvrtcGetErrorString(result);
        if name.is_null() { c"an unknown error" } else { CStr::from_ptr(name) }
    };
    Err(Error::Library { call, name: name.to_string_lossy().into_owned() })
}
