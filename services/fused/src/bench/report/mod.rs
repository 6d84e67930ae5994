//! What is said of runs: a table for the terminal, JSON with everything, a page with plots.

mod page;
mod series;
mod table;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::arguments::OutputArgs;
use super::run::{Request, Run};
use super::summary::Summary;
use super::workload::Description;
use crate::process;
use crate::whole_files::{self, WholeFile};
use series::{Distributions, Series};

pub(super) use table::time;

/// What was run.
pub(super) struct About {
    pub(super) command: &'static str,
    /// Engine or server.
    pub(super) what: String,
    pub(super) workload: Description,
    /// What else is worth keeping.
    pub(super) details: Value,
}

/// Everything of one run.
#[derive(Serialize)]
struct Report<'a> {
    summary: Summary,
    distributions: Distributions,
    /// None of a server.
    series: Option<Series>,
    requests: &'a [Request],
}

/// Refuses outputs that would replace an input or each other, before any work is done.
pub(super) fn check(output: &OutputArgs, inputs: impl Iterator<Item = PathBuf>) -> anyhow::Result<()> {
    whole_files::check(&[output.json.as_ref(), output.html.as_ref()], inputs)
}

/// Prints the table and writes the files that were asked for.
pub(super) fn write(about: &About, runs: &[Run], output: &OutputArgs) -> anyhow::Result<()> {
    let reports: Vec<_> = runs.iter().map(Report::new).collect();
    let mut files = Vec::new();
    if let Some(path) = &output.json {
        files.push(WholeFile::new(path, serde_json::to_vec(&json(about, &reports))?));
    }
    if let Some(path) = &output.html {
        files.push(WholeFile::new(path, page::to_html(about, &reports)?.into_bytes()));
    }
    whole_files::write(&files)?;
    let mut text = table::heading(about);
    text.push_str(&table::table(&reports));
    for path in [&output.json, &output.html].into_iter().flatten() {
        text.push_str(&format!("wrote {}\n", path.display()));
    }
    process::print(&text)
}

fn json<'a>(about: &'a About, reports: &'a [Report<'a>]) -> impl Serialize {
    #[derive(Serialize)]
    struct Json<'a> {
        command: &'a str,
        version: &'a str,
        what: &'a str,
        workload: &'a Description,
        details: &'a Value,
        runs: &'a [Report<'a>],
    }
    Json {
        command: about.command,
        version: env!("CARGO_PKG_VERSION"),
        what: &about.what,
        workload: &about.workload,
        details: &about.details,
        runs: reports,
    }
}

impl<'a> Report<'a> {
    fn new(run: &'a Run) -> Self {
        let summary = Summary::new(run);
        Self {
            distributions: Distributions::new(&summary),
            series: (!run.steps.is_empty()).then(|| Series::new(&run.steps)),
            summary,
            requests: &run.requests,
        }
    }
}
