use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A model of the repository, such as `demo-llama`.
#[must_use]
pub fn model_dir(name: &str) -> PathBuf {
    repository().join("tests/models").join(name)
}

/// A golden file of the repository.
///
/// # Errors
/// It is not there or no JSON.
pub fn golden(name: &str) -> anyhow::Result<Value> {
    let path = repository().join("tests/golden").join(name);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// A corpus file, such as `tldr/heldout.txt`, of the data folder beside the repository (or the one that
/// `FUSED_TEST_DATA` names, unpacked); `None` where there is no such folder, after saying so.
#[must_use]
pub fn corpus(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FUSED_TEST_DATA").map(PathBuf::from).or_else(unpack);
    let path = folder.map(|folder| folder.join("corpora").join(name)).filter(|path| path.is_file());
    if path.is_none() {
        // Not by a macro: the test harness would swallow it, and a skipped test must be seen to be skipped.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no corpus {name} (set FUSED_TEST_DATA)");
    }
    path
}

fn unpack() -> Option<PathBuf> {
    let script = repository().join("../shared/data/unpack.sh");
    let output = script.is_file().then(|| Command::new("bash").arg(script).output())?.ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim()))
}
