use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use safetensors::Dtype as FileDtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::files::plain_name;
use crate::{Dtype, Error, FileBytes, ModelFiles, Result, StoredDtype, StoredTensor, Tensor, foreign};

pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// More shards than any published model has; an index that names more is not one.
pub(crate) const MAX_SHARDS: usize = 4096;
/// The largest header the safetensors format allows.
pub(crate) const MAX_HEADER_BYTES: usize = 100_000_000;
/// The header's length stands before it in this many bytes.
const LENGTH_BYTES: usize = size_of::<u64>();

/// The tensors of a model, in place in its safetensors files.
///
/// Names are the file's own. Some checkpoints leave out the outer module's name (`wte.weight` for
/// `transformer.wte.weight`): [`prefix`](Self::prefix) tells which form this one has.
#[derive(Debug)]
pub struct Checkpoint {
    model: String,
    shards: Vec<FileBytes>,
    entries: HashMap<String, Entry>,
    /// Names that a file gives to a tensor beside its own, as safetensors writes for weights that are shared.
    aliases: HashMap<String, String>,
    /// Files that the index names and that are not there, by the tensors that it says are in them.
    missing: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    shard_idx: usize,
    dtype: FileDtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens model.safetensors, or else the shards that model.safetensors.index.json names, and checks all headers
    /// against the files' lengths. Weights are read only when touched. Of what the index says only the shards' names are
    /// believed: entries that conversions left behind, for tensors or shards that nobody asks for, do no harm.
    ///
    /// # Errors
    /// A missing, truncated, corrupt or contradictory file, by its name; a directory with other weights than safetensors.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let mut checkpoint = Self {
            model: files.name().to_owned(),
            shards: Vec::new(),
            entries: HashMap::new(),
            aliases: HashMap::new(),
            missing: BTreeMap::new(),
        };
        if let Some(bytes) = files.read(WEIGHTS_FILE)? {
            checkpoint.add_shard(WEIGHTS_FILE, bytes)?;
            return Ok(checkpoint);
        }
        let Some(index) = files.read(INDEX_FILE)? else {
            return Err(foreign::no_weights(files.name(), &files.names()));
        };
        let index = ShardIndex::parse(files.name(), &index)?;
        for shard in index.shards(files.name())? {
            match files.read(shard)? {
                Some(bytes) => checkpoint.add_shard(shard, bytes)?,
                None => checkpoint.missing.extend(index.tensors_in(shard)),
            }
        }
        Ok(checkpoint)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// It, or the file that it is said to be in, is missing; it is of a type other than F32, F16, BF16.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let missing = || match self.missing.get(name) {
            Some(file) => Error::MissingFile { model: self.model.clone(), file: file.clone() },
            None => Error::MissingTensor { model: self.model.clone(), tensor: name.to_owned() },
        };
        let entry = self.entry(name).ok_or_else(missing)?;
        let dtype = match entry.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::Bf16,
            other => {
                return Err(Error::TensorDtype {
                    model: self.model.clone(),
                    tensor: name.to_owned(),
                    dtype: other.to_string(),
                });
            }
        };
        // Both look-ups were proved when the shard was added.
        let bytes = self.shards.get(entry.shard_idx).and_then(|shard| shard.get(entry.range.clone()));
        Ok(Tensor { dtype, shape: &entry.shape, bytes: bytes.ok_or_else(missing)? })
    }

    /// The tensor of this name and shape.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and when its shape is another.
    pub fn tensor_with_shape(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(Error::TensorShape {
            model: self.model.clone(),
            tensor: name.to_owned(),
            found: tensor.shape.to_vec(),
            expected: shape.to_vec(),
        })
    }

    /// Every tensor as it is stored, in the order of the files: whoever reads them so reads each file once, from its
    /// beginning to its end.
    #[must_use]
    pub fn stored(&self) -> Vec<StoredTensor<'_>> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(_, entry)| (entry.shard_idx, entry.range.start, entry.range.end));
        let tensors = entries.into_iter().filter_map(|(name, entry)| {
            // Both look-ups were proved when the shard was added.
            let bytes = self.shards.get(entry.shard_idx)?.get(entry.range.clone())?;
            Some(StoredTensor { name, dtype: StoredDtype(entry.dtype), shape: &entry.shape, bytes })
        });
        tensors.collect()
    }

    /// Gives back the memory that reading this tensor took: its pages stay in the system's cache, and are read again
    /// from the file where they are touched again. Without it a model that is read once, tensor by tensor, ends up
    /// wholly in this process's resident memory.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entry(name)
            && let Some(shard) = self.shards.get(entry.shard_idx)
        {
            shard.release(entry.range.clone());
        }
    }

    /// Whether there is a tensor of this name, or one that is shared under it, whatever its type.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// What stands before this checkpoint's names: `prefix` (`"transformer."`, `"model."`), or nothing where no tensor
    /// is stored with it.
    #[must_use]
    pub fn prefix<'p>(&self, prefix: &'p str) -> &'p str {
        let mut names = self.entries.keys().chain(self.aliases.keys());
        if names.any(|name| name.starts_with(prefix)) { prefix } else { "" }
    }

    /// Whether both names stand for the same elements, shared or stored twice.
    pub(crate) fn is_same(&self, one: &str, other: &str) -> bool {
        let bytes = |entry: &Entry| self.shards.get(entry.shard_idx)?.get(entry.range.clone());
        match (self.entry(one), self.entry(other)) {
            (Some(one), Some(other)) => {
                one.dtype == other.dtype && one.shape == other.shape && bytes(one) == bytes(other)
            }
            _ => false,
        }
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.aliases.get(name).map_or(name, String::as_str))
    }

    /// Bytes of all tensors, headers left out.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.range.len()).sum()
    }

    fn add_shard(&mut self, file: &str, bytes: FileBytes) -> Result<()> {
        let header = Header::parse(&bytes).map_err(|problem| self.corrupt(file, problem))?;
        let shard_idx = self.shards.len();
        for (name, info) in header.metadata.tensors() {
            let (start, end) = info.data_offsets;
            // No overflow: the last tensor's end was checked against the file's length, and offsets only rise.
            let range = header.data_start + start..header.data_start + end;
            if self.entries.contains_key(&name) {
                return Err(self.corrupt(file, format!("`{name}` is in an earlier shard too")));
            }
            self.entries
                .insert(name, Entry { shard_idx, dtype: info.dtype, shape: info.shape.clone(), range });
        }
        for (alias, name) in header.metadata.metadata().iter().flatten() {
            if self.entries.contains_key(name) && !self.entries.contains_key(alias) {
                self.aliases.insert(alias.clone(), name.clone());
            }
        }
        self.shards.push(bytes);
        Ok(())
    }

    fn corrupt(&self, file: &str, problem: String) -> Error {
        Error::Corrupt { model: self.model.clone(), file: file.to_owned(), problem }
    }
}

