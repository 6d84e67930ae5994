//! Machine code kept from one start to the next.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fused_gpu::CompilerVersion;
use sha2::{Digest as _, Sha256};

/// Bytes of a kept file at most; a larger one is not ours.
const MAX_BYTES: u64 = 64 << 20;
/// The code's SHA-256, which stands before it.
const DIGEST_BYTES: usize = 32;

/// A folder of compiled kernels: `$XDG_CACHE_HOME/fused/kernels`, or `~/.cache/fused/kernels`.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// What machine code depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
    pub(super) architecture: &'a str,
    pub(super) version: CompilerVersion,
}

impl Cache {
    /// The user's; `None` where there is no home.
    pub(super) fn find() -> Option<Self> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(Self { folder: base.join("fused").join("kernels") })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was kept. `None` where there is nothing, or not what was written.
    pub(super) fn read(&self, key: &Key<'_>) -> Option<Vec<u8>> {
        let path = self.path(key);
        if fs::metadata(&path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let bytes = fs::read(path).ok()?;
        let (digest, image) = bytes.split_at_checked(DIGEST_BYTES)?;
        (!image.is_empty() && Sha256::digest(image).as_slice() == digest).then(|| image.to_vec())
    }

    /// Keeps machine code: whole or not at all, also when several processes start at once.
    pub(super) fn write(&self, key: &Key<'_>, image: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(key);
        let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
        let bytes = [Sha256::digest(image).as_slice(), image].concat();
        let written = fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    fn path(&self, key: &Key<'_>) -> PathBuf {
        let digest = Sha256::digest(key.text.as_bytes());
        let source: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let stem = key.file.trim_end_matches(".cu");
        self.folder.join(format!("{stem}-{source}-{}-nvrtc{}.cubin", key.architecture, key.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: folder.path().join("deep").join("kernels") };
        let version = CompilerVersion { major: 13, minor: 0 };
        let key = Key { file: "rows.cu", text: "one", architecture: "sm_90a", version };
        assert_eq!(cache.read(&key), None);
        cache.write(&key, b"code").unwrap();
        assert_eq!(cache.read(&key).unwrap(), b"code");
        cache.write(&key, b"other code").unwrap();
        assert_eq!(cache.read(&key).unwrap(), b"other code");
        assert_eq!(fs::read_dir(cache.folder()).unwrap().count(), 1, "nothing unfinished is left");

        for other in [
            Key { text: "two", ..key },
            Key { architecture: "sm_80", ..key },
            Key { version: CompilerVersion { major: 13, minor: 1 }, ..key },
            Key { file: "attention.cu", ..key },
        ] {
            assert_eq!(cache.read(&other), None, "{other:?}");
        }
        for damage in [&b""[..], b"short", &[0; DIGEST_BYTES], &[7; 100]] {
            fs::write(cache.path(&key), damage).unwrap();
            assert_eq!(cache.read(&key), None);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache { folder: file.path().join("kernels") };
        let version = CompilerVersion { major: 13, minor: 0 };
        assert!(
            cache.write(&Key { file: "rows.cu", text: "", architecture: "sm_80", version }, b"code").is_err()
        );
    }
}
