/// Why the engine does not start, or a text cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot hold here.
    #[error("{setting} {problem}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it, and what may be done.
        problem: String,
    },
    /// The model's files.
    #[error("the model cannot be read")]
    Checkpoint(#[from] fused_checkpoint::Error),
    /// The model's weights.
    #[error("the model cannot be loaded")]
    Model(#[from] crate::model::Error),
    /// The model's vocabulary.
    #[error("the model's vocabulary cannot be used")]
    Vocabulary(#[from] fused_vocabulary::Error),
    /// The model's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] fused_adaptation::Error),
    /// Memory for keys and values.
    #[error("no memory for keys and values")]
    Kv(#[from] crate::kv::Error),
    /// Memory for keys and values, before any of it is used.
    #[error("no virtual memory for keys and values")]
    Memory(#[from] fused_virtual_memory::Error),
    /// The GPU, or what it needs on this machine.
    #[cfg(feature = "cuda")]
    #[error("the GPU cannot be used")]
    Gpu(#[from] fused_gpu::Error),
    /// A step that was run without a service around it.
    #[error("the tokens cannot be scored")]
    Score(#[from] crate::runner::RunnerError),
    /// More windows are to be scored at once than there are slots.
    #[error("too many windows are scored at once")]
    TooManyWindows,
    /// The system has no thread to give.
    #[error("the engine's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Error {
    pub(crate) fn setting(setting: &'static str, problem: impl Into<String>) -> Self {
        Self::Setting { setting, problem: problem.into() }
    }
}
