use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use crate::hub::Hub;
use crate::{Error, Result};

/// The largest file that is read into memory; weights are mapped and may be of any size.
const MAX_READ_BYTES: u64 = 256 << 20;

/// File names that are looked at where a directory is no model, to say what it is.
const MAX_NAMES: usize = 4096;
/// The folder of a model's chat templates for other purposes than the usual one, each called as its file.
pub const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// The most files of a folder that are read.
pub(crate) const MAX_FOLDER_FILES: usize = 64;

/// The files of one model: a directory, or carried in the binary.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    name: String,
    source: Source,
}

/// Which files of a model are downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All there are.
    Everything,
    /// All but the weights: a tokenizer needs none.
    NoWeights,
}

#[derive(Clone)]
enum Source {
    Directory(PathBuf),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl ModelFiles {
    /// A model's directory; its last component is the model's name.
    ///
    /// # Errors
    /// It is not a directory, or cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        // `.` and `models/x/..` have no last component, and a relative path's name may mislead.
        let absolute = fs::canonicalize(dir);
        let name = match &absolute {
            Ok(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            Err(_) => None,
        };
        Self::named(name.unwrap_or_else(|| dir.display().to_string()), dir.to_owned())
    }

    /// A directory under another name, such as the hub id it was downloaded for.
    pub(crate) fn named(name: String, dir: PathBuf) -> Result<Self> {
        let found = fs::metadata(&dir).and_then(|metadata| {
            if metadata.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
        });
        match found {
            Ok(()) => Ok(Self { name, source: Source::Directory(dir) }),
            Err(source) => Err(Error::Read { model: name, file: dir.display().to_string(), source }),
        }
    }

    /// Files carried in the binary, as pairs of plain name and content.
    #[must_use]
    pub fn embedded(name: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { name: name.to_owned(), source: Source::Embedded(files) }
    }

    /// An existing directory, or else a hub id `[org/]name[@revision]`, of which what is `wanted` is downloaded as
    /// HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE say. Blocks while it downloads.
    ///
    /// # Errors
    /// Neither, or the download failed.
    pub fn resolve(model: &str, wanted: Wanted) -> Result<Self> {
        let dir = Path::new(model);
        if dir.is_dir() { Self::open(dir) } else { Hub::from_env()?.download(model, wanted) }
    }

    /// The name to serve the model under: the directory's, the hub id, or the one it was embedded with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content of a file, nothing where there is none.
    ///
    /// # Errors
    /// The name is not plain (`..`, a path), or the file is there and cannot be read.
    pub fn read(&self, file_name: &str) -> Result<Option<FileBytes>> {
        plain_name(&self.name, file_name)?;
        match &self.source {
            Source::Embedded(files) => {
                let file = files.iter().find(|(name, _)| *name == file_name);
                Ok(file.map(|(_, bytes)| FileBytes(Bytes::Static(bytes))))
            }
            Source::Directory(dir) => match FileBytes::open(&dir.join(file_name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => {
                    Err(Error::Read { model: self.name.clone(), file: file_name.to_owned(), source })
                }
            },
        }
    }

    /// The names of the files, as far as they are known; of a directory of very many not all.
    pub(crate) fn names(&self) -> Vec<String> {
        match &self.source {
            Source::Embedded(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Source::Directory(dir) => {
                let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_NAMES);
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
        }
    }

    /// The files of a folder whose names have an extension, by what stands before it; nothing where there is no folder.
    ///
    /// # Errors
    /// The folder's name is not plain, it has too many files, or one cannot be read.
    pub fn read_folder(&self, folder: &str, extension: &str) -> Result<Vec<(String, FileBytes)>> {
        plain_name(&self.name, folder)?;
        let Source::Directory(dir) = &self.source else { return Ok(Vec::new()) };
        let error = |source| Error::Read { model: self.name.clone(), file: folder.to_owned(), source };
        let entries = match fs::read_dir(dir.join(folder)) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(error(source)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(error)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let Some(stem) = stem.filter(|_| path.extension().is_some_and(|other| other == extension)) else {
                continue;
            };
            if files.len() == MAX_FOLDER_FILES {
                let problem = format!("over {MAX_FOLDER_FILES} files");
                return Err(error(io::Error::new(io::ErrorKind::QuotaExceeded, problem)));
            }
            files.push((stem.to_owned(), FileBytes::open(&path).map_err(error)?));
        }
        Ok(files)
    }

    /// The content of a file that the model cannot do without.
    pub(crate) fn require(&self, file_name: &str) -> Result<FileBytes> {
        self.read(file_name)?
            .ok_or_else(|| Error::MissingFile { model: self.name.clone(), file: file_name.to_owned() })
    }
}

/// The bytes of one file of a model.
pub struct FileBytes(Bytes);

enum Bytes {
    Mapped(Mmap),
    Read(Vec<u8>),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Maps weights, which may be larger than memory and are shared with other processes through the page cache;
    /// everything else is small and read, so that a change of the file on disk does not reach us.
    fn open(path: &Path) -> io::Result<Self> {
        // Asked before opening: opening a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Ok(Self(Bytes::Mapped(map(&file)?)));
        }
        let mut bytes = Vec::new();
        file.take(MAX_READ_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_READ_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {MAX_READ_BYTES} bytes")));
        }
        Ok(Self(Bytes::Read(bytes)))
    }

    /// Gives back the resident memory of a range that will not be read again soon. Advice only: where the system does
    /// not take it, more memory stays in use and nothing else changes.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.0 {
            let _ = release(map, range);
        }
    }
}

