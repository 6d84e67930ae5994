use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const STDIN: &str = "-";
const JSON: &str = "json";
/// The most files that a corpus may have.
const MAX_FILES: usize = 1 << 20;
/// So many left-out files are named; the rest are counted.
const MAX_NAMED: usize = 5;

/// The files of a corpus, in reading order.
pub(super) struct Sources {
    pub(super) files: Vec<Source>,
    skipped: Vec<PathBuf>,
}

/// One file, pipe, or standard input.
pub(super) struct Source {
    /// For messages.
    pub(super) name: String,
    /// None for standard input.
    pub(super) path: Option<PathBuf>,
    /// What its name says that it is.
    pub(super) format: Option<Format>,
    /// None for what has no length, as a pipe.
    pub(super) num_bytes: Option<u64>,
}

/// How documents stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Divided by lines `<|endoftext|>`.
    Text,
    /// One JSON object a line; or all of them in an array, if it begins with one.
    JsonLines,
    /// One row a document.
    Parquet,
}

impl Sources {
    pub(super) fn find(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut sources = Self { files: Vec::new(), skipped: Vec::new() };
        for path in paths {
            sources.add(path)?;
            if sources.files.len() > MAX_FILES {
                bail!("{} has over {MAX_FILES} files", path.display());
            }
        }
        Ok(sources)
    }

    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        if path == Path::new(STDIN) {
            if self.files.iter().any(|source| source.path.is_none()) {
                bail!("standard input is asked for twice");
            }
            self.files.push(Source {
                name: "standard input".to_owned(),
                path: None,
                format: None,
                num_bytes: None,
            });
            return Ok(());
        }
        let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
        if !metadata.is_dir() {
            self.files.push(Source::file(path.to_owned(), &metadata));
            return Ok(());
        }
        let num_before = self.files.len();
        self.add_folder(path)?;
        if self.files.len() == num_before {
            bail!(
                "{}: no file with text in this folder (known are .txt, .text, .md, .jsonl, .ndjson and .parquet, and .gz \
                 and .zst of all but the last)",
                path.display()
            );
        }
        Ok(())
    }

    /// All files of known kinds in and below the folder. Links to folders are not followed, for they may lead in circles.
    fn add_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        let mut open = vec![folder.to_owned()];
        let mut found = Vec::new();
        while let Some(folder) = open.pop() {
            let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
            for entry in entries {
                let entry = entry.with_context(|| folder.display().to_string())?;
                let path = entry.path();
                let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let file = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
                match file {
                    _ if is_hidden => self.skipped.push(path),
                    _ if is_folder => open.push(path),
                    Some(metadata) if Format::is_known(&path) => found.push((path, metadata)),
                    _ => self.skipped.push(path),
                }
                if found.len() + self.skipped.len() > MAX_FILES {
                    bail!("{} has over {MAX_FILES} files", folder.display());
                }
            }
        }
        // The order of a folder's entries is the file system's whim, and the result must not depend on it.
        found.sort_by(|(left, _), (right, _)| left.cmp(right));
        self.files.extend(found.into_iter().map(|(path, metadata)| Source::file(path, &metadata)));
        Ok(())
    }

    pub(super) fn skipped(&self) -> Option<String> {
        let num = self.skipped.len();
        let mut named: Vec<_> = self.skipped.iter().map(|path| path.display().to_string()).collect();
        named.sort_unstable();
        named.truncate(MAX_NAMED);
        match num {
            0 => None,
            1..=MAX_NAMED => Some(format!("skipped as not known to be text: {}", named.join(", "))),
            _ => Some(format!("skipped {num} files not known to be text: {}, …", named.join(", "))),
        }
    }
}

impl Source {
    fn file(path: PathBuf, metadata: &fs::Metadata) -> Self {
        Self {
            name: path.display().to_string(),
            format: Format::of(&path),
            num_bytes: metadata.is_file().then_some(metadata.len()),
            path: Some(path),
        }
    }
}

impl Format {
    /// What a file's name says, compressed or not.
    fn of(path: &Path) -> Option<Self> {
        match extension(path)?.as_str() {
            "txt" | "text" | "md" => Some(Self::Text),
            "jsonl" | "ndjson" | JSON => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    /// Whether a file that a folder has is read. One called .json may be anything, a program's settings for one.
    fn is_known(path: &Path) -> bool {
        Self::of(path).is_some() && extension(path).is_none_or(|extension| extension != JSON)
    }
}

/// What a file's name ends in, before the end that a compressed one has.
fn extension(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    Some(name.rsplit_once('.')?.1.to_owned())
}
