//! `fused vocab`: work with patch vocabularies.

mod build;
mod encode;
mod import;
mod npy;
mod output;
mod progress;
mod report;
mod token_table;

use anyhow::Context;

use crate::cli::Vocab;

pub(crate) fn run(command: &Vocab) -> anyhow::Result<()> {
    match command {
        Vocab::Build(request) => build::run(request),
        Vocab::Encode(request) => encode::run(request),
        Vocab::Import(request) => import::run(request),
        Vocab::Report(request) => report::run(request),
    }
}

/// Runs `work` on so many threads; on one a core where none are named.
fn on_threads<T: Send>(
    num: Option<usize>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num.unwrap_or(0)).build();
    pool.context("cannot start --threads")?.install(work)
}