#[expect(unsafe_code, reason = "a process that reads a model once must not keep all of it resident")]
fn release(map: &Mmap, range: Range<usize>) -> io::Result<()> {
    // SAFETY: MADV_DONTNEED loses what was written to private pages. This mapping is read-only, so there is nothing to
    // lose: a page that is touched again is read from the file again, with the same bytes as far as `map` demands that
    // the file does not change. It covers whole pages around the range, for which the same holds.
    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
}

#[expect(unsafe_code, reason = "a mapping is how tens of gigabytes of weights are read without a copy")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and only ever read as bytes, for which every pattern is valid. The one demand
    // that cannot be proved is that no other process changes the file meanwhile. A writer in place would change weights
    // under us: wrong output, never a wild access, for offsets were checked against the mapping's length, which stays.
    // A truncation ends this process with SIGBUS at the next touch of a page past the new end. Downloads, and every
    // sane publisher, replace a model file by renaming a new one over it, which leaves this mapping on the old one.
    unsafe { Mmap::map(file) }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Read(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileBytes({} bytes)", self.len())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => f.debug_tuple("Directory").field(dir).finish(),
            Self::Embedded(files) => write!(f, "Embedded({} files)", files.len()),
        }
    }
}

/// Refuses names that lead out of the model's directory: an index file is outside data.
pub(crate) fn plain_name(model: &str, file: &str) -> Result<()> {
    let plain = !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\\', '\0']);
    if plain {
        return Ok(());
    }
    Err(Error::FileName { model: model.to_owned(), file: file.escape_default().to_string() })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const EMBEDDED: &[(&str, &[u8])] = &[("config.json", b"{}")];

    #[test]
    fn a_directory_and_the_binary_give_the_same() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join("model.safetensors"), "weights").unwrap();
        let opened = ModelFiles::resolve(dir.path().to_str().unwrap(), Wanted::Everything).unwrap();
        assert_eq!(opened.name(), dir.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(opened.read("model.safetensors").unwrap().unwrap()[..], *b"weights");
        for files in [opened, ModelFiles::embedded("demo", EMBEDDED)] {
            assert_eq!(files.read("config.json").unwrap().unwrap()[..], *b"{}");
            assert!(files.read("tokenizer.json").unwrap().is_none());
            assert!(matches!(files.require("tokenizer.json"), Err(Error::MissingFile { .. })));
        }
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        let files = ModelFiles::open(&model).unwrap();
        for name in ["../secret", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "a\0b"] {
            assert!(matches!(files.read(name), Err(Error::FileName { .. })), "{name:?}");
        }
    }

    #[test]
    fn what_is_not_a_file_or_not_a_directory_is_refused() {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("config.json")).unwrap();
        let error = ModelFiles::open(dir.path()).unwrap().read("config.json").unwrap_err();
        assert!(error.to_string().ends_with("cannot read config.json"), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(ModelFiles::open(&file).is_err());
        assert!(ModelFiles::open(&dir.path().join("nothing")).is_err());
        let error = ModelFiles::resolve("no such model", Wanted::Everything).unwrap_err();
        assert!(matches!(error, Error::NotAModel { .. }), "{error}");
    }

    #[test]
    fn an_empty_weights_file_is_read_as_empty() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("model.safetensors"), "").unwrap();
        let files = ModelFiles::open(dir.path()).unwrap();
        assert_eq!(files.read("model.safetensors").unwrap().unwrap().len(), 0);
    }

    #[test]
    fn a_file_too_large_to_be_read_is_refused() {
        let dir = TempDir::new().unwrap();
        // Sparse: takes no room on the disk.
        File::create(dir.path().join("config.json")).unwrap().set_len(MAX_READ_BYTES + 1).unwrap();
        assert!(ModelFiles::open(dir.path()).unwrap().read("config.json").is_err());
    }
}
