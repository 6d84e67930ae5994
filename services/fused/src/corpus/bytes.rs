use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};

use super::Lines;
use super::sources::Source;

const BUFFER_BYTES: usize = 256 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const PARQUET: &[u8] = b"PAR1";
const UTF8_MARK: &[u8] = &[0xef, 0xbb, 0xbf];
const UTF16_MARKS: [&[u8]; 2] = [&[0xff, 0xfe], &[0xfe, 0xff]];
/// Enough for every mark above, and for what tells an array of records (`array::begins`).
const MAX_MARK_BYTES: usize = 256;

/// What the first bytes of a file say that it is. Names lie, magic numbers seldom do.
pub(super) enum Content {
    Parquet(File),
    /// Decompressed, and past a byte order mark.
    Text(Lines),
}

/// Opens a source. What is read of it is added to `bytes_read`, as it stands on disk; for Parquet by its reader.
pub(super) fn open(source: &Source, bytes_read: &Arc<AtomicU64>) -> anyhow::Result<Content> {
    let input: Box<dyn Read + Send> = match &source.path {
        None => Box::new(io::stdin()),
        Some(path) => Box::new(File::open(path)?),
    };
    let counted = Counted { input, num_bytes: bytes_read.clone() };
    let (mark, input) = peek(counted)?;
    if mark.starts_with(PARQUET) {
        return match &source.path {
            Some(path) if source.num_bytes.is_some() => Ok(Content::Parquet(File::open(path)?)),
            _ => bail!("Parquet is read from a file only: its table of contents stands at its end"),
        };
    }
    let text: Box<dyn Read + Send> = if mark.starts_with(GZIP) {
        Box::new(flate2::read::MultiGzDecoder::new(input))
    } else if mark.starts_with(ZSTD) {
        // Refuses frames that ask for a window of more than 128 MiB.
        Box::new(zstd::stream::read::Decoder::new(input)?)
    } else {
        Box::new(input)
    };
    lines(text).map(Content::Text)
}

/// Text, from the first byte that is not a byte order mark.
pub(super) fn lines(text: impl Read + Send + 'static) -> anyhow::Result<Lines> {
    let (mark, text) = peek(text)?;
    if UTF16_MARKS.iter().any(|utf16| mark.starts_with(utf16)) {
        bail!("is UTF-16, convert it first: iconv -f UTF-16 -t UTF-8");
    }
    let mut text = BufReader::with_capacity(BUFFER_BYTES, text);
    let mut start = 0;
    if mark.starts_with(UTF8_MARK) {
        io::copy(&mut text.by_ref().take(UTF8_MARK.len() as u64), &mut io::sink())?;
        start = UTF8_MARK.len() as u64;
    }
    Ok(Lines::new(Box::new(text) as Box<dyn BufRead + Send>, start))
}

/// The first bytes, and the whole with them.
fn peek(mut input: impl Read + Send + 'static) -> anyhow::Result<(Vec<u8>, impl Read + Send + 'static)> {
    let mut mark = Vec::new();
    input.by_ref().take(MAX_MARK_BYTES as u64).read_to_end(&mut mark).context("cannot be read")?;
    Ok((mark.clone(), Cursor::new(mark).chain(input)))
}

/// Counts what goes through.
struct Counted<R> {
    input: R,
    num_bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num = self.input.read(buffer)?;
        self.num_bytes.fetch_add(num as u64, Ordering::Relaxed);
        Ok(num)
    }
}
