use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::observer::{Observer, Stage, Unit, go_on};
use crate::base::BaseTokenizer;
use crate::documents::work_in_order;
use crate::{Error, Removed, Result, TokenId};

/// A chunk ends after the document with which it reaches so many tokens.
const CHUNK_TOKENS: u64 = 1 << 20;
const WRITE_BYTES: usize = 1 << 20;

/// The encoded corpus: base ids of each document, in a temporary file without a name, so that memory does not grow with
/// the corpus and nothing is left behind.
///
/// The file is a row of 32-bit numbers: of each document how many tokens it has, then its ids. Special and added tokens
/// written in the text stand in it as ids; whoever chooses n-tokens treats them as walls. Documents without a token are
/// left out.
pub(crate) struct Spool {
    file: File,
    folder: PathBuf,
    /// Which numbers of the file make up each chunk.
    chunks: Vec<Range<u64>>,
    /// By base id: what stands for it in what is read; empty for itself.
    parts: Vec<Box<[TokenId]>>,
    num_documents: u64,
    num_tokens: u64,
    num_bytes: u64,
}

/// Some whole documents: at most about a million tokens, or one document that is longer, which is not cut, for an
/// n-token could stand at the cut.
pub(crate) struct Chunk {
    ids: Vec<TokenId>,
    /// Where each document ends.
    ends: Vec<usize>,
}

impl Spool {
    /// Encodes the documents, in parallel, into a file in `folder`.
    pub(crate) fn encode<D>(
        base: &BaseTokenizer,
        documents: impl Iterator<Item = std::result::Result<String, D>> + Send,
        folder: &Path,
        observer: &dyn Observer,
    ) -> Result<Self>
    where
        D: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        observer.begin(&Stage { name: "encoding the corpus", unit: Unit::Bytes, total: None });
        let mut writer = Writer::new(folder)?;
        work_in_order(
            documents,
            |text| {
                go_on(observer)?;
                let ids = base.encode(text)?;
                observer.advance(text.len() as u64);
                Ok(ids)
            },
            |text, ids| writer.push(&ids, text.len()),
        )?;
        let spool = writer.finish()?;
        if spool.num_tokens == 0 {
            return Err(Error::EmptyCorpus);
        }
        Ok(spool)
    }

    /// The same documents in which removed tokens are replaced by their parts.
    pub(crate) fn reduced(mut self, removed: &[Removed]) -> Self {
        self.parts.clear();
        for removed in removed {
            if self.parts.len() <= removed.id.row() {
                self.parts.resize(removed.id.row() + 1, Box::default());
            }
            self.parts[removed.id.row()] = removed.parts.clone().into();
        }
        self
    }

    /// Documents that have a token.
    pub(crate) fn num_documents(&self) -> u64 {
        self.num_documents
    }

    /// Base tokens, before any is removed.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Bytes of text.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Calls `f` with each document, in order, as often as one likes.
    pub(crate) fn for_each_document(&self, mut f: impl FnMut(&[TokenId]) -> Result<()>) -> Result<()> {
        self.for_each_chunk(|chunk| chunk.documents().try_for_each(&mut f))
    }

    /// Calls `f` with each chunk, in order.
    pub(crate) fn for_each_chunk(&self, mut f: impl FnMut(&Chunk) -> Result<()>) -> Result<()> {
        self.chunks.iter().try_for_each(|range| f(&self.read(range)?))
    }

    /// The corpus in chunks, in order, each read by the thread that works on it.
    pub(crate) fn chunks(&self) -> impl IndexedParallelIterator<Item = Result<Chunk>> {
        self.chunks.par_iter().with_max_len(1).map(|range| self.read(range))
    }

    fn read(&self, range: &Range<u64>) -> Result<Chunk> {
        let mut bytes = vec![0; (range.end - range.start) as usize * 4];
        self.file
            .read_exact_at(&mut bytes, range.start * 4)
            .map_err(|source| Error::Spool { folder: self.folder.clone(), source })?;
        let mut numbers =
            bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        let mut chunk = Chunk { ids: Vec::with_capacity(bytes.len() / 4), ends: Vec::new() };
        while let Some(len) = numbers.next() {
            for id in numbers.by_ref().take(len as usize) {
                match self.parts.get(id as usize) {
                    Some(parts) if !parts.is_empty() => chunk.ids.extend_from_slice(parts),
                    _ => chunk.ids.push(TokenId(id)),
                }
            }
            chunk.ends.push(chunk.ids.len());
        }
        Ok(chunk)
    }

    /// A spool of documents that are encoded already.
    #[cfg(test)]
    pub(crate) fn of(documents: &[Vec<TokenId>]) -> Self {
        let mut writer = Writer::new(&std::env::temp_dir()).unwrap();
        documents.iter().for_each(|ids| writer.push(ids, ids.len()).unwrap());
        writer.finish().unwrap()
    }
}

