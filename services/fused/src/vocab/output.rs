use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use crate::interrupt::Interrupt;
use crate::whole_files::folder;

/// A file that a tool writes: beside its place under another name, and renamed once it is whole, so that nobody ever
/// reads half of it. Dropped unfinished, nothing is left of it.
pub(super) struct Output<'a> {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    interrupt: &'a Interrupt,
}

impl<'a> Output<'a> {
    /// Creates it, so that a place where nothing can be written is found out before the work.
    pub(super) fn create(path: &Path, interrupt: &'a Interrupt) -> anyhow::Result<Self> {
        if !path.symlink_metadata().map_or(true, |metadata| metadata.is_file()) {
            bail!("--out {} is there and is no plain file: name another", path.display());
        }
        let file = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(folder(path))
            .with_context(|| format!("--out {}: cannot write there", path.display()))?;
        interrupt.remove_at_exit(Some(file.path().to_owned()));
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path: path.to_owned(), interrupt })
    }

    /// Makes it the file that was asked for.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Self { file, path, interrupt } = self;
        let written = || format!("--out {}: cannot be written", path.display());
        let file = file.into_inner().map_err(io::IntoInnerError::into_error).with_context(written)?;
        file.as_file().sync_all().with_context(written)?;
        file.persist(&path).with_context(written)?;
        interrupt.remove_at_exit(None);
        Ok(())
    }

    /// Writes over what stands at the beginning.
    pub(super) fn write_at_start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(bytes)
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
