use crate::gpu::Capability;

/// A result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the GPU could not be used, or refused a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no CUDA driver that could be used: install one, or run on the CPU.
    #[error("there is no usable CUDA driver: {reason}")]
    NoDriver {
        /// What is missing.
        reason: String,
    },
    /// A library of the CUDA toolkit is missing: install it, or put its folder into `LD_LIBRARY_PATH`.
    #[error(
        "{library} cannot be loaded: install it with the CUDA toolkit, or add its folder to LD_LIBRARY_PATH"
    )]
    NoLibrary {
        /// The library's file.
        library: &'static str,
    },
    /// The machine has no such GPU.
    #[error("there is no GPU {ordinal}; the driver knows {num_devices}, counted from 0")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        num_devices: usize,
    },
    /// The GPU is too old for the kernels here.
    #[error("GPU {ordinal}, {name}, has compute capability {capability}; 8.0 (Ampere) is needed")]
    OldDevice {
        /// The number asked for.
        ordinal: usize,
        /// What the driver calls it.
        name: String,
        /// What it has.
        capability: Capability,
    },
    /// No memory is left on the GPU (or to page-lock on the host): give some back first.
    #[error("out of GPU memory for {len} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        len: usize,
    },
    /// The driver refused a call, or reports what an earlier launch did.
    #[error("the driver call {call} failed with {name}")]
    Driver {
        /// Which call.
        call: &'static str,
        /// The driver's number of what went wrong.
        code: u32,
        /// The driver's name for it.
        name: String,
    },
    /// A library refused a call.
    #[error("the library call {call} failed with {name}")]
    Library {
        /// Which call.
        call: &'static str,
        /// The library's name for what went wrong.
        name: String,
    },
    /// A kernel's source does not compile.
    #[error("{file} does not compile for {architecture}:\n{log}")]
    Compilation {
        /// The source.
        file: String,
        /// The architecture it was compiled for, as `sm_90a`.
        architecture: String,
        /// What the compiler said.
        log: String,
    },
    /// A caller asked for bytes that a buffer has not.
    #[error("bytes {from}..{to} of {len} bytes {place}")]
    Bounds {
        /// Where they begin.
        from: usize,
        /// Where they end.
        to: usize,
        /// How many there are.
        len: usize,
        /// Which memory.
        place: &'static str,
    },
    /// A call that no correct caller makes.
    #[error("{0}")]
    Illegal(String),
}

impl Error {
    /// Whether memory is missing: whoever asked can do with less, or give back first.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }

    /// Whether there is no driver, library or GPU to work with at all: tests skip then, a server says so and ends.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NoDriver { .. } | Self::NoLibrary { .. } | Self::NoDevice { .. })
    }

    /// Whether the driver cannot load a kernel's machine code: made for another architecture or by a newer compiler.
    #[must_use]
    pub fn is_foreign_image(&self) -> bool {
        // CUDA_ERROR_INVALID_IMAGE, NO_BINARY_FOR_GPU, UNSUPPORTED_PTX_VERSION.
        matches!(self, Self::Driver { code: 200 | 209 | 222, .. })
    }

    /// Whether the context is lost: every later call fails in the same way, and only a new process helps.
    #[must_use]
    pub fn poisons_context(&self) -> bool {
        let Self::Driver { code, .. } = self else { return false };
        matches!(
            code,
            // Deinitialised; uncorrectable ECC and NVLink errors; what a kernel can do wrong (an illegal
            // address, a launch timeout, a destroyed context, an assertion, hardware stack, instruction,
            // alignment, address space and program counter errors, a failed launch); an external device's
            // error; unknown.
            4 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 911 | 999
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do_about_them() {
        let driver = |code| Error::Driver { call: "cuStreamSynchronize", code, name: String::new() };
        for code in [214, 700, 716, 719] {
            assert!(driver(code).poisons_context(), "{code}");
        }
        for code in [1, 2, 600, 701, 900] {
            assert!(!driver(code).poisons_context(), "{code}");
        }
        assert!(driver(209).is_foreign_image());
        assert!(Error::OutOfMemory { len: 1 }.is_out_of_memory());
        assert!(Error::NoLibrary { library: "libcublasLt.so" }.is_absence());
    }
}
