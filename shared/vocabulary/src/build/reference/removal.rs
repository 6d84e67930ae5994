use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::token_text::TokenTexts;
use crate::TokenId;

/// Tokens that the reference never removes, for the prompts of its evaluation (kept).
const SAVED: [&str; 11] =
    ["<pad>", "<unk>", "<s>", "</s>", "Your", "choice", "Question", "Options", "Format", "▁'.", "Which"];

/// How often a base token stands in the corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenCount {
    pub(super) freq: u64,
    /// Its place among the tokens seen, by first occurrence.
    pub(super) rank: usize,
}

/// What the reference removes when asked for `num` tokens, by ascending id.
///
/// Candidates are tokens whose text has more than one character (in byte-level tokenizers: byte). Those not in the
/// corpus go first, the longest before others; if there are too few, the least frequent of the others follow, of equal
/// ones the one seen first. Equally long tokens come in random order in the reference (that of a Python set); here the
/// later learned goes first.
///
/// Of the `num` candidates those that no merge rule makes are then left out, and none takes their place (quirk 6, kept):
/// special tokens and byte tokens count, and stay. So fewer than `num` are removed, and by `halves`, the first merge
/// rule of each, the others fall into kept tokens ([`decompose`]).
pub(super) fn choose(
    texts: &TokenTexts,
    counts: &[TokenCount],
    halves: &HashMap<TokenId, (TokenId, TokenId)>,
    keep: &HashSet<TokenId>,
    num: usize,
) -> Vec<TokenId> {
    let count = |id: TokenId| counts.get(id.row()).copied().unwrap_or_default();
    let (mut absent, mut seen) = (Vec::new(), Vec::new());
    for (id, token) in texts.iter() {
        let len = token.text.chars().count();
        if len > 1 && !SAVED.contains(&&*token.text) && !keep.contains(&id) {
            let TokenCount { freq, rank } = count(id);
            if freq == 0 { absent.push((len, id)) } else { seen.push((freq, rank, id)) }
        }
    }
    absent.sort_unstable_by_key(|key| Reverse(*key));
    seen.sort_unstable();
    let candidates = absent.into_iter().map(|(_, id)| id).chain(seen.into_iter().map(|(_, _, id)| id));
    let mut removed: Vec<TokenId> = candidates.take(num).filter(|id| halves.contains_key(id)).collect();
    removed.sort_unstable();
    removed
}

/// What stands for each removed token: its halves, and for those removed as well theirs.
pub(super) fn decompose(
    removed: &[TokenId],
    halves: &HashMap<TokenId, (TokenId, TokenId)>,
) -> Vec<(TokenId, Vec<TokenId>)> {
    let parts = |id: TokenId| {
        let mut parts = Vec::new();
        let mut open = vec![id];
        while let Some(part) = open.pop() {
            match halves.get(&part) {
                Some((left, right)) if removed.binary_search(&part).is_ok() => open.extend([*right, *left]),
                _ => parts.push(part),
            }
        }
        (id, parts)
    };
    removed.iter().copied().map(parts).collect()
}
