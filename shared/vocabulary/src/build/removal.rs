use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::observer::{Observer, Stage, Unit, go_on};
use super::spool::{Chunk, Spool};
use crate::base::{BaseTokenizer, Kind, TokenizerJson};
use crate::{Error, Removed, Result, TokenId};

/// How often the corpus uses each base token.
pub(super) fn count_uses(base: &BaseTokenizer, spool: &Spool, observer: &dyn Observer) -> Result<Vec<u64>> {
    observer.begin(&Stage { name: "counting tokens", unit: Unit::Tokens, total: Some(spool.num_tokens()) });
    let none = || vec![0_u64; base.vocab_size()];
    let add = |mut uses: Vec<u64>, chunk: Result<Chunk>| {
        go_on(observer)?;
        for ids in chunk?.documents() {
            ids.iter().for_each(|id| uses[id.row()] += 1);
            observer.advance(ids.len() as u64);
        }
        Ok(uses)
    };
    let sum = |mut uses: Vec<u64>, more: Vec<u64>| {
        uses.iter_mut().zip(more).for_each(|(uses, more)| *uses += more);
        Ok(uses)
    };
    spool.chunks().try_fold(none, add).try_reduce(none, sum)
}

/// The base tokens that the corpus uses least, with what stands for each, by ascending id; `uses` is by base id.
///
/// A token can go if a merge rule made it and it is more than one character: then its halves, or theirs, are kept
/// tokens, down to single characters or bytes, which always stay. Special and added tokens have no merge rule. `keep`
/// names tokens that stay in any case.
pub(super) fn choose(
    json: &TokenizerJson,
    base: &BaseTokenizer,
    uses: &[u64],
    num: usize,
    keep: &[String],
) -> Result<Vec<Removed>> {
    let halves = halves(json, base);
    let kept = named(base, keep)?;
    let can_go = |id: &TokenId| !is_one_char(base.bytes(*id)) && !kept.contains(id);
    let mut removable: Vec<TokenId> = halves.keys().copied().filter(can_go).collect();
    // Of equally little used ones that whose less used half is used least, for other text of the domain hardly uses that
    // one either (on that of five domains removal costs half to all of what it costs else); then the one learned later.
    let uses_of_half =
        |id: &TokenId| halves.get(id).map(|(left, right)| uses[left.row()].min(uses[right.row()]));
    removable.sort_unstable_by_key(|id| (uses[id.row()], uses_of_half(id), Reverse(*id)));
    if removable.len() < num {
        return Err(Error::NotReachable { what: "removable tokens", asked: num, reachable: removable.len() });
    }
    removable.truncate(num);
    removable.sort_unstable();

    let removed = |id: TokenId| {
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
        Removed { id, parts, text: String::from_utf8_lossy(base.bytes(id)).into_owned() }
    };
    Ok(removable.iter().copied().map(removed).collect())
}

/// The tokens that are spelled so in `tokenizer.json`, or read so.
pub(super) fn named(base: &BaseTokenizer, keep: &[String]) -> Result<HashSet<TokenId>> {
    let mut kept = HashSet::new();
    if keep.is_empty() {
        return Ok(kept);
    }
    let mut by_bytes: HashMap<&[u8], Vec<TokenId>> = HashMap::new();
    for id in (0..base.vocab_size() as u32).map(TokenId) {
        by_bytes.entry(base.bytes(id)).or_default().push(id);
    }
    for text in keep {
        let spelled = base.id(text);
        let read = by_bytes.get(text.as_bytes()).filter(|_| !text.is_empty());
        if spelled.is_none() && read.is_none() {
            return Err(Error::Request {
                field: "keep",
                problem: format!("the tokenizer has no token {text:?}"),
            });
        }
        kept.extend(spelled.into_iter().chain(read.into_iter().flatten().copied()));
    }
    Ok(kept)
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
