//! `fused vocab build`: a patch vocabulary from a corpus.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use fused_checkpoint::{ModelFiles, Wanted};
use fused_vocabulary::build::{BuildReport, BuildRequest, Lines, Selection, Words, build};
use fused_vocabulary::{Error, Mode, PatchVocabulary};

use super::on_threads;
use super::output::Output;
use super::progress::Progress;
use crate::cli::{ModeArg, SelectionArg, VocabBuild};
use crate::corpus::Corpus;
use crate::interrupt::Interrupt;
use crate::{model, process};

/// The largest `--keep` file.
const MAX_KEEP_BYTES: u64 = 16 << 20;

pub(super) fn run(command: &VocabBuild) -> anyhow::Result<()> {
    let start = Instant::now();
    let tokenizer_json = base_tokenizer(command)?;
    let keep = keep(&command.keep)?;
    let corpus = Corpus::open(&command.corpus.corpus, command.corpus.field.as_deref()).context("--corpus")?;
    let interrupt = Interrupt::listen()?;
    // Before the work, not after it, it is found out that the result can be written.
    let mut out = Output::create(&command.out, &interrupt)?;

    let mode = match command.mode {
        ModeArg::Replace => Mode::Replace,
        ModeArg::Extend => Mode::Extend,
    };
    let selection = match command.selection {
        SelectionArg::Exact => Selection::Exact,
        SelectionArg::Reference => Selection::Reference,
    };
    let request = BuildRequest {
        tokenizer_json: &tokenizer_json,
        add: command.add,
        remove: command.remove.unwrap_or(BuildRequest::default_remove(mode, command.add)),
        max_n: command.max_n.unwrap_or(BuildRequest::default_max_n(selection)),
        mode,
        words: if command.cross_words { Words::Cross } else { Words::Within },
        lines: if command.cross_lines { Lines::Cross } else { Lines::Within },
        selection,
        keep: &keep,
        scratch: &scratch(&command.out),
    };
    let (patch, report) = chosen(&request, command.remove, corpus, command.threads, &interrupt)?;
    out.write_all(patch.to_json().as_bytes()).with_context(|| format!("--out {}", command.out.display()))?;
    out.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let megabytes = report.num_bytes as f64 / 1e6;
    let fewer = match report.num_n_tokens {
        num if num == command.add => String::new(),
        num => {
            format!("\n{num} n-tokens, not {}: the reference leaves some removable tokens alone", command.add)
        }
    };
    process::print(&format!(
        "{report}; {megabytes:.1} MB in {seconds:.1} s ({:.2} MB/s){fewer}\nwrote {}",
        megabytes / seconds,
        command.out.display()
    ))
}

fn chosen(
    request: &BuildRequest<'_>,
    remove: Option<usize>,
    corpus: Corpus,
    threads: Option<usize>,
    interrupt: &Interrupt,
) -> anyhow::Result<(PatchVocabulary, BuildReport)> {
    let progress = Progress::new(&corpus, interrupt);
    let built = on_threads(threads, || Ok(build(request, corpus.into_documents(), &progress)?));
    progress.end();
    built.map_err(|error| match error.downcast_ref() {
        // The names of the fields are those of the flags.
        Some(Error::Request { field, problem }) => {
            anyhow::anyhow!("--{}: {problem}", field.replace('_', "-"))
        }
        Some(Error::NotReachable { what, .. }) => {
            let advice = match (*what, remove) {
                ("n-tokens", _) => "a lower --add, or more text",
                (_, Some(_)) => "a lower --remove",
                (_, None) => {
                    "a lower --add, as each n-token takes the place of a token that is removed; or --mode extend, or a --remove"
                }
            };
            error.context(format!("no patch vocabulary with this corpus: it takes {advice}"))
        }
        _ => error,
    })
}

/// The `tokenizer.json` of `--tokenizer`, else of the model.
fn base_tokenizer(command: &VocabBuild) -> anyhow::Result<Vec<u8>> {
    match command.tokenizer.as_deref() {
        None => {
            let files = model::files(command.model.as_deref(), Wanted::NoWeights)?;
            Ok(fused_adaptation::tokenizer_json(&files)?)
        }
        Some(path) if Path::new(path).is_file() => {
            std::fs::read(path).with_context(|| format!("--tokenizer {path}"))
        }
        Some(dir_or_id) => {
            let files = ModelFiles::resolve(dir_or_id, Wanted::NoWeights);
            let files = files.with_context(|| format!("--tokenizer {dir_or_id}"))?;
            Ok(fused_adaptation::tokenizer_json(&files)?)
        }
    }
}

/// Each a token, or a file with one a line.
fn keep(arguments: &[String]) -> anyhow::Result<Vec<String>> {
    let mut keep = Vec::new();
    for argument in arguments {
        let Ok(metadata) = std::fs::metadata(argument).and_then(|metadata| {
            if metadata.is_file() { Ok(metadata) } else { Err(std::io::ErrorKind::NotFound.into()) }
        }) else {
            keep.push(argument.clone());
            continue;
        };
        if metadata.len() > MAX_KEEP_BYTES {
            anyhow::bail!("--keep {argument} has over {MAX_KEEP_BYTES} bytes");
        }
        let text = std::fs::read_to_string(argument).with_context(|| format!("--keep {argument}"))?;
        keep.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
    }
    Ok(keep)
}

/// Where the encoded corpus is kept: `/tmp` may be memory, so it is the result's folder unless TMPDIR names one.
fn scratch(out: &Path) -> PathBuf {
    match std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => crate::whole_files::folder(out).to_owned(),
    }
}
