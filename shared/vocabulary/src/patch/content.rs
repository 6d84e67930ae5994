use serde::{Deserialize, Serialize};

use crate::base::MAX_VOCAB_SIZE;
use crate::fingerprint::Hasher;
use crate::{Error, Fingerprint, Result, TokenId};

/// The longest n-token, in base tokens. The paper uses 3 and 5; the bound keeps one step of segmentation short.
pub(crate) const MAX_N: usize = 64;
/// The most parts of a removed token: a token of so many bytes would be a strange one.
pub(crate) const MAX_PARTS: usize = 1024;

/// Where the n-tokens' ids come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Base tokens are removed and n-tokens take their ids; mostly as many of each, so that the vocabulary keeps its size.
    Replace,
    /// No base token is removed: the vocabulary grows by the n-tokens.
    Extend,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Extend => "extend",
        }
    }
}

/// Which of the possible sequences of n-tokens and base tokens a text becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Segmentation {
    /// From left to right, at each place the first n-token of the list that matches, however short it is: what
    /// AdaptiVocab's own code does.
    Greedy,
    /// The fewest tokens; of equally short ones the one whose n-tokens stand earlier in the list.
    Optimal,
}

impl Segmentation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::Optimal => "optimal",
        }
    }
}

/// A base token that the adapted model does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its base id.
    pub id: TokenId,
    /// Base ids of kept tokens that stand for it; their bytes joined are its bytes.
    pub parts: Vec<TokenId>,
    /// What it reads, for humans.
    pub text: String,
}

/// A token that stands for several base tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NToken {
    /// Its model id.
    pub id: TokenId,
    /// The base ids it stands for, two or more. With a removed or a special one among them it never matches; it has its
    /// row in the model all the same, as in vocabularies that AdaptiVocab's own code made.
    pub base: Vec<TokenId>,
    /// What it reads, for humans.
    pub text: String,
}

/// What a patch vocabulary says, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchContent {
    /// The hash of the tokenizer that the ids belong to.
    pub base_tokenizer: Fingerprint,
    /// Replace or extend.
    pub mode: Mode,
    /// Greedy or optimal.
    pub segmentation: Segmentation,
    /// By base id: the model id, or none for a removed token.
    pub model_ids: Vec<Option<TokenId>>,
    /// Removed base tokens, by ascending id.
    pub removed: Vec<Removed>,
    /// N-tokens in rank order.
    pub n_tokens: Vec<NToken>,
}

/// What stands at a model id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Base(TokenId),
    /// Index into the n-tokens.
    NToken(usize),
}

