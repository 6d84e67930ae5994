//! The driver's outcomes as results.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};

use crate::{Error, Result};

/// A driver of CUDA 12.8, the first with every call made here. The bindings panic over a call that the driver lacks.
const OLDEST_VERSION: i32 = 12_080;

/// Loads and initialises the driver, and says its version: 13000 for CUDA 13.0.
pub(crate) fn initialise() -> Result<i32> {
    // SAFETY: loads the driver's library, whose initialisers are as trusted as the driver itself.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver { reason: "libcuda cannot be loaded".to_owned() });
    }
    let mut version = 0;
    let no_driver = |error: Error| Error::NoDriver { reason: error.to_string() };
    // SAFETY: `version` outlives the call, the only one that may come before `cuInit`.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) }).map_err(no_driver)?;
    if version < OLDEST_VERSION {
        return Err(Error::NoDriver {
            reason: format!("version {version} is older than {OLDEST_VERSION}; update it"),
        });
    }
    // SAFETY: may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) }).map_err(no_driver)?;
    Ok(version)
}

pub(crate) fn check(call: &'static str, result: CUresult) -> Result<()> {
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
    Err(Error::Driver { call, code: result as u32, name })
}

/// Out of memory is something to act upon, where memory was asked for.
pub(crate) fn check_memory(call: &'static str, result: CUresult, len: usize) -> Result<()> {
    match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::OutOfMemory { len }),
        _ => check(call, result),
    }
}
