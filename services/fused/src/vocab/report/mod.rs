//! `fused vocab report`: one self-contained HTML page about what a patch vocabulary does to a held-out text. The figures
//! come from `fused_vocabulary::report`; here they become a page.

mod page;
mod visible;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fused_checkpoint::{ModelFiles, Wanted};
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::report::{Comparison, Report};

use crate::cli::VocabReport;
use crate::corpus::Corpus;
use crate::page::figures::{change, number};
use crate::whole_files::{self, WholeFile};
use crate::{model, process};
use page::Page;

pub(crate) fn run(command: &VocabReport) -> anyhow::Result<()> {
    let (model, report) = measure(command)?;
    let page =
        Page { model: &model, texts: &text_names(&command.text), made_at: &made_at(), report: &report };
    let mut outputs = vec![WholeFile::new(&command.out, page.to_html()?.into_bytes())];
    if let Some(path) = &command.json {
        outputs.push(WholeFile::new(path, serde_json::to_vec_pretty(&report)?));
    }
    whole_files::write(&outputs)?;
    process::print(&summary(command, &report))
}

/// The model's name and what was measured. Whatever fails here is the input's fault.
fn measure(command: &VocabReport) -> anyhow::Result<(String, Report)> {
    let inputs = command.text.iter().cloned().chain(command.patch_vocabulary.as_deref().map(PathBuf::from));
    whole_files::check(&[Some(&command.out), command.json.as_ref()], inputs)?;
    let files = model::files(command.model.as_deref(), Wanted::NoWeights)?;
    let comparison = Comparison::load(&fused_adaptation::tokenizer_json(&files)?, patch(command, &files)?)?;
    let documents = Corpus::open(&command.text, command.field.as_deref()).context("--text")?.into_documents();
    let report = comparison.measure(documents, command.example).context("--text")?;
    ensure!(report.num_base_tokens > 0, "--text: there is no document in it");
    if let (Some(number), None) = (command.example, &report.example) {
        anyhow::bail!("--example {number}: the text has only {} documents", report.num_documents);
    }
    Ok((files.name().to_owned(), report))
}

fn patch(command: &VocabReport, files: &ModelFiles) -> anyhow::Result<PatchVocabulary> {
    let patch = model::patch(command.patch_vocabulary.as_deref(), files)?;
    patch.with_context(|| {
        format!("model `{}` has no patch vocabulary: name one with --patch-vocabulary", files.name())
    })
}

/// Names without their folders, which are nobody's business who reads the page; with the last one where names repeat.
fn text_names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let is_repeated = |path: &Path| paths.iter().filter(|other| name(other) == name(path)).count() > 1;
    let folder = |path: &Path| path.parent()?.file_name().map(|name| name.to_string_lossy().into_owned());
    paths
        .iter()
        .map(|path| match folder(path) {
            Some(folder) if is_repeated(path) => format!("{folder}/{}", name(path)),
            _ => name(path),
        })
        .collect()
}

fn made_at() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn summary(command: &VocabReport, report: &Report) -> String {
    let mut summary = format!(
        "{} documents: {} base tokens, {} tokens ({})\nwrote {}",
        number(report.num_documents),
        number(report.num_base_tokens),
        number(report.num_tokens),
        change(report.saved_share),
        command.out.display(),
    );
    if let Some(path) = &command.json {
        summary.push_str(&format!("\nwrote {}", path.display()));
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_folders_only_where_names_repeat() {
        let names = |paths: &[&str]| text_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["/data/a/held.txt", "b.txt"]), ["held.txt", "b.txt"]);
        let repeated = names(&["/data/a/held.txt", "/data/b/held.txt", "held.txt"]);
        assert_eq!(repeated, ["a/held.txt", "b/held.txt", "held.txt"]);
    }
}
