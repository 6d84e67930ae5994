use std::collections::HashMap;

use super::artefacts::{Part, Read};
use super::pickle::View;
use super::tokens::Tokens;
use super::{ImportReport, TokenizerSource};
use crate::base::{BaseTokenizer, Kind};
use crate::patch::{MAX_N, MAX_PARTS};
use crate::vocabulary::check;
use crate::{Error, Mode, NToken, PatchContent, PatchVocabulary, Removed, Result, Segmentation, TokenId};

/// The most bytes that all n-tokens together stand for. A few tokens of a pickle's own tokenizer may be very long, and
/// many n-tokens may repeat them; ten thousand honest ones take 100 kB.
const MAX_N_TOKEN_BYTES: usize = 32 << 20;

/// The vocabulary that the files describe, in the base tokenizer's ids, and every rule of patch vocabularies checked.
pub(super) fn patch(read: &Read<'_>, base: &BaseTokenizer) -> Result<(PatchVocabulary, ImportReport)> {
    let text = |ids: &[TokenId]| String::from_utf8_lossy(&base.joined_bytes(ids)).into_owned();
    let removed: Vec<_> = removed(&read.removed()?, base)?
        .into_iter()
        .map(|(id, parts)| Removed { id, parts, text: text(&[id]) })
        .collect();
    let mut numbers = Numbers::read(&read.id_converter()?, base)?;
    numbers.check_complete(&removed, base)?;
    let n_tokens: Vec<_> = ranked(&read.ngrams()?, &mut numbers, base)?
        .into_iter()
        .map(|(id, base)| NToken { id, text: text(&base), base })
        .collect();
    if let Some(left) = numbers.ngrams.keys().next() {
        let problem = format!("{:?} is numbered, and is none of the added n-grams", text(left));
        return Err(Error::artefact(numbers.part, problem));
    }

    let is_dead = |id: &TokenId| numbers.model_ids[id.row()].is_none() || base.kind(*id) == Kind::Special;
    let report = ImportReport {
        num_n_tokens: n_tokens.len(),
        num_removed: removed.len(),
        num_never_matching: n_tokens.iter().filter(|n_token| n_token.base.iter().any(is_dead)).count(),
        num_other_rows: numbers.num_other_rows,
        tokenizer: TokenizerSource::Pickle,
    };
    let patch = PatchVocabulary::new(PatchContent {
        base_tokenizer: base.hash(),
        mode: Mode::Replace,
        segmentation: Segmentation::Greedy,
        model_ids: numbers.model_ids,
        removed,
        n_tokens,
    })?;
    check(&patch, base)?;
    Ok((patch, report))
}

/// Removed tokens and their parts, by ascending id.
fn removed(part: &Part<'_, '_>, base: &BaseTokenizer) -> Result<Vec<(TokenId, Vec<TokenId>)>> {
    let mut tokens = Tokens::new(part, base);
    let mut is_removed = vec![false; base.vocab_size()];
    let mut removed = Vec::new();
    for (token, parts) in part.root.dict().map_err(part.refused())? {
        let id = tokens.id(token)?;
        if std::mem::replace(&mut is_removed[id.row()], true) {
            return Err(Error::artefact(part.name, format!("base token {id} is removed twice")));
        }
        let parts = tokens.ids(parts.list().map_err(part.refused())?, MAX_PARTS)?;
        // Known before all of them are kept: one list may stand at many tokens, and must not be copied for nothing.
        let num_bytes: usize = parts.iter().map(|part| base.bytes(*part).len()).sum();
        if num_bytes != base.bytes(id).len() || parts.len() > num_bytes {
            let problem = format!("the parts of base token {id} do not make it up");
            return Err(Error::artefact(part.name, problem));
        }
        removed.push((id, parts));
    }
    removed.sort_unstable_by_key(|removed| removed.0);
    Ok(removed)
}

/// The new ids.
struct Numbers {
    part: &'static str,
    /// By base id.
    model_ids: Vec<Option<TokenId>>,
    ngrams: HashMap<Vec<TokenId>, TokenId>,
    /// N-grams whose rows are made from other base ids than their own.
    num_other_rows: usize,
}

