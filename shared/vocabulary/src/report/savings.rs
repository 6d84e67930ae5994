//! How savings differ between documents, in memory that does not grow with their number: a saving is counted in steps of
//! a tenth of a point, so that quartiles are exact to half a step.

use serde::Serialize;

use super::saved_share;

/// Steps in a saving of 1.
const STEPS: i64 = 1000;
/// How many of the best and of the worst documents are named.
const NUM_NAMED: usize = 5;
/// Characters of a document's first words.
const MAX_FIRST_WORDS_CHARS: usize = 72;

/// How savings differ between documents. Documents without a token are left out.
#[derive(Clone, Debug, Serialize)]
pub struct Savings {
    /// Over documents, each counting the same.
    pub quartiles: Quartiles,
    /// Savings in tenths of a point (`372` is 37.2 %) with the number of documents, ascending; only those that occur.
    /// What is under -100 % is counted there.
    pub steps: Vec<(i64, u64)>,
    /// Documents that take more tokens than before.
    pub num_longer: u64,
    /// Those that save the most, the best first.
    pub best: Vec<DocumentFigures>,
    /// Those that save the least, the worst first.
    pub worst: Vec<DocumentFigures>,
}

/// Savings in shares of 1 that so many documents stay under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quartiles {
    /// The least.
    pub min: f64,
    /// A quarter of the documents save at most this.
    pub lower: f64,
    /// Half of them do.
    pub median: f64,
    /// Three quarters of them do.
    pub upper: f64,
    /// The most.
    pub max: f64,
}

/// One document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DocumentFigures {
    /// Its number in the text, from 1.
    pub number: u64,
    /// How it begins.
    pub first_words: String,
    /// Tokens of the base vocabulary.
    pub num_base_tokens: u64,
    /// Tokens of the adapted vocabulary.
    pub num_tokens: u64,
    /// Which part of the base tokens goes away.
    pub saved_share: f64,
}

/// The step that a saving belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step(i64);

impl Step {
    /// All there are.
    pub(super) const COUNT: usize = 2 * STEPS as usize + 1;

    pub(super) fn of(saved_share: f64) -> Self {
        Self(((saved_share * STEPS as f64).round() as i64).clamp(-STEPS, STEPS))
    }

    pub(super) fn idx(self) -> usize {
        (self.0 + STEPS) as usize
    }

    fn from_idx(idx: usize) -> Self {
        Self(idx as i64 - STEPS)
    }

    fn share(self) -> f64 {
        self.0 as f64 / STEPS as f64
    }
}

pub(super) struct SavingsTally {
    num_documents: u64,
    num_longer: u64,
    /// By step.
    counts: Vec<u64>,
    min: f64,
    max: f64,
    best: Vec<DocumentFigures>,
    worst: Vec<DocumentFigures>,
}

impl SavingsTally {
    pub(super) fn new() -> Self {
        Self {
            num_documents: 0,
            num_longer: 0,
            counts: vec![0; Step::COUNT],
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            best: Vec::new(),
            worst: Vec::new(),
        }
    }

    /// Counts a document; none for one without a token.
    pub(super) fn add(
        &mut self,
        number: u64,
        text: &str,
        num_base_tokens: u64,
        num_tokens: u64,
    ) -> Option<Step> {
        if num_base_tokens == 0 {
            return None;
        }
        let saved_share = saved_share(num_base_tokens, num_tokens);
        let step = Step::of(saved_share);
        self.num_documents += 1;
        self.num_longer += u64::from(num_tokens > num_base_tokens);
        self.counts[step.idx()] += 1;
        self.min = self.min.min(saved_share);
        self.max = self.max.max(saved_share);
        let figures = || DocumentFigures {
            number,
            first_words: first_words(text),
            num_base_tokens,
            num_tokens,
            saved_share,
        };
        keep(&mut self.best, figures, |other| saved_share > other.saved_share);
        keep(&mut self.worst, figures, |other| saved_share < other.saved_share);
        Some(step)
    }

    pub(super) fn finish(self) -> Savings {
        let quartiles = if self.num_documents == 0 {
            Quartiles::default()
        } else {
            let at = |share: f64| self.quantile(share).clamp(self.min, self.max);
            Quartiles { min: self.min, lower: at(0.25), median: at(0.5), upper: at(0.75), max: self.max }
        };
        let steps = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        Savings {
            quartiles,
            steps: steps.map(|(idx, count)| (Step::from_idx(idx).0, *count)).collect(),
            num_longer: self.num_longer,
            best: self.best,
            worst: self.worst,
        }
    }

    /// The least step that at least this share of the documents do not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = share * self.num_documents as f64;
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen as f64 >= wanted
        };
        let idx = self.counts.iter().position(reached).unwrap_or(Step::COUNT - 1);
        Step::from_idx(idx).share()
    }
}

/// Inserts a document before the first one that it beats; of equals the earlier stays in front.
fn keep(
    named: &mut Vec<DocumentFigures>,
    document: impl Fn() -> DocumentFigures,
    beats: impl Fn(&DocumentFigures) -> bool,
) {
    let place = named.iter().position(beats).unwrap_or(named.len());
    if place < NUM_NAMED {
        named.insert(place, document());
        named.truncate(NUM_NAMED);
    }
}

/// The first words of a document, with single spaces between them.
fn first_words(text: &str) -> String {
    let mut words = String::new();
    let mut num_chars = 0;
    for word in text.split_whitespace() {
        let space = usize::from(!words.is_empty());
        for char in " ".chars().take(space).chain(word.chars()) {
            if num_chars == MAX_FIRST_WORDS_CHARS {
                words.push('…');
                return words;
            }
            words.push(char);
            num_chars += 1;
        }
    }
    words
}
