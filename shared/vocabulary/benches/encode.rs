//! Prints how fast text becomes ids on one thread, beside the `tokenizers` crate in the same run, and how soon the first
//! ids of a long text are there; and checks on whole corpora that base ids are that crate's.
//!
//! `cargo bench -p fused-vocabulary --bench encode [-- --check]`; the tokenizers and corpora are those of the data folder
//! (see `fused_testkit::test_data`).
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::{Duration, Instant};

use anyhow::Context;
use fused_testkit::test_data;
use fused_vocabulary::build::{BuildRequest, build};
use fused_vocabulary::{SpecialTokens, TokenId, Vocabulary};
use tokenizers::Tokenizer;

const TOKENIZERS: [&str; 3] = ["gpt2", "llama3", "qwen2.5"];
const CORPORA: [&str; 5] = ["biomed", "dc-law", "k8s-keps", "rust-docs", "tldr"];
const NUM_N_TOKENS: usize = 10_000;
/// Of each corpus, for the timings.
const TIMED_BYTES: usize = 300_000;
const RUNS: usize = 5;
/// A long prompt, and the pieces the tokenizer service hands to the encoder.
const PROMPT_BYTES: usize = 400_000;
const PIECE_BYTES: usize = 16 << 10;

fn main() -> anyhow::Result<()> {
    let is_check = std::env::args().any(|arg| arg == "--check");
    println!(
        "tokenizer  corpus      tokenizers   fused base          fused with {NUM_N_TOKENS} n-tokens   first ids of {PROMPT_BYTES} B"
    );
    for name in TOKENIZERS {
        let path = test_data(&format!("tokenizers/{name}/tokenizer.json")).context("no tokenizers")?;
        let json = std::fs::read(path)?;
        let oracle = Tokenizer::from_bytes(&json).map_err(anyhow::Error::from_boxed)?;
        let base = Vocabulary::load(&json, None)?;
        for corpus in CORPORA {
            measure(name, corpus, &json, &oracle, &base)?;
            if is_check {
                check(corpus, &oracle, &base)?;
            }
        }
    }
    Ok(())
}

fn measure(
    name: &str,
    corpus: &str,
    json: &[u8],
    oracle: &Tokenizer,
    base: &Vocabulary,
) -> anyhow::Result<()> {
    let text = read(corpus, "heldout")?;
    let text = &text[..text.floor_char_boundary(TIMED_BYTES)];
    let train = read(corpus, "train")?;
    let train = [train[..train.floor_char_boundary(2_000_000)].to_owned()];
    let (patch, _) = build(&BuildRequest { tokenizer_json: json, corpus: &train, add: NUM_N_TOKENS })?;
    let adapted = Vocabulary::load(json, Some(patch))?;

    let theirs = fastest(|| oracle.encode_fast(text, false).map(|encoding| encoding.len()).unwrap_or(0));
    let ours = fastest(|| base.encode(text, SpecialTokens::Omit).map_or(0, |encoding| encoding.ids.len()));
    let with_patch =
        fastest(|| adapted.encode(text, SpecialTokens::Omit).map_or(0, |encoding| encoding.ids.len()));
    let rate = |time: Duration| text.len() as f64 / 1e6 / time.as_secs_f64();
    let times = |time: Duration| theirs.as_secs_f64() / time.as_secs_f64();
    println!(
        "{name:<10} {corpus:<10} {:>6.2} MB/s  {:>6.1} MB/s {:>5.1} x   {:>6.1} MB/s {:>5.1} x              {:>7.3} ms",
        rate(theirs),
        rate(ours),
        times(ours),
        rate(with_patch),
        times(with_patch),
        first_ids(&adapted, &read(corpus, "train")?)?.as_secs_f64() * 1e3,
    );
    Ok(())
}

/// From a whole prompt to the first 512 ids, which is what an engine is sent at once.
fn first_ids(vocabulary: &Vocabulary, text: &str) -> anyhow::Result<Duration> {
    let mut rest = &text[..text.floor_char_boundary(PROMPT_BYTES)];
    let (started, mut ids) = (Instant::now(), Vec::new());
    let mut encoder = vocabulary.encoder();
    while ids.len() < 512 && !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        encoder.push(piece, &mut ids)?;
        rest = after;
    }
    Ok(started.elapsed())
}

fn check(corpus: &str, oracle: &Tokenizer, base: &Vocabulary) -> anyhow::Result<()> {
    let mut num_bytes = 0;
    for part in ["heldout", "train"] {
        let text = read(corpus, part)?;
        for document in text.split("\n<|endoftext|>\n") {
            let theirs = oracle.encode_fast(document, false).map_err(anyhow::Error::from_boxed)?;
            let ours = base.encode(document, SpecialTokens::Omit)?.ids;
            anyhow::ensure!(theirs.get_ids().iter().copied().map(TokenId).eq(ours), "{corpus}: other ids");
            num_bytes += document.len();
        }
    }
    println!("           {corpus:<10} the same ids on all {num_bytes} bytes");
    Ok(())
}

fn read(corpus: &str, part: &str) -> anyhow::Result<String> {
    let path = test_data(&format!("corpora/{corpus}/{part}.txt")).context("no corpora")?;
    Ok(std::fs::read_to_string(path)?)
}

fn fastest(mut run: impl FnMut() -> usize) -> Duration {
    let time = |_| {
        let started = Instant::now();
        std::hint::black_box(run());
        started.elapsed()
    };
    (0..RUNS).map(time).min().unwrap_or_default()
}
