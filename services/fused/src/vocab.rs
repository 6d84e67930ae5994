//! `fused vocab`: work with patch vocabularies.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use anyhow::Context;
use fused_checkpoint::Wanted;
use fused_vocabulary::build::{BuildRequest, build};

use crate::cli::{Vocab, VocabBuild};
use crate::{model, process};

const TOKENIZER_FILE: &str = "tokenizer.json";

pub(crate) fn run(command: &Vocab) -> anyhow::Result<()> {
    match command {
        Vocab::Build(request) => run_build(request),
    }
}

fn run_build(command: &VocabBuild) -> anyhow::Result<()> {
    let files = model::files(command.model.as_deref(), Wanted::NoWeights)?;
    let tokenizer = files
        .read(TOKENIZER_FILE)?
        .with_context(|| format!("model `{}` has no {TOKENIZER_FILE}", files.name()))?;
    let mut corpus = Vec::with_capacity(command.corpus.len());
    for path in &command.corpus {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("corpus file {}", path.display()))?;
        corpus.push(text);
    }
    let (patch, report) =
        build(&BuildRequest { tokenizer_json: &tokenizer, corpus: &corpus, add: command.add })?;
    // Written beside its place and renamed, so that nobody ever reads half a vocabulary.
    let folder = command.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let readable = std::fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new()
        .permissions(readable)
        .tempfile_in(folder.unwrap_or(std::path::Path::new(".")))
        .with_context(|| format!("cannot write {}", command.out.display()))?;
    file.write_all(patch.to_json().as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&command.out).with_context(|| format!("cannot write {}", command.out.display()))?;
    process::print(&format!("{report}\nwrote {}", command.out.display()))
}
