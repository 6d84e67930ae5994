//! `fused vocab`: work with patch vocabularies.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use fused_checkpoint::Wanted;
use fused_vocabulary::build::{BuildRequest, build};

use crate::cli::{Vocab, VocabBuild};
use crate::{model, process, vocab_import};

/// The builder holds a corpus in memory.
const MAX_CORPUS_BYTES: u64 = 2 << 30;

pub(crate) fn run(command: &Vocab) -> anyhow::Result<()> {
    match command {
        Vocab::Build(request) => run_build(request),
        Vocab::Import(request) => vocab_import::run(request),
    }
}

fn run_build(command: &VocabBuild) -> anyhow::Result<()> {
    let files = model::files(command.model.as_deref(), Wanted::NoWeights)?;
    let tokenizer = model::tokenizer_json(&files)?;
    let mut corpus = Vec::with_capacity(command.corpus.len());
    for path in &command.corpus {
        corpus.push(read_corpus(path).with_context(|| format!("--corpus {}", path.display()))?);
    }
    let request = BuildRequest { tokenizer_json: &tokenizer, corpus: &corpus, add: command.add };
    let (patch, report) = build(&request).context("no patch vocabulary with this --add and --corpus")?;
    if !command.out.symlink_metadata().map_or(true, |metadata| metadata.is_file()) {
        bail!("--out {} is there and is no plain file: name another", command.out.display());
    }
    // Written beside its place and renamed, so that nobody ever reads half a vocabulary.
    let folder = command.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let readable = std::fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new()
        .permissions(readable)
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write {}", command.out.display()))?;
    file.write_all(patch.to_json().as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&command.out).with_context(|| format!("cannot write {}", command.out.display()))?;
    process::print(&format!("{report}\nwrote {}", command.out.display()))
}

/// A corpus file, as text.
fn read_corpus(path: &Path) -> anyhow::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_CORPUS_BYTES {
        bail!("must be a plain file of at most {MAX_CORPUS_BYTES} bytes");
    }
    String::from_utf8(std::fs::read(path)?)
        .map_err(|error| anyhow::anyhow!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}
