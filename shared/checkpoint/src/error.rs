use std::io;
use std::path::PathBuf;

use crate::HubError;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model cannot be used. Every variant names the model first: a server's start-up message is this and its causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model is neither a directory nor a hub id.
    #[error("model `{model}`: no such directory, and not a hub id of the form [org/]name[@revision]")]
    NotAModel {
        /// What was asked for.
        model: String,
    },
    /// The hub refused or could not be reached.
    #[error("model `{model}`: not a directory here, and {what} cannot be had from {endpoint}")]
    Download {
        /// The hub id.
        model: String,
        /// The file, or the list of files.
        what: String,
        /// The hub's address.
        endpoint: String,
        /// What the hub's client says.
        #[source]
        source: Box<HubError>,
    },
    /// Not in the local cache, and the hub may not be asked.
    #[error("model `{model}`: not in the cache, and HF_HUB_OFFLINE forbids asking the hub")]
    Offline {
        /// The hub id.
        model: String,
    },
    /// No place for the hub's cache.
    #[error("no home directory for the hub's cache: set HF_HOME or HF_HUB_CACHE")]
    NoCacheDir,
    /// A file that every model has is absent.
    #[error("model `{model}`: {file} is missing")]
    MissingFile {
        /// The model's name.
        model: String,
        /// The file's name.
        file: String,
    },
    /// The directory holds something else than a language model whose weights are safetensors.
    #[error("model `{model}`: holds {what}; {advice}")]
    Foreign {
        /// The model's name.
        model: String,
        /// What it holds.
        what: String,
        /// What to do with that.
        advice: &'static str,
    },
    /// A file name that would leave the model's directory.
    #[error("model `{model}`: `{file}` is not a plain file name")]
    FileName {
        /// The model's name.
        model: String,
        /// The name as found.
        file: String,
    },
    /// A file cannot be read.
    #[error("model `{model}`: cannot read {file}")]
    Read {
        /// The model's name.
        model: String,
        /// The file's name.
        file: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON of the expected shape.
    #[error("model `{model}`: {file} is not valid")]
    Json {
        /// The model's name.
        model: String,
        /// The file's name.
        file: String,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A file's content contradicts itself: truncated, corrupt, or not what its name says.
    #[error("model `{model}`: {file} is corrupt: {problem}")]
    Corrupt {
        /// The model's name.
        model: String,
        /// The file's name.
        file: String,
        /// What does not fit.
        problem: String,
    },
    /// A key of a configuration file is absent, of the wrong type, out of range or not supported.
    #[error("model `{model}`: {file}: `{key}` {problem}")]
    Config {
        /// The model's name.
        model: String,
        /// The file's name.
        file: &'static str,
        /// The key, with a dot before each level.
        key: String,
        /// What is wrong with it, in words that follow the key's name.
        problem: String,
    },
    /// The checkpoint lacks a tensor.
    #[error("model `{model}`: tensor `{tensor}` is missing")]
    MissingTensor {
        /// The model's name.
        model: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's elements are of a type that is not computed with here.
    #[error("model `{model}`: tensor `{tensor}` is of type {dtype}; F32, F16 and BF16 are supported")]
    TensorDtype {
        /// The model's name.
        model: String,
        /// The tensor's name.
        tensor: String,
        /// The type, as safetensors spells it.
        dtype: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error(
        "model `{model}`: tensor `{tensor}` has shape {found:?}, and the configuration asks for {expected:?}"
    )]
    TensorShape {
        /// The model's name.
        model: String,
        /// The tensor's name.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A tensor that is to be written contradicts itself or another one.
    #[error("tensor `{tensor}` cannot be written: {problem}")]
    NewTensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A shard may hold so few bytes that there would be more of them than any reader takes.
    #[error(
        "shards of {max_shard_bytes} bytes would make {num_shards} files, over {max_shards}: allow larger ones"
    )]
    TooManyShards {
        /// The limit asked for.
        max_shard_bytes: u64,
        /// How many shards that makes.
        num_shards: usize,
        /// How many are read.
        max_shards: usize,
    },
}

impl Error {
    /// Whether a hub, the network or the cache failed where the model's name may be right.
    #[must_use]
    pub fn is_the_hubs(&self) -> bool {
        matches!(self, Self::Download { source, .. } if !source.is_the_callers())
    }
}