impl Chunk {
    /// Its documents, in order; none is empty.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &[TokenId]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.ids[start..*end])
    }
}

struct Writer {
    spool: Spool,
    buffer: BufWriter<File>,
    chunk: Range<u64>,
}

impl Writer {
    fn new(folder: &Path) -> Result<Self> {
        let open = || {
            let file = tempfile::tempfile_in(folder)?;
            Ok((file.try_clone()?, file))
        };
        let (writing, file) = open().map_err(|source| Error::Spool { folder: folder.to_owned(), source })?;
        let spool = Spool {
            file,
            folder: folder.to_owned(),
            chunks: Vec::new(),
            parts: Vec::new(),
            num_documents: 0,
            num_tokens: 0,
            num_bytes: 0,
        };
        Ok(Self { spool, buffer: BufWriter::with_capacity(WRITE_BYTES, writing), chunk: 0..0 })
    }

    fn push(&mut self, ids: &[TokenId], num_bytes: usize) -> Result<()> {
        self.spool.num_bytes += num_bytes as u64;
        if ids.is_empty() {
            return Ok(());
        }
        let Ok(len) = u32::try_from(ids.len()) else {
            return Err(Error::TooLarge {
                file: "a document",
                bytes: num_bytes,
                max_bytes: u32::MAX as usize,
            });
        };
        self.write(std::iter::once(len).chain(ids.iter().map(|id| id.0)))
            .map_err(|source| self.failed(source))?;
        self.spool.num_documents += 1;
        self.spool.num_tokens += u64::from(len);
        self.chunk.end += u64::from(len) + 1;
        if self.chunk.end - self.chunk.start >= CHUNK_TOKENS {
            self.end_chunk();
        }
        Ok(())
    }

    fn write(&mut self, mut numbers: impl Iterator<Item = u32>) -> io::Result<()> {
        numbers.try_for_each(|number| self.buffer.write_all(&number.to_le_bytes()))
    }

    fn end_chunk(&mut self) {
        let end = self.chunk.end;
        self.spool.chunks.push(std::mem::replace(&mut self.chunk, end..end));
    }

    fn finish(mut self) -> Result<Spool> {
        self.buffer.flush().map_err(|source| self.failed(source))?;
        if !self.chunk.is_empty() {
            self.end_chunk();
        }
        Ok(self.spool)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Spool { folder: self.spool.folder.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(spool: &Spool) -> Vec<Vec<TokenId>> {
        let mut documents = Vec::new();
        spool
            .for_each_document(|ids| {
                documents.push(ids.to_vec());
                Ok(())
            })
            .unwrap();
        documents
    }

    fn in_chunks(spool: &Spool) -> Vec<Vec<TokenId>> {
        let chunks: Vec<Chunk> = spool.chunks().collect::<Result<_>>().unwrap();
        chunks.iter().flat_map(Chunk::documents).map(<[_]>::to_vec).collect()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(lens in prop::collection::vec(0_usize..40, 0..30), long in 0_usize..3) {
            let mut next = 0;
            let mut document = |len: usize| -> Vec<_> {
                next += len as u32;
                (next - len as u32..next).map(TokenId).collect()
            };
            let mut documents: Vec<_> = lens.into_iter().map(&mut document).collect();
            for idx in 0..long {
                let len = CHUNK_TOKENS as usize / 2 + idx;
                documents.insert(documents.len() / 2, document(len));
            }
            let spool = Spool::of(&documents);
            documents.retain(|ids| !ids.is_empty());
            prop_assert!(all(&spool) == documents);
            prop_assert!(in_chunks(&spool) == documents);
            prop_assert_eq!(spool.num_documents(), documents.len() as u64);
            prop_assert_eq!(spool.num_tokens(), documents.iter().map(|ids| ids.len() as u64).sum::<u64>());
        }
    }

    #[test]
    fn chunks_are_whole_documents_of_bounded_size() {
        let document = vec![TokenId(7); 300_000];
        let spool = Spool::of(&vec![document; 9]);
        let lens: Vec<_> = spool.chunks().map(|chunk| chunk.unwrap().documents().count()).collect();
        assert_eq!(lens, [4, 4, 1]);
    }

    #[test]
    fn removed_tokens_are_read_as_their_parts() {
        let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
        let removed = Removed { id: TokenId(2), parts: ids(&[0, 1, 0]), text: String::new() };
        let spool = Spool::of(&[ids(&[2, 9]), ids(&[3]), ids(&[2, 2])]).reduced(&[removed]);
        assert_eq!(all(&spool), [ids(&[0, 1, 0, 9]), ids(&[3]), ids(&[0, 1, 0, 0, 1, 0])]);
        assert_eq!(in_chunks(&spool), all(&spool));
        assert_eq!(spool.num_tokens(), 5);
    }
}
