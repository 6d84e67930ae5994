use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::{PatchVocabulary, Segmentation, TokenId};

/// Lays a patch vocabulary over base ids: removed tokens become their parts, and n-tokens take the place of the base
/// tokens they stand for, greedily or optimally.
pub(crate) struct Segmenter {
    segmentation: Segmentation,
    /// By base id: what stands for it before n-tokens are looked for; empty for itself.
    parts: Vec<Box<[TokenId]>>,
    /// By base id: its model id; none for a removed one.
    model_ids: Vec<Option<TokenId>>,
    /// By rank.
    n_tokens: Vec<TokenId>,
    trie: Trie,
}

/// Base ids whose tokens may still depend on what follows them.
#[derive(Default)]
pub(crate) struct Undecided {
    /// After removal.
    base: Vec<TokenId>,
    /// By place between base ids: the best way to it from the first place; `steps[0]` is that place itself.
    steps: Vec<Option<Step>>,
    /// Places from which all steps are known.
    num_walked: usize,
}

/// The best way to a place, by its last token.
#[derive(Clone, Copy)]
struct Step {
    cost: Cost,
    num_base: u32,
    token: TokenId,
}

/// What is made small: first the number of tokens, then the sum of their ranks, where a base token counts as standing
/// behind the last n-token of the list.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    num_tokens: u32,
    ranks: u64,
}

/// How many base ids are taken at once: the best ways to their places stay in the nearest cache.
const BLOCK: usize = 1024;

impl Segmenter {
    pub(crate) fn new(patch: &PatchVocabulary) -> Self {
        let mut parts = vec![Box::default(); patch.base_vocab_size()];
        for removed in patch.removed() {
            parts[removed.id.row()] = removed.parts.clone().into();
        }
        let base_ids = (0..).map(TokenId).take(patch.base_vocab_size());
        Self {
            segmentation: patch.segmentation(),
            parts,
            model_ids: base_ids.map(|id| patch.model_id(id)).collect(),
            n_tokens: patch.n_tokens().iter().map(|n_token| n_token.id).collect(),
            trie: Trie::new(patch.n_tokens().iter().map(|n_token| &n_token.base[..])),
        }
    }

    /// Takes more base ids and appends the model ids that are decided.
    pub(crate) fn push(&self, undecided: &mut Undecided, base_ids: &[TokenId], out: &mut Vec<TokenId>) {
        for block in base_ids.chunks(BLOCK) {
            for id in block {
                match self.parts.get(id.row()) {
                    Some(parts) if !parts.is_empty() => undecided.base.extend_from_slice(parts),
                    _ => undecided.base.push(*id),
                }
            }
            match self.segmentation {
                Segmentation::Greedy => self.step_greedily(undecided, false, out),
                Segmentation::Optimal => {
                    self.walk(undecided, false);
                    let place = undecided.common_place();
                    undecided.commit(place, out);
                }
            }
        }
    }

    /// Appends the model ids of all that is left: no more base ids follow.
    pub(crate) fn finish(&self, mut undecided: Undecided, out: &mut Vec<TokenId>) {
        match self.segmentation {
            Segmentation::Greedy => self.step_greedily(&mut undecided, true, out),
            Segmentation::Optimal => {
                self.walk(&mut undecided, true);
                let place = undecided.base.len();
                undecided.commit(place, out);
            }
        }
    }

    /// At each place the first n-token of the list that matches, else the base token.
    fn step_greedily(&self, undecided: &mut Undecided, is_last: bool, out: &mut Vec<TokenId>) {
        let mut rest = undecided.base.as_slice();
        while !rest.is_empty() {
            let mut first: Option<(u32, usize)> = None;
            let is_decided = self.trie.matches(rest, |rank, num_base| {
                if first.is_none_or(|(first, _)| rank < first) {
                    first = Some((rank, num_base));
                }
            });
            if !is_decided && !is_last {
                break;
            }
            match first {
                Some((rank, num_base)) => {
                    out.push(self.n_tokens[rank as usize]);
                    rest = &rest[num_base..];
                }
                None => {
                    out.push(self.model_id(rest[0]));
                    rest = &rest[1..];
                }
            }
        }
        let num_decided = undecided.base.len() - rest.len();
        undecided.base.drain(..num_decided);
    }

    /// Finds the best way to every place that can be reached by tokens known so far.
    fn walk(&self, undecided: &mut Undecided, is_last: bool) {
        let Undecided { base, steps, num_walked } = undecided;
        steps.resize(base.len() + 1, None);
        let first = || Step { cost: Cost::default(), num_base: 0, token: TokenId(0) };
        steps[0].get_or_insert_with(first);
        while *num_walked < base.len() {
            let place = *num_walked;
            // A base token leads from every place to the next, so there is a way to each.
            let cost = steps[place].map_or_else(Cost::default, |step| step.cost);
            let rank = self.n_tokens.len() as u64;
            improve(&mut steps[place + 1], cost.and(rank), 1, self.model_id(base[place]));
            let is_decided = self.trie.matches(&base[place..], |rank, num_base| {
                let token = self.n_tokens[rank as usize];
                improve(&mut steps[place + num_base], cost.and(u64::from(rank)), num_base, token);
            });
            if !is_decided && !is_last {
                break;
            }
            *num_walked += 1;
        }
    }

