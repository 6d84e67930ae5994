//! AdaptiVocab's own files on disk: which belong together, by their names.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use fused_vocabulary::import::{
    Artefacts, EmbeddingMatrix, MAX_ARTEFACT_BYTES, MAX_EMBEDDING_BYTES, PatchEmbeddings,
};

const WHOLE: &str = "patch_tokenizer.pkl";
const PIECES: [&str; 3] = ["removed_tokens.pkl", "added_ngrams.pkl", "inputs_ids_convert.pkl"];
/// Ways in which the rows of n-tokens were made, the one that AdaptiVocab recommends first.
const METHODS: [&str; 2] = ["exp_emb", "mean_emb"];

/// The files of a vocabulary, read.
pub(crate) enum ReferenceFiles {
    Whole(Vec<u8>),
    Pieces([Vec<u8>; 3]),
}

impl ReferenceFiles {
    /// `path` is the whole pickle, one of its three pieces, or a directory with either; the whole one is preferred.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let is_piece = path.file_name().is_some_and(|name| PIECES.iter().any(|piece| name == *piece));
        let (whole, folder) =
            if path.is_dir() { (path.join(WHOLE), path) } else { (path.to_owned(), folder_of(path)) };
        if !is_piece && whole.exists() {
            return Ok(Self::Whole(read(&whole, MAX_ARTEFACT_BYTES)?));
        }
        if !is_piece && !PIECES.iter().all(|piece| folder.join(piece).exists()) {
            bail!("{} is not there, nor are {} beside it", whole.display(), PIECES.join(", "));
        }
        let [removed, ngrams, converter] = PIECES.map(|piece| read(&folder.join(piece), MAX_ARTEFACT_BYTES));
        Ok(Self::Pieces([removed?, ngrams?, converter?]))
    }

    pub(crate) fn artefacts(&self) -> Artefacts<'_> {
        match self {
            Self::Whole(bytes) => Artefacts::PatchTokenizer(bytes),
            Self::Pieces([removed_tokens, added_ngrams, inputs_ids_convert]) => {
                Artefacts::Pieces { removed_tokens, added_ngrams, inputs_ids_convert }
            }
        }
    }
}

/// Whether a file is a pickle rather than a `patch_vocabulary.json`.
pub(crate) fn is_pickle(path: &Path) -> anyhow::Result<bool> {
    let mut first = Vec::new();
    open(path)?.take(1).read_to_end(&mut first)?;
    Ok(fused_vocabulary::import::is_pickle(&first))
}

/// The embedding matrices beside a vocabulary's pickle; none where there are none.
///
/// # Errors
/// One of two is missing, or one cannot be read.
pub(crate) fn embeddings(vocabulary: &Path) -> anyhow::Result<Option<PatchEmbeddings>> {
    let folder = folder_of(vocabulary);
    for method in METHODS {
        let paths = ["input", "output"].map(|side| folder.join(format!("embedding_{side}_{method}.pkl")));
        match paths.each_ref().map(|path| path.exists()) {
            [false, false] => continue,
            [true, true] => {}
            [has_input, _] => {
                let [present, missing] = if has_input { [0, 1] } else { [1, 0] };
                bail!("{} is there, but not {}", paths[present].display(), paths[missing].display());
            }
        }
        let [input, output] = paths.map(|path| {
            let matrix = EmbeddingMatrix::parse(read(&path, MAX_EMBEDDING_BYTES)?);
            matrix.with_context(|| path.display().to_string())
        });
        tracing::info!(folder = %folder.display(), method, "pickled embedding matrices found");
        return Ok(Some(PatchEmbeddings { input: input?, output: output? }));
    }
    Ok(None)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read(path: &Path, max_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more than allowed, so that a file that grows meanwhile is seen to be too large as well.
    open(path)?
        .take(max_bytes as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| path.display().to_string())?;
    if bytes.len() > max_bytes {
        bail!("{} has over {max_bytes} bytes", path.display());
    }
    Ok(bytes)
}

/// Asks before opening: opening a pipe would wait for its writer.
fn open(path: &Path) -> anyhow::Result<fs::File> {
    let opened = fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() { fs::File::open(path) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
    });
    opened.with_context(|| format!("cannot read {}", path.display()))
}
