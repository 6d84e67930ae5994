use proptest::prelude::*;

use super::*;
use crate::{Mode, NToken, PatchContent, Removed};

const NUM_BASE: u32 = 5;

/// Base ids 0 to 4, of which 4 is removed and reads as 0 and 1; n-tokens of random base ids on top.
fn patch(n_tokens: &[Vec<u32>], segmentation: Segmentation) -> PatchVocabulary {
    let is_free = |base: &&Vec<u32>| !base.contains(&4);
    let mut bases: Vec<_> = n_tokens.iter().filter(is_free).cloned().collect();
    let mut seen = std::collections::HashSet::new();
    bases.retain(|base| seen.insert(base.clone()));
    let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
    if bases.is_empty() {
        bases.push(vec![3, 3, 3, 3]);
    }
    let n_tokens =
        (4..).zip(&bases).map(|(id, base)| NToken { id: TokenId(id), base: ids(base), text: String::new() });
    // One n-token takes the removed token's place; several extend the vocabulary.
    let n_tokens: Vec<_> = n_tokens.collect();
    let mut extend = PatchContent {
        base_tokenizer: crate::fingerprint(b"{}", None).unwrap(),
        mode: Mode::Replace,
        segmentation,
        model_ids: (0..NUM_BASE).map(|id| (id < 4).then_some(TokenId(id))).collect(),
        removed: vec![Removed { id: TokenId(4), parts: ids(&[0, 1]), text: String::new() }],
        n_tokens: n_tokens[..1].to_vec(),
    };
    if n_tokens.len() > 1 {
        extend.mode = Mode::Extend;
        extend.model_ids = (0..NUM_BASE).map(|id| Some(TokenId(id))).collect();
        extend.removed.clear();
        extend.n_tokens = n_tokens.into_iter().map(|n| NToken { id: TokenId(n.id.0 + 1), ..n }).collect();
    }
    PatchVocabulary::new(extend).unwrap()
}

fn segment(patch: &PatchVocabulary, pieces: &[&[TokenId]]) -> Vec<TokenId> {
    let segmenter = Segmenter::new(patch);
    let (mut undecided, mut out) = (Undecided::default(), Vec::new());
    for piece in pieces {
        segmenter.push(&mut undecided, piece, &mut out);
    }
    segmenter.finish(undecided, &mut out);
    out
}

fn expand(patch: &PatchVocabulary, ids: &[TokenId]) -> Vec<TokenId> {
    ids.iter()
        .flat_map(|id| match patch.row(*id).unwrap() {
            crate::Row::Base(id) => vec![id],
            crate::Row::NToken(base) => base.to_vec(),
        })
        .collect()
}

fn reduced(patch: &PatchVocabulary, base: &[TokenId]) -> Vec<TokenId> {
    let parts = |id: &TokenId| patch.removed().iter().find(|removed| removed.id == *id);
    base.iter().flat_map(|id| parts(id).map_or(vec![*id], |removed| removed.parts.clone())).collect()
}

fn cost(patch: &PatchVocabulary, ids: &[TokenId]) -> (usize, usize) {
    let rank = |id: &TokenId| patch.n_tokens().iter().position(|n_token| n_token.id == *id);
    (ids.len(), ids.iter().map(|id| rank(id).unwrap_or(patch.n_tokens().len())).sum())
}

/// By trying every segmentation.
fn least_cost(patch: &PatchVocabulary, base: &[TokenId]) -> (usize, usize) {
    let Some((_, rest)) = base.split_first() else { return (0, 0) };
    let and = |rank: usize, (num, ranks): (usize, usize)| (num + 1, ranks + rank);
    let n_tokens = patch.n_tokens().iter().enumerate().filter(|(_, n_token)| base.starts_with(&n_token.base));
    n_tokens
        .map(|(rank, n_token)| and(rank, least_cost(patch, &base[n_token.base.len()..])))
        .chain([and(patch.n_tokens().len(), least_cost(patch, rest))])
        .min()
        .unwrap()
}

/// By the definition.
fn greedy(patch: &PatchVocabulary, mut base: &[TokenId]) -> Vec<TokenId> {
    let mut out = Vec::new();
    while let Some((first, rest)) = base.split_first() {
        match patch.n_tokens().iter().find(|n_token| base.starts_with(&n_token.base)) {
            Some(n_token) => {
                out.push(n_token.id);
                base = &base[n_token.base.len()..];
            }
            None => {
                out.push(patch.model_id(*first).unwrap());
                base = rest;
            }
        }
    }
    out
}

fn n_tokens() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0..4_u32, 2..6), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn optimal_is_the_least_of_all(n_tokens in n_tokens(), base in prop::collection::vec(0..NUM_BASE, 0..10)) {
        let patch = patch(&n_tokens, Segmentation::Optimal);
        let base: Vec<_> = base.into_iter().map(TokenId).collect();
        let ids = segment(&patch, &[&base]);
        prop_assert_eq!(expand(&patch, &ids), reduced(&patch, &base));
        prop_assert_eq!(cost(&patch, &ids), least_cost(&patch, &reduced(&patch, &base)));
    }

    #[test]
    fn greedy_takes_the_first_of_the_list(n_tokens in n_tokens(), base in prop::collection::vec(0..NUM_BASE, 0..40)) {
        let patch = patch(&n_tokens, Segmentation::Greedy);
        let base: Vec<_> = base.into_iter().map(TokenId).collect();
        prop_assert_eq!(segment(&patch, &[&base]), greedy(&patch, &reduced(&patch, &base)));
    }

    /// Long enough for many blocks, over few base ids, so that ways stay apart for long.
    #[test]
    fn pieces_give_what_the_whole_gives(
        n_tokens in n_tokens(),
        base in prop::collection::vec(0..NUM_BASE, 0..5000),
        cuts in prop::collection::vec(0..5000_usize, 0..8),
        segmentation in prop::sample::select(vec![Segmentation::Greedy, Segmentation::Optimal]),
    ) {
        let patch = patch(&n_tokens, segmentation);
        let base: Vec<_> = base.into_iter().map(TokenId).collect();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(base.len())).chain([0, base.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &base[cut[0]..cut[1]]).collect();
        prop_assert_eq!(segment(&patch, &pieces), segment(&patch, &[&base]));
    }
}

#[test]
fn what_nothing_can_change_is_said_at_once() {
    let patch = patch(&[vec![0, 1, 2]], Segmentation::Optimal);
    let segmenter = Segmenter::new(&patch);
    let (mut undecided, mut out) = (Undecided::default(), Vec::new());
    let mut push = |ids: &[u32]| {
        let ids: Vec<_> = ids.iter().copied().map(TokenId).collect();
        segmenter.push(&mut undecided, &ids, &mut out);
        out.len()
    };
    assert_eq!(push(&[1, 2, 2]), 3);
    assert_eq!(push(&[0]), 3);
    assert_eq!(push(&[1]), 3);
    assert_eq!(push(&[2]), 4);
}
