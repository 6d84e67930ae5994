//! `fused vocab import`: makes a patch vocabulary of what AdaptiVocab's own code wrote.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use fused_checkpoint::Wanted;
use fused_vocabulary::import::{Imported, TokenizerSource, import};

use crate::cli::VocabImport;
use crate::reference_files::ReferenceFiles;
use crate::{model, process};

pub(crate) fn run(command: &VocabImport) -> anyhow::Result<()> {
    let files = ReferenceFiles::read(&command.artefacts)?;
    let tokenizer = command
        .model
        .as_deref()
        .map(|model| model::tokenizer_json(&model::files(Some(model), Wanted::NoWeights)?))
        .transpose()?;
    let Imported { patch, tokenizer_json, report } = import(&files.artefacts(), tokenizer.as_deref())
        .with_context(|| command.artefacts.display().to_string())?;
    for out in [Some(&command.out), command.tokenizer_out.as_ref()].into_iter().flatten() {
        if !out.symlink_metadata().map_or(true, |metadata| metadata.is_file()) {
            bail!("{} is there and is no plain file: name another", out.display());
        }
    }
    write(&command.out, patch.to_json().as_bytes())?;
    let mut text = format!("{report}\nwrote {}", command.out.display());
    match &command.tokenizer_out {
        Some(out) => {
            write(out, &tokenizer_json)?;
            text.push_str(&format!("\nwrote {}", out.display()));
        }
        None if report.tokenizer == TokenizerSource::Pickle => {
            text.push_str("\nto have that tokenizer.json, name a file with --tokenizer-out");
        }
        None => {}
    }
    process::print(&text)
}

/// Written beside its place and renamed, so that nobody ever reads half a file.
fn write(out: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let readable = std::fs::Permissions::from_mode(0o644);
    let write = || {
        let mut file =
            tempfile::Builder::new().permissions(readable).tempfile_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(out)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("cannot write {}", out.display()))
}
