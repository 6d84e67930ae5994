//! The example: a piece of one document before and after. Which document is the typical one is known only at the end,
//! so that one candidate is kept for each step of savings. Of a long document that piece is shown which saves as much as
//! the whole: its first lines seldom do.

use serde::Serialize;

use super::savings::Step;
use super::{Comparison, Measured, readable, saved_share};
use crate::{Result, TokenId, Vocabulary};

/// The longest piece.
const MAX_CHARS: usize = 1500;
/// So much of a document's beginning is kept to choose a piece from.
const MAX_KEPT_CHARS: usize = 8 * MAX_CHARS;
/// A piece shorter than this shows little.
const GOOD_CHARS: usize = 400;
/// A short candidate must be nearer to the median than a good one by this many steps (two points).
const SHORT_PENALTY_STEPS: usize = 20;

/// A piece of a document before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The document's number, from 1.
    pub number: u64,
    /// Whether the document has more than this piece.
    pub is_cut: bool,
    /// Tokens of the base vocabulary.
    pub base: Vec<Piece>,
    /// Tokens of the adapted vocabulary.
    pub adapted: Vec<Piece>,
}

/// One token of the example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Its id in its vocabulary.
    pub id: TokenId,
    /// What it reads; bytes that are no UTF-8 as `\xE2`.
    pub text: String,
    /// What the base tokens of an n-token read; empty for a base token.
    pub base_texts: Vec<String>,
}

pub(super) enum ExampleChoice {
    /// This document's.
    Number(u64, Option<Candidate>),
    /// By step.
    NearMedian(Vec<Option<Candidate>>),
}

pub(super) struct Candidate {
    number: u64,
    text: String,
    is_good: bool,
    /// What the whole document saves.
    step: Step,
}

impl ExampleChoice {
    pub(super) fn new(number: Option<u64>) -> Self {
        match number {
            Some(number) => Self::Number(number, None),
            None => Self::NearMedian((0..Step::COUNT).map(|_| None).collect()),
        }
    }

    pub(super) fn add(&mut self, number: u64, text: &str, step: Option<Step>) {
        match (self, step) {
            (Self::Number(wanted, found), _) if *wanted == number => {
                *found = Some(Candidate::new(number, text, step.unwrap_or(Step::of(0.0))));
            }
            (Self::NearMedian(candidates), Some(step)) => {
                let place = &mut candidates[step.idx()];
                if place.as_ref().is_none_or(|candidate| !candidate.is_good && is_good(text)) {
                    *place = Some(Candidate::new(number, text, step));
                }
            }
            _ => {}
        }
    }

    pub(super) fn finish(self, comparison: &Comparison, median: f64) -> Result<Option<Example>> {
        let chosen = match self {
            Self::Number(_, found) => found,
            Self::NearMedian(candidates) => {
                let median = Step::of(median).idx();
                let distance = |(idx, candidate): &(usize, Candidate)| {
                    idx.abs_diff(median) + if candidate.is_good { 0 } else { SHORT_PENALTY_STEPS }
                };
                let candidates = candidates.into_iter().enumerate();
                candidates
                    .filter_map(|(idx, candidate)| Some((idx, candidate?)))
                    .min_by_key(distance)
                    .map(|(_, candidate)| candidate)
            }
        };
        chosen.map(|candidate| candidate.example(comparison)).transpose()
    }
}

impl Candidate {
    fn new(number: u64, text: &str, step: Step) -> Self {
        let end = text.char_indices().nth(MAX_KEPT_CHARS).map_or(text.len(), |(end, _)| end);
        Self { number, is_good: is_good(text), text: text[..end].to_owned(), step }
    }

    fn example(&self, comparison: &Comparison) -> Result<Example> {
        let mut best: Option<(usize, Measured<'_>)> = None;
        for text in pieces(&self.text).filter(|text| is_good(text)) {
            let measured = comparison.measure_document(text)?;
            let saved = saved_share(measured.base_ids.len() as u64, measured.ids.len() as u64);
            let distance = Step::of(saved).idx().abs_diff(self.step.idx());
            if best.as_ref().is_none_or(|(least, _)| distance < *least) {
                best = Some((distance, measured));
            }
        }
        let Measured { text, base_ids: base, ids: adapted } = match best {
            Some((_, measured)) => measured,
            None => comparison.measure_document(beginning(&self.text))?,
        };
        let piece = |vocabulary: &Vocabulary, id: TokenId, base: &[TokenId]| Piece {
            id,
            text: readable(vocabulary.token_bytes(id)),
            base_texts: base.iter().map(|id| readable(comparison.base.token_bytes(*id))).collect(),
        };
        // A base id expands to itself, an n-token to what it stands for.
        let n_token = |id: TokenId| match comparison.patch.row(id) {
            Some(crate::Row::NToken(base)) => base,
            _ => &[],
        };
        Ok(Example {
            number: self.number,
            is_cut: text.len() < self.text.trim_end().len(),
            base: base.iter().map(|id| piece(&comparison.base, *id, &[])).collect(),
            adapted: adapted.iter().map(|id| piece(&comparison.adapted, *id, n_token(*id))).collect(),
        })
    }
}

fn is_good(text: &str) -> bool {
    text.chars().nth(GOOD_CHARS - 1).is_some()
}

/// A document in pieces that each fit; white space between them is left out.
fn pieces(document: &str) -> impl Iterator<Item = &str> {
    let mut rest = document;
    std::iter::from_fn(move || {
        let piece = beginning(rest);
        rest = rest[piece.len()..].trim_start_matches(['\n', '\r', ' ']);
        (!piece.is_empty()).then_some(piece)
    })
}

/// As much of a text as fits: to the end of a paragraph, else of a line, else of a word.
fn beginning(text: &str) -> &str {
    let Some((end, _)) = text.char_indices().nth(MAX_CHARS) else { return text };
    let fitting = &text[..end];
    let cut = ["\n\n", "\n", " "]
        .iter()
        .filter_map(|border| fitting.rfind(border))
        .find(|cut| *cut >= end / 2)
        .unwrap_or(end);
    &text[..cut]
}
