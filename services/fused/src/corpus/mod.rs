//! A corpus as a stream of documents: plain text, JSON lines, JSON arrays and Parquet; compressed or not; from files,
//! folders, pipes and standard input. One document after the other is in memory, never a file, and a compressed file is as long as it
//! likes. Every error names the file and the place in it.

mod array;
mod bytes;
mod jsonl;
mod lines;
mod parquet;
mod sources;
mod text;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

use bytes::{Content, open};
use lines::Lines;
use sources::{Format, Source, Sources};

/// The longest document. A base tokenizer takes many times a text's size while it encodes it. (Less in tests, which read
/// one that is longer.)
const MAX_DOCUMENT_BYTES: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// The field or column with the text, unless `--field` names another.
const DEFAULT_FIELD: &str = "text";

/// Files, folders and pipes that were found to be there.
pub(crate) struct Corpus {
    sources: Sources,
    field: Option<String>,
    bytes_read: Arc<AtomicU64>,
}

/// How much of a corpus's files has been read.
#[derive(Clone)]
pub(crate) struct BytesRead {
    /// Bytes of the files as they are on disk; none where a pipe is among them.
    pub(crate) total: Option<u64>,
    so_far: Arc<AtomicU64>,
}

type Stream = Box<dyn Iterator<Item = anyhow::Result<String>> + Send>;

impl Corpus {
    /// Looks at every path: a file, a folder, a pipe, or `-` for standard input. `field` names the field or column with
    /// the text; given, standard input and files of unknown kind are taken for JSON lines, else for plain text.
    ///
    /// # Errors
    /// A path is not there, or a folder has no file of a known kind.
    pub(crate) fn open(paths: &[PathBuf], field: Option<&str>) -> anyhow::Result<Self> {
        let sources = Sources::find(paths)?;
        Ok(Self { sources, field: field.map(str::to_owned), bytes_read: Arc::default() })
    }

    /// What was left out of folders, in words; none if nothing was.
    pub(crate) fn skipped(&self) -> Option<String> {
        self.sources.skipped()
    }

    /// Watches the reading.
    pub(crate) fn bytes_read(&self) -> BytesRead {
        let lens = self.sources.files.iter().map(|source| source.num_bytes);
        BytesRead { total: lens.sum(), so_far: self.bytes_read.clone() }
    }

    /// The documents, in the order of the paths; of a folder, in the order of its files' paths. Ends at the first error.
    pub(crate) fn into_documents(self) -> impl Iterator<Item = anyhow::Result<String>> + Send {
        let Self { sources, field, bytes_read } = self;
        let mut sources = sources.files.into_iter();
        let mut current: Option<(String, Stream)> = None;
        let mut failed = false;
        std::iter::from_fn(move || {
            while !failed {
                let document = match &mut current {
                    Some((name, stream)) => stream.next().map(|document| document.context(name.clone())),
                    None => {
                        let source = sources.next()?;
                        let stream = documents(&source, field.as_deref(), &bytes_read);
                        match stream.with_context(|| source.name.clone()) {
                            Ok(stream) => {
                                current = Some((source.name, stream));
                                continue;
                            }
                            Err(error) => Some(Err(error)),
                        }
                    }
                };
                match document {
                    Some(document) => {
                        failed = document.is_err();
                        return Some(document);
                    }
                    None => current = None,
                }
            }
            None
        })
    }
}

impl BytesRead {
    /// Bytes read until now.
    pub(crate) fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Relaxed)
    }
}

/// The documents of one file.
fn documents(source: &Source, field: Option<&str>, bytes_read: &Arc<AtomicU64>) -> anyhow::Result<Stream> {
    let format = source.format.unwrap_or(if field.is_some() { Format::JsonLines } else { Format::Text });
    let field = field.unwrap_or(DEFAULT_FIELD);
    Ok(match (open(source, bytes_read)?, format) {
        (Content::Parquet(file), _) => Box::new(parquet::Documents::open(file, field, bytes_read.clone())?),
        (Content::Text(_), Format::Parquet) => {
            anyhow::bail!("is no Parquet file: it does not begin with PAR1")
        }
        (Content::Text(mut lines), format) => match (array::begins(lines.peek()?), format) {
            (Some(array::Beginning::Objects), _) | (Some(array::Beginning::Any), Format::JsonLines) => {
                Box::new(array::Documents::new(lines, field))
            }
            (_, Format::JsonLines) => Box::new(jsonl::Documents::new(lines, field)),
            (_, _) => Box::new(text::Documents::new(lines)),
        },
    })
}

/// The text of bytes that begin at `start` of the decompressed file.
fn utf8(bytes: Vec<u8>, start: u64) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = start + error.utf8_error().valid_up_to() as u64;
        anyhow::anyhow!("is not UTF-8 at byte {offset}: convert it first, as with iconv -f LATIN1 -t UTF-8")
    })
}

#[cfg(test)]
mod tests;
