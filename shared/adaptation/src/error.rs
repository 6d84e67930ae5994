use std::io;
use std::path::PathBuf;

use fused_vocabulary::TokenId;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model cannot be adapted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model cannot be read, or the adapted one not be written.
    #[error(transparent)]
    Checkpoint(#[from] fused_checkpoint::Error),
    /// The base model's tokenizer cannot be read.
    #[error("the tokenizer of model `{model}` cannot be read")]
    Tokenizer {
        /// The model's name.
        model: String,
        /// What is wrong with it.
        #[source]
        source: fused_vocabulary::Error,
    },
    /// The patch vocabulary does not belong to the base model's tokenizer.
    #[error("the patch vocabulary does not fit model `{model}`")]
    Vocabulary {
        /// The base model's name.
        model: String,
        /// What does not fit.
        #[source]
        source: fused_vocabulary::Error,
    },
    /// The patch vocabulary builds on a base token that the model does not have.
    #[error("the patch vocabulary builds on base token {token}, and the model has {num_rows} embedding rows")]
    BaseToken {
        /// The base token.
        token: TokenId,
        /// Rows of the base model's matrix.
        num_rows: usize,
    },
    /// The model given is no base model.
    #[error(
        "model `{model}` is adapted already, to the vocabulary {weights}: name the model it was made from"
    )]
    Adapted {
        /// The model's name.
        model: String,
        /// The fingerprint in its config.json.
        weights: String,
    },
    /// A file is not JSON of the expected shape.
    #[error("model `{model}`: {file} is not a JSON object")]
    Json {
        /// The base model's name.
        model: String,
        /// The file's name.
        file: &'static str,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration file names a token that the adapted model does not have.
    #[error(
        "model `{model}`: {file}: `{key}` names token {token}, which has no model id in the patch vocabulary: build it \
         without removing that token"
    )]
    SpecialToken {
        /// The base model's name.
        model: String,
        /// The file's name.
        file: &'static str,
        /// The key.
        key: String,
        /// The base token.
        token: TokenId,
    },
    /// A file that is no tensor cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The caller wanted no more of it.
    #[error("interrupted")]
    Interrupted,
}
