//! Small files that a tool writes at its end, whole or not at all.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::NamedTempFile;

pub(crate) struct WholeFile<'a> {
    path: &'a Path,
    content: Vec<u8>,
}

impl<'a> WholeFile<'a> {
    pub(crate) fn new(path: &'a Path, content: Vec<u8>) -> Self {
        Self { path, content }
    }
}

/// Refuses outputs that would replace an input, each other, or something that is no plain file, before any work is done.
pub(crate) fn check(
    outputs: &[Option<&PathBuf>],
    inputs: impl Iterator<Item = PathBuf>,
) -> anyhow::Result<()> {
    // A path that is not there yet cannot be an input, but two outputs may spell it alike.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut taken: Vec<PathBuf> = inputs.map(|path| real(&path)).collect();
    for path in outputs.iter().flatten() {
        ensure!(
            path.symlink_metadata().map_or(true, |metadata| metadata.is_file()),
            "{} is there and is no plain file: name another",
            path.display()
        );
        let real = real(path);
        ensure!(!taken.contains(&real), "{} is named twice: it would be overwritten", path.display());
        taken.push(real);
    }
    Ok(())
}

/// Writes all of them beside their places, then renames: nobody ever reads half a file, and a full disk leaves none.
pub(crate) fn write(outputs: &[WholeFile<'_>]) -> anyhow::Result<()> {
    let mut written = Vec::with_capacity(outputs.len());
    for output in outputs {
        let name = || format!("cannot write {}", output.path.display());
        written.push((output.path, write_beside(output).with_context(name)?));
    }
    for (path, file) in written {
        file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn write_beside(output: &WholeFile<'_>) -> anyhow::Result<NamedTempFile> {
    let readable = std::fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(folder(output.path))?;
    file.write_all(&output.content)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder of a file.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
