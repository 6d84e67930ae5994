//! cuBLASLt's objects as values that end with their owner.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ffi::CStr;

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use crate::{Error, Result};

/// The library.
#[derive(Debug)]
pub(super) struct Handle(pub(super) sys::cublasLtHandle_t);

/// What a product is: types, transpositions.
#[derive(Debug)]
pub(super) struct Descriptor(pub(super) sys::cublasLtMatmulDesc_t);

/// Where a matrix's elements are: in columns, as in Fortran.
#[derive(Debug)]
pub(super) struct Layout(pub(super) sys::cublasLtMatrixLayout_t);

/// What an algorithm may ask for.
#[derive(Debug)]
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

// SAFETY: the library's objects belong to no thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Send for Layout {}

impl Handle {
    pub(super) fn open() -> Result<Self> {
        // SAFETY: loads the library, whose initialisers are as trusted as the driver itself.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoLibrary { library: "libcublasLt.so" });
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call; a context is current.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        Ok(Self(handle))
    }
}

impl Descriptor {
    /// The product of a transposed and a plain matrix, in f32.
    pub(super) fn new() -> Result<Self> {
        let mut descriptor = std::ptr::null_mut();
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        // SAFETY: the pointer outlives the call.
        check("cublasLtMatmulDescCreate", unsafe {
            sys::cublasLtMatmulDescCreate(&raw mut descriptor, compute, scale)
        })?;
        let descriptor = Self(descriptor);
        // CUBLAS_OP_T, which the bindings of this library leave out.
        let transposed = 1_i32;
        // SAFETY: the attribute is an i32, which outlives the call.
        check("cublasLtMatmulDescSetAttribute", unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                descriptor.0,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of::<i32>(),
            )
        })?;
        Ok(descriptor)
    }
}

impl Layout {
    pub(super) fn new(element: sys::cudaDataType_t, num_rows: usize, num_cols: usize) -> Result<Self> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        check("cublasLtMatrixLayoutCreate", unsafe {
            sys::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                element,
                num_rows as u64,
                num_cols as u64,
                num_rows as i64,
            )
        })?;
        Ok(Self(layout))
    }

    pub(super) fn set_num_cols(&mut self, num_cols: usize) -> Result<()> {
        let num_cols = num_cols as u64;
        // SAFETY: the attribute is a u64, which outlives the call.
        check("cublasLtMatrixLayoutSetAttribute", unsafe {
            sys::cublasLtMatrixLayoutSetAttribute(
                self.0,
                sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS,
                (&raw const num_cols).cast(),
                size_of::<u64>(),
            )
        })
    }
}

impl Preference {
    /// So much workspace, and addresses at multiples of so many bytes.
    pub(super) fn new(workspace_bytes: usize, alignment: u32) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut preference = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        check("cublasLtMatmulPreferenceCreate", unsafe {
            sys::cublasLtMatmulPreferenceCreate(&raw mut preference)
        })?;
        let preference = Self(preference);
        let bytes = workspace_bytes as u64;
        let set = |attribute, value: *const std::ffi::c_void, size| {
            // SAFETY: the value is of the attribute's type and outlives the call.
            check("cublasLtMatmulPreferenceSetAttribute", unsafe {
                sys::cublasLtMatmulPreferenceSetAttribute(preference.0, attribute, value, size)
            })
        };
        set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const bytes).cast(),
            size_of::<u64>(),
        )?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        Ok(preference)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once.
        let _ = unsafe { sys::cublasLtDestroy(self.0) };
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

pub(super) fn check(call: &'static str, status: cublasStatus_t) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: the library has a constant string for every status.
    let name = unsafe {
        let name = sys::cublasLtGetStatusName(status);
        if name.is_null() { c"an unknown status" } else { CStr::from_ptr(name) }
    };
    Err(Error::Library { call, name: name.to_string_lossy().into_owned() })
}