    /// Removed tokens have become their parts, so every base id has a model id.
    fn model_id(&self, base: TokenId) -> TokenId {
        self.model_ids.get(base.row()).copied().flatten().unwrap_or(base)
    }
}

/// Of two ways of equal cost the first found stays, whose last token is the longer one.
fn improve(step: &mut Option<Step>, cost: Cost, num_base: usize, token: TokenId) {
    if step.is_none_or(|step| cost < step.cost) {
        *step = Some(Step { cost, num_base: num_base as u32, token });
    }
}

impl Cost {
    fn and(self, rank: u64) -> Self {
        Self { num_tokens: self.num_tokens + 1, ranks: self.ranks + rank }
    }

    fn since(self, start: Self) -> Self {
        Self { num_tokens: self.num_tokens - start.num_tokens, ranks: self.ranks.saturating_sub(start.ranks) }
    }
}

impl Undecided {
    /// The last place that every way leads through, whatever follows.
    fn common_place(&self) -> usize {
        let mut is_on_way: Vec<bool> = (0..self.steps.len())
            .map(|place| place >= self.num_walked && self.steps[place].is_some())
            .collect();
        let mut num_ways = is_on_way.iter().filter(|is| **is).count();
        for place in (0..self.steps.len()).rev() {
            if !is_on_way[place] {
                continue;
            }
            if num_ways == 1 {
                return place;
            }
            // The way to this place joins the one to the place before its last token.
            let before = place - self.steps[place].map_or(0, |step| step.num_base as usize);
            if is_on_way[before] {
                num_ways -= 1;
            }
            is_on_way[before] = true;
        }
        0
    }

    /// Appends the tokens up to a place, which becomes the first.
    fn commit(&mut self, place: usize, out: &mut Vec<TokenId>) {
        if place == 0 {
            return;
        }
        let start = out.len();
        let mut at = place;
        while let Some(Some(step)) = self.steps.get(at)
            && at > 0
        {
            out.push(step.token);
            at -= step.num_base as usize;
        }
        out[start..].reverse();
        self.base.drain(..place);
        self.steps.drain(..place);
        self.num_walked = self.num_walked.saturating_sub(place);
        let cost = self.steps.first().copied().flatten().map_or_else(Cost::default, |step| step.cost);
        self.steps.iter_mut().flatten().for_each(|step| step.cost = step.cost.since(cost));
    }
}

/// The n-tokens by their base ids, so that a place costs at most the longest n-token, not the number of n-tokens.
struct Trie {
    /// By base id: the node after it, or `NONE`; most places end here.
    roots: Vec<u32>,
    /// By node and base id: the node after both.
    children: HashMap<u64, u32, FixedState>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
struct Node {
    rank: u32,
    has_children: bool,
}

const NONE: u32 = u32::MAX;

impl Trie {
    /// `n_tokens` in rank order.
    fn new<'a>(n_tokens: impl Iterator<Item = &'a [TokenId]>) -> Self {
        let mut trie = Self {
            roots: Vec::new(),
            children: HashMap::with_hasher(FixedState::with_seed(0)),
            nodes: Vec::new(),
        };
        for (rank, base) in (0..NONE).zip(n_tokens) {
            let Some((first, rest)) = base.split_first() else { continue };
            if trie.roots.len() <= first.row() {
                trie.roots.resize(first.row() + 1, NONE);
            }
            if trie.roots[first.row()] == NONE {
                trie.roots[first.row()] = trie.nodes.len() as u32;
                trie.nodes.push(Node { rank: NONE, has_children: false });
            }
            let mut node = trie.roots[first.row()];
            for id in rest {
                trie.nodes[node as usize].has_children = true;
                let next = trie.nodes.len() as u32;
                let child = *trie.children.entry(edge(node, *id)).or_insert(next);
                if child == next {
                    trie.nodes.push(Node { rank: NONE, has_children: false });
                }
                node = child;
            }
            // The first of equal ones stays.
            let node = &mut trie.nodes[node as usize];
            node.rank = node.rank.min(rank);
        }
        trie
    }

    /// Says the rank and number of base ids of every n-token at the beginning of `ids`, short ones first. False where one
    /// that is longer than `ids` may begin there.
    fn matches(&self, ids: &[TokenId], mut found: impl FnMut(u32, usize)) -> bool {
        let Some((first, rest)) = ids.split_first() else { return false };
        let Some(mut node) = self.roots.get(first.row()).copied().filter(|node| *node != NONE) else {
            return true;
        };
        for (num_before, id) in (1..).zip(rest) {
            let Some(child) = self.children.get(&edge(node, *id)) else { return true };
            node = *child;
            let rank = self.nodes[node as usize].rank;
            if rank != NONE {
                found(rank, num_before + 1);
            }
        }
        !self.nodes[node as usize].has_children
    }
}

fn edge(node: u32, id: TokenId) -> u64 {
    u64::from(node) << 32 | u64::from(id.0)
}

#[cfg(test)]
mod tests;
