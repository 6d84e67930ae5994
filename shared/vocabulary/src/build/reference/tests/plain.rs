//! Comparison with the same rules written down plainly: every n-gram and every overlap counted on its own.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::token_text::TokenTexts;
use super::super::*;
use crate::build::Unobserved;

type Gram = Vec<usize>;

/// Texts of which each rule catches some.
const TEXTS: [&str; 9] = ["a", "▁b", "1", "²", "<0x0A>", "c\u{A0}", "d", "▁", "e"];

/// The list of n-tokens, with what holds a removed token taken out, and `num` of the rest.
fn plain(
    documents: &[Vec<usize>],
    removed: &[usize],
    max_n: usize,
    max: usize,
    num: usize,
) -> Vec<(Gram, i64)> {
    let mut freqs: HashMap<&[usize], i64> = HashMap::new();
    let mut order = Vec::new();
    for document in documents {
        for n in 2..=max_n {
            for gram in document.windows(n) {
                if gram[1..].iter().all(|token| !TEXTS[*token].starts_with('▁')) {
                    let freq = freqs.entry(gram).or_insert(0);
                    if *freq == 0 {
                        order.push(gram);
                    }
                    *freq += 1;
                }
            }
        }
    }
    order.retain(|gram| {
        !gram.iter().all(|token| ["1", "²"].contains(&TEXTS[*token]))
            && !gram.iter().any(|token| ["<0x0A>", "c\u{A0}"].contains(&TEXTS[*token]))
    });
    order.sort_by_key(|gram| -freqs[gram]);
    order.truncate(max);

    let mut occurrences = Vec::new();
    for (document, tokens) in documents.iter().enumerate() {
        for start in 0..tokens.len() {
            for end in start + 2..=tokens.len().min(start + max_n) {
                if order.contains(&&tokens[start..end]) {
                    occurrences.push((document, start, end, &tokens[start..end]));
                }
            }
        }
    }
    let mut affected: HashMap<&[usize], Vec<(&[usize], i64)>> = HashMap::new();
    for one in &occurrences {
        for other in &occurrences {
            if one != other && one.0 == other.0 && one.1.max(other.1) < one.2.min(other.2) {
                let row = affected.entry(one.3).or_default();
                match row.iter_mut().find(|(gram, _)| *gram == other.3) {
                    Some((_, times)) => *times += 1,
                    None => row.push((other.3, 1)),
                }
            }
        }
    }

    // The queue as a list, in the order in which its members got their frequencies.
    let mut queue: Vec<(&[usize], i64)> = order.iter().map(|gram| (*gram, freqs[gram])).collect();
    let mut chosen = Vec::new();
    while chosen.len() < num && !queue.is_empty() {
        let score = |(gram, freq): &(&[usize], i64)| freq * gram.len() as i64;
        let best = queue.iter().map(score).max().unwrap();
        let place = queue.iter().position(|entry| score(entry) == best).unwrap();
        let (gram, freq) = queue.remove(place);
        for (other, times) in affected.get(gram).into_iter().flatten().filter(|(_, times)| *times >= 3) {
            if let Some(place) = queue.iter().position(|(gram, _)| gram == other) {
                let (gram, freq) = queue.remove(place);
                queue.push((gram, freq - times));
            }
        }
        if !gram.iter().any(|token| removed.contains(token)) {
            chosen.push((gram.to_vec(), freq));
        }
    }
    chosen
}

proptest! {
    #[test]
    fn counting_and_choosing_follow_the_rules(
        documents in prop::collection::vec(prop::collection::vec(0_usize..TEXTS.len(), 0..120), 1..4),
        removed in prop::collection::btree_set(0_usize..TEXTS.len(), 1..6),
        max_n in 2_usize..6,
    ) {
        let texts = TokenTexts::of(TEXTS);
        let id = |token: &usize| TokenId(*token as u32);
        let corpus: Vec<Vec<TokenId>> =
            documents.iter().map(|document| document.iter().map(id).collect()).collect();
        let removed: Vec<usize> = removed.into_iter().collect();
        let max = NGRAMS_PER_TOKEN * TEXTS.len();
        let expected = plain(&documents, &removed, max_n, max, removed.len());

        let ids: Vec<TokenId> = removed.iter().map(id).collect();
        match choose_n_tokens(&texts, &Spool::of(&corpus), &ids, ids.len(), max_n, &Unobserved) {
            Ok(chosen) => {
                let token = |id: &TokenId| id.row();
                let chosen: Vec<_> = chosen
                    .iter()
                    .map(|ranked| (ranked.base.iter().map(token).collect::<Vec<_>>(), ranked.freq))
                    .collect();
                prop_assert_eq!(chosen, expected);
            }
            Err(Error::NotReachable { reachable, .. }) => {
                prop_assert!(expected.len() < removed.len());
                prop_assert_eq!(reachable, expected.len());
            }
            Err(other) => panic!("{other}"),
        }
    }
}