struct Header {
    metadata: Metadata,
    data_start: usize,
}

impl Header {
    /// Length (u64, little-endian), JSON, data. The crate's own reader of the whole file adds lengths from the file
    /// without a check, so that only its checks of the JSON part are used.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let (length, rest) = bytes
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| format!("{} bytes are too few for a safetensors header", bytes.len()))?;
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length)
            .ok()
            .filter(|&length| length <= MAX_HEADER_BYTES)
            .and_then(|length| rest.get(..length))
            .ok_or_else(|| {
                format!("the header claims {length} bytes and the file has {} after it", rest.len())
            })?;
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|error| format!("the header is invalid: {error}"))?;
        let data_bytes = rest.len() - header.len();
        if metadata.data_len() != data_bytes {
            return Err(format!(
                "its tensors take {} bytes and the file holds {data_bytes}",
                metadata.data_len()
            ));
        }
        Ok(Self { metadata, data_start: LENGTH_BYTES + header.len() })
    }
}

/// model.safetensors.index.json: which shard holds which tensor.
#[derive(Deserialize)]
pub(crate) struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    pub(crate) fn parse(model: &str, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json {
            model: model.to_owned(),
            file: INDEX_FILE.to_owned(),
            source,
        })
    }

    /// The tensors said to be in a shard, with its name.
    fn tensors_in<'a>(&'a self, shard: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
        let tensors = self.weight_map.iter().filter(move |(_, file)| *file == shard);
        tensors.map(|(tensor, file)| (tensor.clone(), file.clone()))
    }

    /// The shards' names, each once: plain names only, whoever wrote the index.
    pub(crate) fn shards(&self, model: &str) -> Result<BTreeSet<&str>> {
        let shards: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        if shards.is_empty() || shards.len() > MAX_SHARDS {
            return Err(Error::Corrupt {
                model: model.to_owned(),
                file: INDEX_FILE.to_owned(),
                problem: format!("it names {} shards", shards.len()),
            });
        }
        for shard in &shards {
            plain_name(model, shard)?;
        }
        Ok(shards)
    }
}

#[cfg(test)]
mod tests;
