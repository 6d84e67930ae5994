use crate::base::BaseTokenizer;
use crate::{Mode, NToken, PatchContent, Removed, Segmentation, TokenId};

/// Gives model ids. Kept tokens keep their base ids, so that an adapted model's rows stay where they were; n-tokens take
/// the removed tokens' ids, in rank order, and those that find none left come after the base vocabulary. Where more
/// tokens are removed than added the vocabulary shrinks, and kept tokens past its end move into the places left.
pub(super) fn of(
    base: &BaseTokenizer,
    mode: Mode,
    segmentation: Segmentation,
    removed: Vec<Removed>,
    n_tokens: Vec<Vec<TokenId>>,
) -> PatchContent {
    let base_vocab_size = base.vocab_size();
    let vocab_size = base_vocab_size - removed.len() + n_tokens.len();
    let mut model_ids: Vec<_> = (0..base_vocab_size as u32).map(|id| Some(TokenId(id))).collect();
    removed.iter().for_each(|removed| model_ids[removed.id.row()] = None);

    let is_free: Vec<bool> =
        (0..vocab_size).map(|row| !matches!(model_ids.get(row), Some(Some(_)))).collect();
    let mut free = (0..vocab_size as u32).filter(|id| is_free[*id as usize]).map(TokenId);
    let text = |ids: &[TokenId]| String::from_utf8_lossy(&base.joined_bytes(ids)).into_owned();
    // The list before the ids: `zip` would lose the id that it takes last.
    let n_tokens = n_tokens.into_iter().zip(free.by_ref());
    let n_tokens = n_tokens.map(|(base, id)| NToken { id, text: text(&base), base }).collect();
    for moved in model_ids.iter_mut().skip(vocab_size).filter(|id| id.is_some()) {
        *moved = free.next();
    }
    PatchContent { base_tokenizer: base.hash(), mode, segmentation, model_ids, removed, n_tokens }
}
