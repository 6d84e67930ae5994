use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

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

/// A prompt in token ids of a demo model, without a pattern or an end in it; another `seed`, another prompt.
#[must_use]
pub fn token_ids(seed: usize, len: usize) -> Vec<usize> {
    (0..len).map(|idx| 1 + (seed * 7919 + idx * idx * 31 + idx * 17) % 8000).collect()
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

/// A file or folder, such as `corpora/tldr/heldout.txt`, of the data beside the repository (or of the folder that
/// `FUSED_TEST_DATA` names, unpacked); `None` where it is not there, after saying so.
#[must_use]
pub fn test_data(name: &str) -> Option<PathBuf> {
    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("FUSED_TEST_DATA").map(PathBuf::from).or_else(unpack));
    let path = FOLDER.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
    if path.is_none() {
        // Not by a macro: the test harness would swallow it, and a skipped test must be seen to be skipped.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no {name} (set FUSED_TEST_DATA)");
    }
    path
}

fn unpack() -> Option<PathBuf> {
    let script = repository().join("../shared/data/unpack.sh");
    let output = script.is_file().then(|| Command::new("bash").arg(script).output())?.ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim()))
}
