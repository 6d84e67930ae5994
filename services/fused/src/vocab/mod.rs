//! `fused vocab`: work with patch vocabularies.

mod build;
mod encode;
mod interrupt;
mod npy;
mod output;
mod progress;
mod report;
mod token_table;

use anyhow::Context;
use fused_checkpoint::ModelFiles;

use crate::cli::Vocab;

const TOKENIZER_FILE: &str = "tokenizer.json";

pub(crate) fn run(command: &Vocab) -> anyhow::Result<()> {
    match command {
        Vocab::Build(request) => build::run(request),
        Vocab::Encode(request) => encode::run(request),
        Vocab::Report(request) => report::run(request),
    }
}

/// The content of a model's `tokenizer.json`.
fn tokenizer_json(files: &ModelFiles) -> anyhow::Result<Vec<u8>> {
    let bytes = files.read(TOKENIZER_FILE)?;
    let bytes = bytes.with_context(|| format!("`{}` has no {TOKENIZER_FILE}", files.name()))?;
    Ok(bytes.to_vec())
}

/// Runs `work` on so many threads; on one a core where none are named.
fn on_threads<T: Send>(
    num: Option<usize>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num.unwrap_or(0)).build();
    pool.context("cannot start --threads")?.install(work)
}
