use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::error::HubError;
use super::id::HubId;

/// How often a lock that another process holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

type Result<T> = std::result::Result<T, HubError>;

/// One model's part of the local cache, laid out as every Hugging Face client does: `blobs/ETAG` has a file's bytes,
/// `snapshots/COMMIT/NAME` links to it, `refs/REVISION` says which commit a branch or tag is.
pub(super) struct ModelCache {
    root: PathBuf,
    locks: PathBuf,
}

/// The right to write one blob; ends with the process at the latest.
pub(super) struct BlobLock {
    _file: File,
}

impl ModelCache {
    pub(super) fn new(cache_dir: &Path, id: &HubId) -> Self {
        Self { root: cache_dir.join(id.folder()), locks: cache_dir.join(".locks").join(id.folder()) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where a blob is while it is downloaded; what is there is gone on with.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The directory of a cached model, by its branch or tag, or by the commit itself.
    pub(super) fn find(&self, revision: &str) -> Option<PathBuf> {
        let noted = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commits = [noted.as_deref().map(str::trim), Some(revision)];
        let commits = commits.into_iter().flatten().filter(|commit| is_commit(commit));
        commits.map(|commit| self.snapshot(commit)).find(|dir| dir.join("config.json").exists())
    }

    /// Notes which commit a branch or tag is.
    pub(super) fn note(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.root.join("refs").join(revision);
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        // Renamed, so that nobody reads half a commit.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, commit)?;
        fs::rename(&new, &path)
    }

    /// Takes the lock of a blob. While another process has it, this waits as long as the file there grows, and
    /// `patience` from then on.
    pub(super) fn lock(&self, etag: &str, patience: Duration) -> Result<BlobLock> {
        let path = self.locks.join(format!("{etag}.lock"));
        let failed = |source| HubError::Cache { path: path.clone(), source };
        fs::create_dir_all(&self.locks).map_err(failed)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let size = || fs::metadata(self.incomplete(etag)).map_or(0, |metadata| metadata.len());
        let (mut last, mut since, mut is_told) = (size(), Instant::now(), false);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(BlobLock { _file: file }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !is_told {
                tracing::info!(lock = %path.display(), "another process downloads this file; waiting for it");
                is_told = true;
            }
            let now = size();
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() >= patience {
                return Err(HubError::Busy { lock: path, patience });
            }
            thread::park_timeout(LOCK_PAUSE);
        }
    }

    /// Gives a complete blob its name in a snapshot, in a folder of it where the name has one.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let failed = |source| HubError::Cache { path: path.clone(), source };
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let blob = Path::new(&up).join("blobs").join(etag);
        let linked = match symlink(&blob, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link to a blob that is gone: `exists` follows it.
                if path.exists() {
                    return Ok(());
                }
                fs::remove_file(&path).map_err(failed)?;
                symlink(&blob, &path)
            }
            linked => linked,
        };
        // Some file systems have no links: the file is there itself, then.
        linked.or_else(|_| fs::rename(self.blob(etag), &path)).map_err(failed)
    }
}

/// A commit's hash, as git writes it.
pub(super) fn is_commit(commit: &str) -> bool {
    matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
