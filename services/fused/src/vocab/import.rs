//! `fused vocab import`: makes a patch vocabulary of what AdaptiVocab's own code wrote.

use anyhow::Context;
use fused_checkpoint::Wanted;
use fused_vocabulary::import::{Imported, TokenizerSource, import};

use crate::cli::VocabImport;
use crate::reference_files::ReferenceFiles;
use crate::whole_files::{self, WholeFile};
use crate::{model, process};

pub(crate) fn run(command: &VocabImport) -> anyhow::Result<()> {
    let inputs = std::iter::once(command.artefacts.clone());
    whole_files::check(&[Some(&command.out), command.tokenizer_out.as_ref()], inputs)?;
    let files = ReferenceFiles::read(&command.artefacts)?;
    let tokenizer = command
        .model
        .as_deref()
        .map(|model| -> anyhow::Result<_> {
            Ok(fused_adaptation::tokenizer_json(&model::files(Some(model), Wanted::NoWeights)?)?)
        })
        .transpose()?;
    let Imported { patch, tokenizer_json, report } = import(&files.artefacts(), tokenizer.as_deref())
        .with_context(|| command.artefacts.display().to_string())?;
    let mut files = vec![WholeFile::new(&command.out, patch.to_json().into_bytes())];
    let mut text = format!("{report}\nwrote {}", command.out.display());
    match &command.tokenizer_out {
        Some(out) => {
            files.push(WholeFile::new(out, tokenizer_json.into_owned()));
            text.push_str(&format!("\nwrote {}", out.display()));
        }
        None if report.tokenizer == TokenizerSource::Pickle => {
            text.push_str("\nto have that tokenizer.json, name a file with --tokenizer-out");
        }
        None => {}
    }
    whole_files::write(&files)?;
    process::print(&text)
}
