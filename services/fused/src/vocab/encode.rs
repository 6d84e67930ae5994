//! `fused vocab encode`: a corpus as the model ids that fine-tuning reads.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, bail};
use fused_checkpoint::{ModelFiles, Wanted};
use fused_vocabulary::build::{Observer, Stage, Unit};
use fused_vocabulary::{Encoding, Error, SpecialTokens, TokenId, Vocabulary, work_in_order};
use serde_json::Value;

use super::npy::Array;
use super::on_threads;
use super::output::Output;
use super::progress::Progress;
use super::token_table::TokenTable;
use crate::cli::{EncodeTo, VocabEncode};
use crate::corpus::Corpus;
use crate::interrupt::Interrupt;
use crate::{model, process};

pub(super) fn run(command: &VocabEncode) -> anyhow::Result<()> {
    let start = Instant::now();
    let files = model::files(command.model.as_deref(), Wanted::NoWeights)?;
    let patch = model::patch(command.patch_vocabulary.as_deref(), &files)?;
    let vocabulary = Vocabulary::load(&fused_adaptation::tokenizer_json(&files)?, patch)?;
    let separator = separator(command, &files, &vocabulary)?;
    let corpus = Corpus::open(&command.corpus.corpus, command.corpus.field.as_deref()).context("--corpus")?;
    let interrupt = Interrupt::listen()?;
    let out = Output::create(&command.out, &interrupt)?;
    let table = match command.to {
        EncodeTo::Npy => Table::Array(Array::begin(out, separator)?),
        EncodeTo::Parquet => Table::Rows(Box::new(TokenTable::begin(out)?)),
    };

    let progress = Progress::new(&corpus, &interrupt);
    let encoded = on_threads(command.threads, || write(&vocabulary, corpus, table, &progress));
    progress.end();
    let counts = encoded?;
    let seconds = start.elapsed().as_secs_f64();
    process::print(&format!(
        "{counts}; {seconds:.1} s ({:.2} MB/s)\nwrote {}",
        counts.num_bytes as f64 / 1e6 / seconds,
        command.out.display()
    ))
}

/// What is being written.
enum Table<'a> {
    Array(Array<'a>),
    Rows(Box<TokenTable<'a>>),
}

#[derive(Default)]
struct Counts {
    num_documents: u64,
    num_bytes: u64,
    num_base_tokens: u64,
    num_tokens: u64,
}

fn write(
    vocabulary: &Vocabulary,
    corpus: Corpus,
    mut table: Table<'_>,
    progress: &Progress<'_>,
) -> anyhow::Result<Counts> {
    progress.begin(&Stage { name: "encoding the corpus", unit: Unit::Bytes, total: None });
    let mut counts = Counts::default();
    work_in_order(
        corpus.into_documents(),
        |text| {
            if progress.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            Ok(vocabulary.encode(text, SpecialTokens::Omit)?)
        },
        |text, encoding| {
            counts.add(&text, &encoding);
            progress.advance(text.len() as u64);
            match &mut table {
                Table::Array(array) => Ok(array.push(&encoding.ids)?),
                Table::Rows(rows) => rows.push(&encoding.ids, encoding.num_base_tokens),
            }
        },
    )?;
    if counts.num_base_tokens == 0 {
        return Err(Error::EmptyCorpus.into());
    }
    match table {
        Table::Array(array) => array.end()?,
        Table::Rows(rows) => rows.end()?,
    }
    Ok(counts)
}

/// The model id between documents; none for none, and for a table, whose rows need none.
fn separator(
    command: &VocabEncode,
    files: &ModelFiles,
    vocabulary: &Vocabulary,
) -> anyhow::Result<Option<TokenId>> {
    match (command.to, command.separator.as_deref()) {
        (EncodeTo::Parquet, None) | (EncodeTo::Npy, Some("none")) => Ok(None),
        (EncodeTo::Parquet, Some(_)) => bail!("--separator is for --to npy: a table has a row a document"),
        (EncodeTo::Npy, None | Some("eos")) => {
            let id = end_of_text(files, vocabulary)?;
            Ok(Some(id.context(
                "--separator: the model does not say what its eos token is, so name an id or none",
            )?))
        }
        (EncodeTo::Npy, Some(id)) => {
            let id = id
                .parse()
                .map(TokenId)
                .with_context(|| format!("--separator `{id}` is no id, eos or none"))?;
            if id.row() >= vocabulary.vocab_size() {
                bail!("--separator {id} is not under the vocabulary's size, {}", vocabulary.vocab_size());
            }
            Ok(Some(id))
        }
    }
}

/// The model's end-of-text token by its text, which means the same in every vocabulary.
fn end_of_text(files: &ModelFiles, vocabulary: &Vocabulary) -> anyhow::Result<Option<TokenId>> {
    const FILE: &str = "tokenizer_config.json";
    let Some(bytes) = files.read(FILE)? else { return Ok(None) };
    let config: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{FILE} of `{}`", files.name()))?;
    let token = &config["eos_token"];
    let text = token.as_str().or_else(|| token["content"].as_str());
    Ok(text.and_then(|text| vocabulary.token_id(text)))
}

impl Counts {
    fn add(&mut self, text: &str, encoding: &Encoding) {
        self.num_documents += 1;
        self.num_bytes += text.len() as u64;
        self.num_base_tokens += encoding.num_base_tokens as u64;
        self.num_tokens += encoding.ids.len() as u64;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_byte = |num_tokens: u64| num_tokens as f64 / self.num_bytes.max(1) as f64;
        let grown = 100.0 * (self.num_tokens as f64 / self.num_base_tokens.max(1) as f64 - 1.0);
        let word = if grown > 0.0 { "more" } else { "fewer" };
        write!(
            f,
            "{} documents, {} bytes: {} base tokens ({:.4} a byte), {} model tokens ({:.4} a byte, {:.1} % {word})",
            self.num_documents,
            self.num_bytes,
            self.num_base_tokens,
            per_byte(self.num_base_tokens),
            self.num_tokens,
            per_byte(self.num_tokens),
            grown.abs(),
        )
    }
}
