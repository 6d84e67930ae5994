//! Writes safetensors files: headers first, then the tensors one after the other, from wherever their bytes come. Nothing
//! but the block that is being written is held in memory.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::weights::{INDEX_FILE, MAX_HEADER_BYTES, MAX_SHARDS, WEIGHTS_FILE};
use crate::{Error, Result, StoredDtype};

/// Where the data begins is a multiple of this, as every writer of the format has it.
const ALIGNMENT: usize = 8;

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name; no two of a model's are the same.
    pub name: String,
    /// The element type.
    pub dtype: StoredDtype,
    /// The extent of each dimension, outermost first.
    pub shape: Vec<usize>,
}

/// A model's tensors, divided into files.
#[derive(Debug)]
pub struct Shards {
    tensors: Vec<Sized>,
    /// By shard: where its tensors end in `tensors`.
    ends: Vec<usize>,
}

#[derive(Debug)]
struct Sized {
    tensor: NewTensor,
    num_bytes: usize,
}

impl Shards {
    /// Divides tensors, in their order, into files of at most `max_shard_bytes` of data each; a larger tensor gets a
    /// file of its own.
    ///
    /// # Errors
    /// Two tensors of one name; a size beyond counting, or of no whole bytes; more files than are read.
    pub fn plan(tensors: Vec<NewTensor>, max_shard_bytes: u64) -> Result<Self> {
        let mut names = HashSet::with_capacity(tensors.len());
        let mut sized = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let problem =
                |problem: &str| Error::NewTensor { tensor: tensor.name.clone(), problem: problem.to_owned() };
            if !names.insert(tensor.name.clone()) {
                return Err(problem("there are two of this name"));
            }
            let num_bytes = num_bytes(&tensor).ok_or_else(|| problem("its size is no number of bytes"))?;
            sized.push(Sized { tensor, num_bytes });
        }
        // Wide elements first, in an otherwise unchanged order: then every tensor is aligned to its element.
        sized.sort_by_key(|sized| std::cmp::Reverse(sized.tensor.dtype.num_bits()));
        let (mut ends, mut shard_bytes) = (Vec::new(), 0_u64);
        for (idx, sized) in sized.iter().enumerate() {
            let with_it = shard_bytes.saturating_add(sized.num_bytes as u64);
            if shard_bytes > 0 && with_it > max_shard_bytes && sized.num_bytes > 0 {
                ends.push(idx);
                shard_bytes = sized.num_bytes as u64;
            } else {
                shard_bytes = with_it;
            }
        }
        ends.push(sized.len());
        if ends.len() > MAX_SHARDS {
            let (num_shards, max_shards) = (ends.len(), MAX_SHARDS);
            return Err(Error::TooManyShards { max_shard_bytes, num_shards, max_shards });
        }
        Ok(Self { tensors: sized, ends })
    }

    /// Files, the index left out.
    #[must_use]
    pub fn num_shards(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.tensors.iter().map(|sized| sized.num_bytes as u64).sum()
    }

    /// Writes all files, and the index where there are several, into `dir`, in which none of them may be yet. For each
    /// tensor `content` is called once, to push all its bytes. When this returns, the files are on the disk.
    ///
    /// # Errors
    /// A file cannot be written, by its path, or `content` failed or pushed too few or too many bytes. What was written
    /// until then is left behind.
    pub fn write<E: From<Error>>(
        &self,
        dir: &Path,
        mut content: impl FnMut(&NewTensor, &mut TensorSink<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut weight_map = Map::new();
        let mut start = 0;
        for (shard_idx, end) in self.ends.iter().enumerate() {
            let tensors = self.tensors.get(start..*end).unwrap_or_default();
            start = *end;
            let name = self.file_name(shard_idx);
            let mut output = Output::create(dir.join(&name))?;
            output.write(&header(tensors)?)?;
            for Sized { tensor, num_bytes } in tensors {
                let mut sink = TensorSink { output: &mut output, tensor, num_left: *num_bytes };
                content(tensor, &mut sink)?;
                sink.finish()?;
                weight_map.insert(tensor.name.clone(), Value::from(name.as_str()));
            }
            output.finish()?;
        }
        if self.num_shards() > 1 {
            let index = json!({ "metadata": { "total_size": self.num_bytes() }, "weight_map": weight_map });
            let mut output = Output::create(dir.join(INDEX_FILE))?;
            output.write(format!("{index:#}\n").as_bytes())?;
            output.finish()?;
        }
        Ok(())
    }

    fn file_name(&self, shard_idx: usize) -> String {
        match self.num_shards() {
            1 => WEIGHTS_FILE.to_owned(),
            num_shards => format!("model-{:05}-of-{num_shards:05}.safetensors", shard_idx + 1),
        }
    }
}

/// Takes the bytes of one tensor.
#[derive(Debug)]
pub struct TensorSink<'a> {
    output: &'a mut Output,
    tensor: &'a NewTensor,
    num_left: usize,
}

impl TensorSink<'_> {
    /// Writes the next bytes, little-endian.
    ///
    /// # Errors
    /// The file cannot be written, or these are more bytes than the tensor has.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.num_left =
            self.num_left.checked_sub(bytes.len()).ok_or_else(|| self.wrong("has fewer bytes than came"))?;
        self.output.write(bytes)
    }

    fn finish(self) -> Result<()> {
        if self.num_left == 0 { Ok(()) } else { Err(self.wrong("has more bytes than came")) }
    }

    fn wrong(&self, problem: &str) -> Error {
        Error::NewTensor { tensor: self.tensor.name.clone(), problem: problem.to_owned() }
    }
}

/// A new file, whose errors name it.
#[derive(Debug)]
struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self> {
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Error::Write { path, source }),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| self.error(source))
    }

    /// Some systems say only now that the disk is full.
    fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

fn num_bytes(tensor: &NewTensor) -> Option<usize> {
    let num_elements =
        tensor.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))?;
    let num_bits = num_elements.checked_mul(tensor.dtype.num_bits())?;
    (num_bits % 8 == 0).then_some(num_bits / 8)
}

/// Length (u64, little-endian) and JSON, filled up with blanks.
fn header(tensors: &[Sized]) -> Result<Vec<u8>> {
    // Readers of the ecosystem refuse a file that does not say which framework's layout it has.
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut start = 0;
    for Sized { tensor, num_bytes } in tensors {
        let end = start + num_bytes;
        let entry = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end],
        });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    if json.len() > MAX_HEADER_BYTES {
        let tensor = tensors.first().map(|sized| sized.tensor.name.clone()).unwrap_or_default();
        return Err(Error::NewTensor { tensor, problem: "its file's header is too long".to_owned() });
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

#[cfg(test)]
mod tests;
