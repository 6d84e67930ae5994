use std::cmp::Reverse;
use std::collections::HashMap;

use crate::base::{BaseTokenizer, Kind, TokenizerJson};
use crate::{Error, Result, TokenId};

/// The base tokens that the corpus uses least, with what stands for each, by ascending id.
///
/// A token can go if a merge rule made it and it is more than one character: then its halves, or theirs, are kept
/// tokens, down to single characters or bytes, which always stay. Special and added tokens have no merge rule.
pub(super) fn choose(
    json: &TokenizerJson,
    base: &BaseTokenizer,
    documents: &[Vec<TokenId>],
    num: usize,
) -> Result<Vec<(TokenId, Vec<TokenId>)>> {
    let mut uses = vec![0_usize; base.vocab_size()];
    documents.iter().flatten().for_each(|id| uses[id.row()] += 1);

    let halves = halves(json, base);
    let mut removable: Vec<TokenId> =
        halves.keys().copied().filter(|id| !is_one_char(base.bytes(*id))).collect();
    // Of equally little used ones the later, which the tokenizer learned later, and rarer.
    removable.sort_unstable_by_key(|id| (uses[id.row()], Reverse(*id)));
    if removable.len() < num {
        return Err(Error::NotReachable { what: "removable tokens", asked: num, reachable: removable.len() });
    }
    removable.truncate(num);
    removable.sort_unstable();

    let parts = |id: TokenId| {
        let mut parts = Vec::new();
        let mut open = vec![id];
        while let Some(part) = open.pop() {
            match halves.get(&part) {
                Some((left, right)) if removable.binary_search(&part).is_ok() => {
                    open.extend([*right, *left]);
                }
                _ => parts.push(part),
            }
        }
        (id, parts)
    };
    Ok(removable.iter().copied().map(parts).collect())
}

/// The documents with removed tokens replaced by their parts.
pub(super) fn apply(removed: &[(TokenId, Vec<TokenId>)], documents: &[Vec<TokenId>]) -> Vec<Vec<TokenId>> {
    let reduce = |ids: &Vec<TokenId>| {
        let mut reduced = Vec::with_capacity(ids.len());
        for id in ids {
            match removed.binary_search_by_key(id, |(id, _)| *id) {
                Ok(idx) => reduced.extend_from_slice(&removed[idx].1),
                Err(_) => reduced.push(*id),
            }
        }
        reduced
    };
    documents.iter().map(reduce).collect()
}

/// By learned token: the halves of the first merge rule that makes it. A half is always shorter than the whole, so
/// following them ends.
pub(super) fn halves(json: &TokenizerJson, base: &BaseTokenizer) -> HashMap<TokenId, (TokenId, TokenId)> {
    let learned = |text: &str| base.id(text).filter(|id| base.kind(*id) == Kind::Learned);
    let mut halves = HashMap::new();
    for (left, right) in json.merges() {
        if left.is_empty() || right.is_empty() {
            continue;
        }
        if let (Some(whole), Some(left), Some(right)) =
            (learned(&format!("{left}{right}")), learned(left), learned(right))
        {
            halves.entry(whole).or_insert((left, right));
        }
    }
    halves
}

fn is_one_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().nth(1).is_none())
}
