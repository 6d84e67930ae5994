use std::path::PathBuf;

use crate::Fingerprint;

/// Why a vocabulary cannot be loaded, built or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not JSON, or not of the shape that its format asks for.
    #[error("{file} cannot be parsed")]
    Json {
        /// Which file.
        file: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The file is larger than anything this room reads.
    #[error("{file} has {bytes} bytes, over the limit of {max_bytes}")]
    TooLarge {
        /// Which file.
        file: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The patch vocabulary contradicts itself or the tokenizer it belongs to.
    #[error("patch vocabulary, field {field}: {problem}")]
    Field {
        /// The field at fault, as `n_tokens[3].base`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The patch vocabulary was made for another tokenizer.
    #[error(
        "the patch vocabulary was made for the tokenizer {patch}, but the model's tokenizer is {tokenizer}"
    )]
    OtherTokenizer {
        /// `base_tokenizer_sha256` of the patch vocabulary.
        patch: Fingerprint,
        /// The hash of the tokenizer given.
        tokenizer: Fingerprint,
    },
    /// The tokenizer's parts do not fit together.
    #[error("tokenizer.json is refused")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tokenizer makes much of little text.
    #[error("tokenizer.json is refused: what it does to a text before splitting it into tokens {0}")]
    Normalizer(String),
    /// The tokenizer turns ids into text in a way that is not known here.
    #[error("tokenizer.json has a decoder of kind {0}, which is not supported")]
    UnsupportedDecoder(String),
    /// A token id or the number of tokens is beyond the limit.
    #[error("tokenizer.json has the token id {id}, over the limit of {max}")]
    VocabularyTooLarge {
        /// The id.
        id: u32,
        /// The limit.
        max: u32,
    },
    /// The base tokenizer failed on a text.
    #[error("the text cannot be encoded")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A corpus could not be read.
    #[error("the corpus cannot be read")]
    Corpus(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no text in the corpus.
    #[error("the corpus is empty: there is not one token in it")]
    EmptyCorpus,
    /// The encoded corpus cannot be kept: mostly, the disk is full.
    #[error(
        "the encoded corpus, 4 bytes a token, cannot be kept in a temporary file in {} (TMPDIR names another folder)",
        .folder.display()
    )]
    Spool {
        /// Where the file is.
        folder: PathBuf,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// A build was asked for something that it cannot do.
    #[error("{field}: {problem}")]
    Request {
        /// The field of [`crate::build::BuildRequest`].
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// N-tokens are built for byte-pair tokenizers only.
    #[error(
        "tokenizer.json is of kind {0}, and n-tokens are built for BPE tokenizers only: removing tokens needs merge rules"
    )]
    NotBpe(String),
    /// A build was told to end.
    #[error("cancelled")]
    Cancelled,
    /// A file of AdaptiVocab's own code is no pickle, asks for what is not read, or contradicts itself.
    #[error("{part}: {problem}")]
    Artefact {
        /// Which of them.
        part: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A pickled base tokenizer does not encode as the model's does.
    #[error("the vocabulary was made for another tokenizer than the model's: {difference}")]
    TokenizersDiffer {
        /// In what.
        difference: String,
    },
    /// The corpus does not offer what was asked for.
    #[error("{asked} {what} were asked for, but only {reachable} can be had")]
    NotReachable {
        /// Of what there are too few.
        what: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        reachable: usize,
    },
}

impl Error {
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn artefact(part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Artefact { part: part.into(), problem: problem.into() }
    }
}
