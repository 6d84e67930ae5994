//! `fused bench simulate`, `capacity`, `replay` and `engine` as they are typed: the policies differ as they must, capacity
//! is found, reports are whole, and what is wrong is said.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod bad_input;
mod capacity;
mod engine;
mod files;
mod policies;
mod traces;

use std::fmt::Write;
use std::path::Path;

use fused_testkit::{Finished, run_to_end};
use serde_json::Value;

/// A small engine: the binary under test checks all of it after every step.
const SMALL: &str = "--max-num-sequences 8 --kv-cache-bytes 4294967296 --max-model-len 16384";

/// Runs `fused bench` with these words.
fn bench(words: &str) -> Finished {
    let words: Vec<_> = std::iter::once("bench").chain(words.split_whitespace()).collect();
    run_to_end(Path::new(env!("CARGO_BIN_EXE_fused")), &words, &[]).unwrap()
}

/// The same, which must succeed.
fn bench_well(words: &str) -> String {
    let finished = bench(words);
    assert!(finished.status.success(), "{words}: {}", finished.stderr);
    finished.stdout
}

/// Runs `fused bench simulate`, or another that writes JSON; returns that.
fn json(words: &str) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    bench_well(&format!("{words} --json {}", file.path().display()));
    serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap()
}

/// Short prompts with long answers, and now and then a long prompt.
fn mixed_trace() -> tempfile::NamedTempFile {
    let mut text = "arrived_at,num_prefill_tokens,num_decode_tokens\n".to_owned();
    for idx in 0..24 {
        let (num_prompt, num_output) = if idx % 4 == 3 { (8000, 4) } else { (64, 60) };
        writeln!(text, "{},{num_prompt},{num_output}", f64::from(idx) * 0.1).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}
