/// A result of the CUDA kernels.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a kernel was not launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The GPU, its driver or a library refused.
    #[error(transparent)]
    Gpu(#[from] fused_gpu::Error),
    /// Shapes or buffers disagree: a programming error of the caller, found before anything was launched.
    #[error("the kernel {kernel} cannot run: {reason}")]
    Argument {
        /// Which kernel.
        kernel: &'static str,
        /// What disagrees.
        reason: String,
    },
}

impl Error {
    /// Whether memory is missing: whoever asked can do with less, or give back first.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Gpu(error) if error.is_out_of_memory())
    }

    /// Whether the context is lost: every later call fails in the same way, and only a new process helps.
    #[must_use]
    pub fn poisons_context(&self) -> bool {
        matches!(self, Self::Gpu(error) if error.poisons_context())
    }
}