impl PatchContent {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Hasher::new("fused patch vocabulary 2");
        hash.fingerprint(self.base_tokenizer);
        hash.text(self.segmentation.name());
        // No base id may have this model id: it says "removed".
        hash.numbers(self.model_ids.iter().map(|id| id.map_or(u32::MAX, |id| id.0)));
        for removed in &self.removed {
            hash.numbers(std::iter::once(removed.id.0));
            hash.numbers(removed.parts.iter().map(|id| id.0));
        }
        hash.text("n_tokens");
        for n_token in &self.n_tokens {
            hash.numbers(std::iter::once(n_token.id.0));
            hash.numbers(n_token.base.iter().map(|id| id.0));
        }
        hash.finish()
    }

    /// Checks the rules that need no tokenizer; what stands at each model id.
    pub(super) fn check(&self) -> Result<Vec<Origin>> {
        self.check_sizes()?;
        let is_kept = |id: &TokenId| self.model_ids.get(id.row()).is_some_and(Option::is_some);
        let mut previous = None;
        for (idx, removed) in self.removed.iter().enumerate() {
            let field = |name| format!("removed[{idx}].{name}");
            if previous >= Some(removed.id) {
                return Err(Error::field(field("id"), "ids must ascend and not repeat"));
            }
            previous = Some(removed.id);
            if removed.id.row() >= self.model_ids.len() {
                let problem = format!("{} is not under base_vocab_size {}", removed.id, self.model_ids.len());
                return Err(Error::field(field("id"), problem));
            }
            if is_kept(&removed.id) {
                return Err(Error::field(field("id"), format!("{} also has a model id in kept", removed.id)));
            }
            check_base_ids(&removed.parts, MAX_PARTS, is_kept, "a kept base token")
                .map_err(|problem| Error::field(field("parts"), problem))?;
        }
        if self.model_ids.iter().filter(|id| id.is_none()).count() != self.removed.len() {
            return Err(Error::field("kept", "a base id is neither kept nor removed"));
        }
        // Removed ones are let in: AdaptiVocab's own code counts n-tokens before it removes tokens, and its models have
        // rows for those that can never match. Left out, every id and row behind them would be another.
        let is_known = |id: &TokenId| id.row() < self.model_ids.len();
        let mut seen = std::collections::HashSet::with_capacity(self.n_tokens.len());
        for (idx, n_token) in self.n_tokens.iter().enumerate() {
            let field = || format!("n_tokens[{idx}].base");
            check_base_ids(&n_token.base, MAX_N, is_known, "a base token")
                .map_err(|problem| Error::field(field(), problem))?;
            if !seen.insert(&n_token.base) {
                return Err(Error::field(field(), "the same base ids stand twice in the list"));
            }
        }
        self.origins()
    }

    fn check_sizes(&self) -> Result<()> {
        if self.model_ids.is_empty() || self.model_ids.len() > MAX_VOCAB_SIZE {
            let problem = format!("{} is not in 1 to {MAX_VOCAB_SIZE}", self.model_ids.len());
            return Err(Error::field("base_vocab_size", problem));
        }
        let (num_removed, num_n_tokens) = (self.removed.len(), self.n_tokens.len());
        match self.mode {
            Mode::Extend if num_removed != 0 => {
                Err(Error::field("mode", format!("extend removes nothing, but {num_removed} are removed")))
            }
            _ if num_n_tokens > MAX_VOCAB_SIZE => {
                Err(Error::field("n_tokens", format!("there are {num_n_tokens}, over {MAX_VOCAB_SIZE}")))
            }
            _ => Ok(()),
        }
    }

    /// Every model id under the vocabulary's size must be taken exactly once: each is a row of the model's matrices.
    fn origins(&self) -> Result<Vec<Origin>> {
        let vocab_size = self.model_ids.len() - self.removed.len() + self.n_tokens.len();
        let mut origins = vec![None; vocab_size];
        let kept = (0..)
            .zip(&self.model_ids)
            .filter_map(|(base, id)| id.map(|id| (id, Origin::Base(TokenId(base)), "kept".to_owned())));
        let n_tokens = self
            .n_tokens
            .iter()
            .enumerate()
            .map(|(idx, n_token)| (n_token.id, Origin::NToken(idx), format!("n_tokens[{idx}].id")));
        for (id, origin, field) in kept.chain(n_tokens) {
            match origins.get_mut(id.row()) {
                None => {
                    let problem = format!("{id} is not under vocab_size {vocab_size}");
                    return Err(Error::field(field, problem));
                }
                Some(Some(_)) => return Err(Error::field(field, format!("{id} is given twice"))),
                Some(place) => *place = Some(origin),
            }
        }
        // As many ids as places and none twice: every place is taken.
        Ok(origins.into_iter().flatten().collect())
    }
}

fn check_base_ids(
    ids: &[TokenId],
    max: usize,
    is_fit: impl Fn(&TokenId) -> bool,
    what: &str,
) -> std::result::Result<(), String> {
    if !(2..=max).contains(&ids.len()) {
        return Err(format!("{} base ids are not in 2 to {max}", ids.len()));
    }
    match ids.iter().find(|id| !is_fit(id)) {
        Some(id) => Err(format!("{id} is not {what}")),
        None => Ok(()),
    }
}
