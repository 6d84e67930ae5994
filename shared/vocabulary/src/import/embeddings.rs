use std::ops::Range;

use super::pickle::{self, Class, Pickle, View};
use crate::{Error, Result};

/// The largest pickled matrix that is read: 256,000 tokens of 16,384 elements.
pub const MAX_EMBEDDING_BYTES: usize = 16 << 30;

/// `torch.save` writes this number first.
const TORCH_MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];
const TORCH_PROTOCOL: u32 = 1001;
const ELEMENT_BYTES: usize = size_of::<f32>();

/// The two matrices of an adapted model, which are never tied.
#[derive(Debug)]
pub struct PatchEmbeddings {
    /// Of tokens that are read.
    pub input: EmbeddingMatrix,
    /// Of tokens that are written: the head.
    pub output: EmbeddingMatrix,
}

/// A pickled matrix of 32-bit floats, `[model ids, hidden]`, row by row: `embedding_input_exp_emb.pkl` and its like.
pub struct EmbeddingMatrix {
    file: Vec<u8>,
    elements: Range<usize>,
    num_rows: usize,
    num_cols: usize,
}

impl EmbeddingMatrix {
    /// Reads the file's content, which is kept: its elements are not copied.
    ///
    /// # Errors
    /// [`Error::Artefact`] where it is not a pickled, contiguous matrix of 32-bit floats.
    pub fn parse(file: Vec<u8>) -> Result<Self> {
        let found = if file.len() > MAX_EMBEDDING_BYTES {
            Err(format!("has {} bytes, over the limit of {MAX_EMBEDDING_BYTES}", file.len()))
        } else {
            matrix(&file)
        };
        let Matrix { elements, num_rows, num_cols } =
            found.map_err(|problem| Error::artefact("embedding matrix", problem))?;
        Ok(Self { file, elements, num_rows, num_cols })
    }

    /// Rows: the adapted model's tokens.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Columns: the model's hidden size.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// The elements, row by row, four bytes each, little-endian.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.elements.clone()]
    }
}

impl std::fmt::Debug for EmbeddingMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EmbeddingMatrix({} rows, {} columns)", self.num_rows, self.num_cols)
    }
}

struct Matrix {
    /// Where the elements lie in the file.
    elements: Range<usize>,
    num_rows: usize,
    num_cols: usize,
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.
fn matrix(file: &[u8]) -> std::result::Result<Matrix, String> {
    let pickle = pickle::read(file, Class::of_tensor).map_err(|refused| refused.to_string())?;
    let [storage, offset, shape, strides, _, hooks] =
        pickle.root().arguments(Class::RebuildTensor)?.tuple_of()?;
    let [num_rows, num_cols] = shape.tuple_of()?;
    let (num_rows, num_cols): (usize, usize) = (num_rows.int()?, num_cols.int()?);
    let [row_stride, col_stride] = strides.tuple_of()?;
    if offset.int::<usize>()? != 0
        || row_stride.int::<usize>()? != num_cols
        || col_stride.int::<usize>()? != 1
    {
        return Err("is a matrix that does not lie row by row".to_owned());
    }
    if hooks.arguments(Class::OrderedDict)?.tuple()?.len() != 0 {
        return Err("is a matrix with hooks".to_owned());
    }
    let [saved] = storage.arguments(Class::StorageFromBytes)?.tuple_of()?;
    let saved = saved.bytes()?;
    let elements = saved_elements(saved)?;
    let num_bytes = num_rows.checked_mul(num_cols).and_then(|count| count.checked_mul(ELEMENT_BYTES));
    if num_bytes != Some(elements.len()) {
        return Err(format!("has {num_rows} × {num_cols} elements and {} bytes of them", elements.len()));
    }
    // Both lie in the file, one in the other.
    let start = elements.as_ptr().addr() - file.as_ptr().addr();
    Ok(Matrix { elements: start..start + elements.len(), num_rows, num_cols })
}

/// The elements of a storage as `torch.save` wrote it before it wrote archives: five pickles one after the other (magic
/// number, version, system, storage, list of keys), then their number and they themselves.
fn saved_elements(saved: &[u8]) -> std::result::Result<&[u8], String> {
    let mut stream = Stream { rest: saved };
    if stream.pickle(Class::none)?.root().long()? != TORCH_MAGIC {
        return Err("holds a storage without torch's magic number".to_owned());
    }
    let version: u32 = stream.pickle(Class::none)?.root().int()?;
    if version != TORCH_PROTOCOL {
        return Err(format!("holds a storage of version {version}; {TORCH_PROTOCOL} is read"));
    }
    if !stream.pickle(Class::none)?.root().at("little_endian")?.truth()? {
        return Err("holds a storage of a big-endian machine".to_owned());
    }
    let storage = stream.pickle(Class::of_storage)?;
    let [kind, class, key, _, num_elements, view] = storage.root().persistent()?.tuple_of()?;
    let num_elements: u64 = num_elements.int()?;
    if kind.text()? != "storage" || !class.is_class(Class::FloatStorage) || !view.is_none() {
        return Err("holds something else than a storage of 32-bit floats".to_owned());
    }
    let keys = stream.pickle(Class::none)?;
    let mut keys = keys.root().list()?;
    if keys.len() != 1 || keys.next().map(View::text) != Some(key.text()) {
        return Err("holds other storages than it names".to_owned());
    }
    let Some((count, elements)) = stream.rest.split_first_chunk() else {
        return Err("ends before its elements".to_owned());
    };
    let count = u64::from_le_bytes(*count);
    if count != num_elements || count.checked_mul(ELEMENT_BYTES as u64) != Some(elements.len() as u64) {
        return Err(format!("says {num_elements}, then {count} elements, and has {} bytes", elements.len()));
    }
    Ok(elements)
}

struct Stream<'a> {
    rest: &'a [u8],
}

impl<'a> Stream<'a> {
    fn pickle(&mut self, allowed: fn(Class) -> bool) -> std::result::Result<Pickle<'a>, String> {
        let (pickle, len) =
            pickle::read_first(self.rest, allowed).map_err(|refused| format!("storage: {refused}"))?;
        self.rest = &self.rest[len..];
        Ok(pickle)
    }
}