impl Numbers {
    fn read(part: &Part<'_, '_>, base: &BaseTokenizer) -> Result<Self> {
        let mut tokens = Tokens::new(part, base);
        let mut numbers = Self {
            part: part.name,
            model_ids: vec![None; base.vocab_size()],
            ngrams: HashMap::new(),
            num_other_rows: 0,
        };
        for (key, entry) in part.root.dict().map_err(part.refused())? {
            let new = entry.at("new_index").and_then(View::int).map(TokenId).map_err(part.refused())?;
            let old = entry.at("old_indices").map_err(part.refused())?;
            let is_new = if key.is_tuple() {
                let ids = tokens.ids(key.tuple().map_err(part.refused())?, MAX_N)?;
                let old = old.list().map_err(part.refused())?;
                // Compared one by one, as one long list may stand at many n-grams.
                let is_own = old.len() == ids.len()
                    && old.zip(&ids).all(|(old, id)| old.int::<u32>().is_ok_and(|old| old == id.0));
                numbers.num_other_rows += usize::from(!is_own);
                numbers.ngrams.insert(ids, new).is_none()
            } else {
                let id = tokens.id(key)?;
                let old = old.int::<u32>().map_err(part.refused())?;
                if old != id.0 {
                    let problem = format!(
                        "{:?} has the base id {old}, and {id} in the tokenizer",
                        String::from_utf8_lossy(base.bytes(id))
                    );
                    return Err(Error::artefact(part.name, problem));
                }
                numbers.model_ids[id.row()].replace(new).is_none()
            };
            if !is_new {
                return Err(Error::artefact(
                    part.name,
                    format!("the token with the new id {new} stands twice"),
                ));
            }
        }
        Ok(numbers)
    }

    /// Every base token must have a new id or be removed.
    fn check_complete(&self, removed: &[Removed], base: &BaseTokenizer) -> Result<()> {
        for (id, model_id) in (0..).map(TokenId).zip(&self.model_ids) {
            let is_removed = removed.binary_search_by_key(&id, |removed| removed.id).is_ok();
            let problem = match (model_id, is_removed) {
                (Some(_), false) | (None, true) => continue,
                (Some(new), true) => format!("base token {id} is removed, but has the new id {new}"),
                (None, false) if base.kind(id) == Kind::Absent => {
                    format!(
                        "the tokenizer has no token for the base id {id}: ids with gaps are not supported"
                    )
                }
                (None, false) => format!(
                    "base token {id} ({:?}) has no new id and is not removed: was the vocabulary made for this tokenizer?",
                    String::from_utf8_lossy(base.bytes(id))
                ),
            };
            return Err(Error::artefact(self.part, problem));
        }
        Ok(())
    }
}

/// N-grams in rank order, with their new ids, which are taken out of `numbers`.
fn ranked(
    part: &Part<'_, '_>,
    numbers: &mut Numbers,
    base: &BaseTokenizer,
) -> Result<Vec<(TokenId, Vec<TokenId>)>> {
    let mut tokens = Tokens::new(part, base);
    let mut ranked = Vec::with_capacity(numbers.ngrams.len());
    let mut num_bytes = 0;
    for (key, _) in part.root.dict().map_err(part.refused())? {
        let ids = tokens.ids(key.tuple().map_err(part.refused())?, MAX_N)?;
        num_bytes += ids.iter().map(|id| base.bytes(*id).len()).sum::<usize>();
        if num_bytes > MAX_N_TOKEN_BYTES {
            let problem = format!("the n-grams stand for over {MAX_N_TOKEN_BYTES} bytes of text");
            return Err(Error::artefact(part.name, problem));
        }
        let Some((ids, new)) = numbers.ngrams.remove_entry(&ids) else {
            let text = String::from_utf8_lossy(&base.joined_bytes(&ids)).into_owned();
            return Err(Error::artefact(part.name, format!("{text:?} stands twice, or has no new id")));
        };
        ranked.push((new, ids));
    }
    Ok(ranked)
}

impl Part<'_, '_> {
    fn refused(&self) -> impl Fn(String) -> Error {
        let part = self.name;
        move |problem| Error::artefact(part, problem)
    }
}
