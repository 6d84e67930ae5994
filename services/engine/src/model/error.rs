/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor is missing or of another shape or type.
    #[error("the weights cannot be read")]
    Checkpoint(#[from] fused_checkpoint::Error),
    /// The weights are adapted, and nobody said to what.
    #[error("the weights are adapted to the vocabulary {weights}: its patch vocabulary must be given")]
    PatchMissing {
        /// The fingerprint in config.json.
        weights: String,
    },
    /// The weights are adapted to another vocabulary.
    #[error("the weights are adapted to the vocabulary {weights}, and the patch vocabulary given is {patch}")]
    OtherPatch {
        /// The fingerprint in config.json.
        weights: String,
        /// The fingerprint of the patch vocabulary.
        patch: String,
    },
    /// The weights are adapted, but not to as many tokens as the vocabulary has.
    #[error(
        "the weights have {num_rows} embedding rows, and the vocabulary they are adapted to has {vocab_size} tokens"
    )]
    AdaptedRows {
        /// `vocab_size` of config.json.
        num_rows: usize,
        /// Tokens of the patch vocabulary.
        vocab_size: usize,
    },
    /// A weight is infinite or not a number: the model would answer nothing, with status 200.
    #[error(
        "tensor `{tensor}` holds a value that is not finite: the file is damaged, or the training failed"
    )]
    NotFinite {
        /// Its name.
        tensor: String,
    },
    /// A pickled embedding matrix belongs to another model or another vocabulary.
    #[error(
        "the pickled {side} embedding has {} rows of {}, and the model adapted to the patch vocabulary needs {} rows of {}",
        found.0, found.1, wanted.0, wanted.1
    )]
    PickledShape {
        /// Input or output.
        side: &'static str,
        /// Its rows and columns.
        found: (usize, usize),
        /// Tokens of the patch vocabulary, and the model's hidden size.
        wanted: (usize, usize),
    },
    /// The patch vocabulary does not fit the model.
    #[error(transparent)]
    Adaptation(#[from] fused_adaptation::Error),
    /// The device cannot take a matrix.
    #[error("a weight matrix cannot be placed on the device")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
}
