use serde::Serialize;

use crate::{Mode, PatchVocabulary, Segmentation, TokenId};

/// What a report is about.
#[derive(Clone, Debug, Serialize)]
pub struct VocabularyFigures {
    /// Replace or extend.
    pub mode: Mode,
    /// Greedy or optimal.
    pub segmentation: Segmentation,
    /// The fingerprint of base tokenizer and patch together, as hexadecimal digits.
    pub fingerprint: String,
    /// Ids of the base tokenizer.
    pub base_vocab_size: usize,
    /// Ids of the adapted model.
    pub vocab_size: usize,
    /// N-tokens of the patch vocabulary.
    pub num_n_tokens: usize,
    /// Base tokens that the adapted model does not have.
    pub num_removed: usize,
}

impl VocabularyFigures {
    pub(super) fn of(patch: &PatchVocabulary) -> Self {
        Self {
            mode: patch.mode(),
            segmentation: patch.segmentation(),
            fingerprint: patch.fingerprint().to_string(),
            base_vocab_size: patch.base_vocab_size(),
            vocab_size: patch.vocab_size(),
            num_n_tokens: patch.n_tokens().len(),
            num_removed: patch.removed().len(),
        }
    }
}

/// All n-tokens of one length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LengthFigures {
    /// How many base tokens each stands for.
    pub num_base_tokens: usize,
    /// How many there are in the patch vocabulary.
    pub num_n_tokens: usize,
    /// How many of them the text uses.
    pub num_used: usize,
    /// How often it does.
    pub num_uses: u64,
    /// Base tokens less n-tokens at these places.
    pub num_saved_tokens: u64,
}

/// One n-token in the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NTokenFigures {
    /// Its model id.
    pub id: TokenId,
    /// What it reads; bytes that are no UTF-8 as `\xE2`.
    pub text: String,
    /// What each of its base tokens reads.
    pub base_texts: Vec<String>,
    /// How often the text uses it.
    pub num_uses: u64,
    /// Base tokens less n-tokens at these places: uses times one less than its length.
    pub num_saved_tokens: u64,
}

/// The removed base tokens in the text.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RemovedFigures {
    /// Occurrences of removed tokens, as the base vocabulary encodes the text.
    pub num_occurrences: u64,
    /// What their parts take more than they did, before n-tokens are looked for.
    pub num_extra_tokens: u64,
    /// Those that occur, the dearest first.
    pub tokens: Vec<RemovedTokenFigures>,
}

/// One removed base token in the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemovedTokenFigures {
    /// Its base id.
    pub id: TokenId,
    /// What it reads; bytes that are no UTF-8 as `\xE2`.
    pub text: String,
    /// What each of the tokens that stand for it reads.
    pub part_texts: Vec<String>,
    /// How often it occurs.
    pub num_occurrences: u64,
    /// What its parts take more than it did.
    pub num_extra_tokens: u64,
}
