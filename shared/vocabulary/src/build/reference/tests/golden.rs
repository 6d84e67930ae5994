//! Comparison with what the authors' own code wrote.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Write, stderr};
use std::path::Path;
use std::process::Command;

use fused_testkit::test_data;
use rayon::prelude::*;
use serde::Deserialize;

use super::super::choice::{self, Affected, Candidate, Overlaps};
use super::super::python::num_words;
use super::super::removal::{self, TokenCount};
use super::super::token_text::TokenTexts;
use super::super::*;
use crate::build::Unobserved;

/// What golden.py prints.
#[derive(Deserialize)]
struct Golden {
    removed: Vec<(String, Vec<String>)>,
    added: Vec<(Vec<String>, i64)>,
    token_freqs: Vec<(String, u64)>,
    queue: Vec<(Vec<String>, u32)>,
    affected: Vec<Vec<(u32, u32)>>,
    tokenizer: String,
}

impl Golden {
    fn read(run: &str, with_stages: bool) -> Option<Self> {
        let folder = test_data(&format!("adaptivocab-golden/{run}"))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/build/reference/tests/golden.py");
        let stages = with_stages.then_some("--stages");
        let output = match Command::new("python3").arg(script).arg(folder).args(stages).output() {
            Ok(output) => output,
            Err(error) => {
                let _ = writeln!(stderr(), "SKIPPED: {run} needs python3: {error}");
                return None;
            }
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// A tokenizer and, of a run's corpus, the documents that the reference read.
struct Run {
    golden: Golden,
    base: BaseTokenizer,
    halves: HashMap<TokenId, (TokenId, TokenId)>,
    texts: TokenTexts,
    spool: Spool,
}

impl Run {
    fn load(run: &str, tokenizer: &str, corpus: &str, max_chars: usize) -> Option<Self> {
        let golden = Golden::read(run, false)?;
        let tokenizer = fs::read(test_data(&format!("tokenizers/{tokenizer}/tokenizer.json"))?).unwrap();
        let corpus = fs::read_to_string(test_data(&format!("corpora/{corpus}/train.txt"))?).unwrap();
        let mut num_chars = 0;
        let documents: Vec<&str> = corpus
            .split("\n<|endoftext|>\n")
            .take_while(|document| {
                let goes_on = num_chars < max_chars;
                num_chars += document.chars().count();
                goes_on
            })
            .filter(|document| num_words(document) >= MIN_WORDS)
            .collect();
        let json = TokenizerJson::parse(&tokenizer).unwrap();
        let base = BaseTokenizer::load(&json).unwrap();
        let encode = |document: &&str| base.encode(document).unwrap();
        let spool = Spool::of(&documents.par_iter().map(encode).collect::<Vec<_>>());
        let halves = crate::build::removal::halves(&json, &base);
        Some(Self { golden, texts: TokenTexts::new(&base), halves, spool, base })
    }

    /// Removed tokens: the longer ones are the same; of those as long as the shortest the reference takes some by chance.
    fn check_removal(&self, num: usize) {
        let counts = count_tokens(&self.spool, self.base.vocab_size(), &Unobserved).unwrap();
        let ours = removal::choose(&self.texts, &counts, &self.halves, &HashSet::new(), num);
        let ours = removal::decompose(&ours, &self.halves);
        let len = |id: &TokenId| self.texts.get(*id).unwrap().text.chars().count();
        let theirs = self.removed();
        let shortest = theirs.iter().map(|(id, _)| len(id)).min().unwrap();
        let longer = |removed: &[(TokenId, Vec<TokenId>)]| {
            removed.iter().map(|(id, _)| *id).filter(|id| len(id) > shortest).collect::<Vec<_>>()
        };
        assert_eq!(longer(&ours), longer(&theirs));
        assert!(theirs.iter().all(|(id, _)| counts[id.row()].freq == 0));
        assert!(ours.iter().all(|(id, _)| counts[id.row()].freq == 0 && len(id) >= shortest));
        let both = ours.iter().filter(|removed| theirs.contains(removed)).count();
        let _ = writeln!(
            stderr(),
            "removed: {} longer than the shortest, all the same; {both} of {} the same, ties included; ours {}",
            longer(&ours).len(),
            theirs.len(),
            ours.len()
        );
    }

    /// The golden removed tokens, after a check that each falls into the golden parts.
    fn removed(&self) -> Vec<(TokenId, Vec<TokenId>)> {
        removed(&self.golden, &self.base, &self.halves)
    }

    fn check_choice(&self) {
        let removed: Vec<TokenId> = self.removed().into_iter().map(|(id, _)| id).collect();
        let started = std::time::Instant::now();
        let ours =
            choose_n_tokens(&self.texts, &self.spool, &removed, removed.len(), 3, &Unobserved).unwrap();
        let _ = writeln!(stderr(), "chosen in {:.2} s", started.elapsed().as_secs_f64());
        let id = |text: &String| self.base.id(text).unwrap();
        let theirs = self.golden.added.iter();
        let theirs = theirs.map(|(base, freq)| Ranked { base: base.iter().map(id).collect(), freq: *freq });
        let theirs: Vec<_> = theirs.collect();
        assert_eq!(ours.len(), theirs.len());
        for (rank, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours, theirs, "rank {rank}");
        }
    }
}

fn removed(
    golden: &Golden,
    base: &BaseTokenizer,
    halves: &HashMap<TokenId, (TokenId, TokenId)>,
) -> Vec<(TokenId, Vec<TokenId>)> {
    let id = |text: &String| base.id(text).unwrap();
    let mut theirs: Vec<(TokenId, Vec<TokenId>)> =
        golden.removed.iter().map(|(text, parts)| (id(text), parts.iter().map(id).collect())).collect();
    theirs.sort_unstable();
    let ids: Vec<TokenId> = theirs.iter().map(|(id, _)| *id).collect();
    assert_eq!(removal::decompose(&ids, halves), theirs);
    theirs
}

#[test]
fn gpt2_on_keps() {
    let Some(run) = Run::load("gpt2-k8s-1000", "gpt2", "k8s-keps", 2_014_949) else { return };
    run.check_removal(1000);
    run.check_choice();
    // The counts of all n-grams that are looked at are the same too, and in the same order.
    let max = NGRAMS_PER_TOKEN * run.texts.vocab_len();
    let ngrams = ngrams::NGrams::count(&run.spool, &run.texts, 3, max, &Unobserved).unwrap();
    assert_eq!(ngrams.len(), run.golden.queue.len());
    for (place, (texts, freq)) in (0..).zip(&run.golden.queue) {
        let ours = ngrams.tokens(place);
        let ours = ours.iter().map(|id| &*run.texts.get(*id).unwrap().text);
        assert!(ours.eq(texts.iter().map(String::as_str)), "place {place}");
        assert_eq!(ngrams.freq(place), *freq, "place {place}");
    }
}

#[test]
fn llama3_on_biomed() {
    let Some(run) = Run::load("llama3-biomed-2000", "llama3", "biomed", 2_009_936) else { return };
    run.check_removal(2000);
    run.check_choice();
}

#[test]
fn qwen2_5_on_rust_docs() {
    let Some(run) = Run::load("qwen2.5-rust-600", "qwen2.5", "rust-docs", 1_000_940) else { return };
    run.check_removal(600);
    run.check_choice();
}

/// The corpus of these runs is not at hand, but what the reference counted on it is.
struct Counted(Vec<Vec<(u32, u32)>>);

impl Overlaps for Counted {
    fn count(&self, wanted: &[u32], is_queued: &[bool]) -> Result<Vec<Vec<Affected>>> {
        let row = |place: &u32| {
            let row = self.0[*place as usize]
                .iter()
                .map(|(place, times)| Affected { place: *place, times: *times });
            row.filter(|affected| is_queued[affected.place as usize]).collect()
        };
        Ok(wanted.iter().map(row).collect())
    }

    fn max_entries(&self, _: u32) -> usize {
        1 << 20
    }
}

/// Here tokens of the corpus are removed, too: all choices are determined, so that they are compared exactly.
fn stories(run: &str, num: usize) {
    let Some(golden) = Golden::read(run, true) else { return };
    let json = TokenizerJson::parse(golden.tokenizer.as_bytes()).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    let halves = crate::build::removal::halves(&json, &base);
    let texts = TokenTexts::new(&base);

    let mut counts = vec![TokenCount::default(); base.vocab_size()];
    for (rank, (text, freq)) in golden.token_freqs.iter().enumerate() {
        counts[base.id(text).unwrap().row()] = TokenCount { freq: *freq, rank };
    }
    let theirs = removed(&golden, &base, &halves);
    let ours = removal::choose(&texts, &counts, &halves, &HashSet::new(), num);
    assert_eq!(removal::decompose(&ours, &halves), theirs);

    let removed: HashSet<&String> = golden.removed.iter().map(|(text, _)| text).collect();
    let candidates: Vec<_> = golden
        .queue
        .iter()
        .map(|(texts, freq)| Candidate {
            freq: *freq,
            n: texts.len(),
            is_possible: texts.iter().all(|text| !removed.contains(text)),
        })
        .collect();
    let chosen = choice::choose(&candidates, theirs.len(), &Counted(golden.affected), &Unobserved).unwrap();
    let ours = chosen.iter().map(|chosen| (&golden.queue[chosen.place as usize].0, chosen.freq));
    assert!(ours.eq(golden.added.iter().map(|(texts, freq)| (texts, *freq))));
}

#[test]
fn stories_with_300_asked_for() {
    stories("stories260K-300", 300);
}

/// Made with the reference's cache of encodings repaired (quirk 1): n-grams of the reduced text.
#[test]
fn stories_with_400_asked_for() {
    stories("stories260K-400-nocache", 400);
}
