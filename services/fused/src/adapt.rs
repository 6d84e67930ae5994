//! `fused adapt`: writes a model directory adapted to a patch vocabulary.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fused_adaptation::AdaptedModel;
use fused_checkpoint::{Checkpoint, Wanted};
use fused_vocabulary::embedding::Initialisation;
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use crate::cli::{Adapt, Init};
use crate::interrupt::Interrupt;
use crate::{model, process};

pub(crate) fn run(command: &Adapt) -> anyhow::Result<()> {
    let interrupt = Interrupt::listen()?;
    // Looked at before a model is downloaded or read for nothing.
    let directory = NewDirectory::create(&command.out, &interrupt)?;
    let files = model::files(command.model.as_deref(), Wanted::Everything)?;
    let patch = model::patch(command.patch_vocabulary.as_deref(), &files)?.with_context(|| {
        format!("model `{}` has no patch vocabulary: name one with --patch-vocabulary", files.name())
    })?;
    let initialisation = match command.init {
        Init::Exponential => Initialisation::Exponential,
        Init::Mean => Initialisation::Mean,
    };
    let checkpoint = Checkpoint::open(&files)?;
    let adapted = AdaptedModel::plan(&files, &checkpoint, &patch, initialisation, command.max_shard_bytes)?;
    let bar = bar(adapted.num_bytes());
    let written = adapted.write(directory.path(), &mut |bytes| {
        bar.inc(bytes);
        !interrupt.is_told()
    });
    bar.finish_and_clear();
    written?;
    directory.persist()?;
    process::print(&format!(
        "{} tokens: {} base tokens, {} removed, {} n-tokens added\nwrote {}: {} bytes of tensors in {} {}",
        patch.vocab_size(),
        patch.base_vocab_size(),
        patch.removed().len(),
        patch.n_tokens().len(),
        command.out.display(),
        adapted.num_bytes(),
        adapted.num_shards(),
        if adapted.num_shards() == 1 { "file" } else { "files" },
    ))
}

/// On a terminal only.
fn bar(num_bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(num_bytes);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// A directory that appears under its name whole or not at all: filled beside its place, then renamed. Dropped before
/// that, it is gone.
struct NewDirectory<'a> {
    temporary: TempDir,
    out: PathBuf,
    parent: PathBuf,
    interrupt: &'a Interrupt,
}

impl<'a> NewDirectory<'a> {
    fn create(out: &Path, interrupt: &'a Interrupt) -> anyhow::Result<Self> {
        let refused = || format!("cannot write --out {}", out.display());
        match fs::symlink_metadata(out) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(refused),
            Ok(metadata)
                if metadata.is_dir() && fs::read_dir(out).with_context(refused)?.next().is_none() => {}
            Ok(_) => bail!("--out {} is there and is no empty directory: name another", out.display()),
        }
        let Some(name) = out.file_name() else {
            bail!("--out {} does not end with a name to create", out.display());
        };
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let prefix = format!(".{}.", name.to_string_lossy());
        // As a directory made by `mkdir` would be: others may serve what one has adapted.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(readable)
            .tempdir_in(parent)
            .with_context(refused)?;
        interrupt.remove_at_exit(Some(temporary.path().to_owned()));
        Ok(Self { temporary, out: out.to_owned(), parent: parent.to_owned(), interrupt })
    }

    fn path(&self) -> &Path {
        self.temporary.path()
    }

    fn persist(self) -> anyhow::Result<()> {
        // Replaces an empty directory, and nothing else.
        let renamed = fs::rename(self.temporary.path(), &self.out);
        renamed.with_context(|| format!("cannot write --out {}", self.out.display()))?;
        // It has its name: there is nothing left to remove.
        self.interrupt.remove_at_exit(None);
        let _ = self.temporary.keep();
        let synced = fs::File::open(&self.parent).and_then(|parent| parent.sync_all());
        synced.with_context(|| format!("cannot write --out {}", self.out.display()))
    }
}
