use super::symbols::Symbol;
use super::trie::{Match, Trie, UNIT};
use crate::TokenId;

/// Finds the cheapest segmentation of a row of base ids, and what it loses without one of its symbols. Its buffers are
/// used again and again. A row must have at most 2^15 ids, so that costs fit: no way is dearer than all base tokens.
#[derive(Default)]
pub(super) struct Paths {
    /// By place: the cheapest way to it.
    steps: Vec<Step>,
    matches: Vec<Match>,
    /// By place: the cost of the cheapest segmentation of what follows.
    costs_after: Vec<u32>,
    gaps: Vec<Gap>,
}

/// The cheapest way to a place: its cost, and its last symbol and where that starts.
#[derive(Clone, Copy)]
struct Step {
    cost: u32,
    symbol: Symbol,
    start: u32,
}

/// The first place inside a symbol of the segmentation, and the cost of the cheapest one without that symbol there.
struct Gap {
    place: u32,
    symbol: Symbol,
    cost: u32,
}

impl Paths {
    /// Appends the cheapest segmentation, without the symbol `without`.
    pub(super) fn segment(
        &mut self,
        trie: &Trie,
        ids: &[TokenId],
        without: Option<Symbol>,
        out: &mut Vec<Symbol>,
    ) {
        start_steps(&mut self.steps, ids.len());
        for start in 0..ids.len() {
            trie.matches(ids, start, |found| {
                if Some(found.symbol) != without {
                    improve(&mut self.steps, &found);
                }
            });
        }
        let first = out.len();
        follow_back(&self.steps, |step, _| out.push(step.symbol));
        out[first..].reverse();
    }

    /// As [`segment`](Self::segment), and appends by how many tokens the whole would be longer without each symbol.
    pub(super) fn segment_with_losses(
        &mut self,
        trie: &Trie,
        ids: &[TokenId],
        out: &mut Vec<Symbol>,
        losses: &mut Vec<u8>,
    ) {
        start_steps(&mut self.steps, ids.len());
        self.matches.clear();
        for start in 0..ids.len() {
            trie.matches(ids, start, |found| {
                improve(&mut self.steps, &found);
                self.matches.push(found);
            });
        }
        self.find_costs_after(ids.len());

        let Self { steps, costs_after, gaps, .. } = self;
        let first = out.len();
        gaps.clear();
        follow_back(steps, |step, end| {
            out.push(step.symbol);
            let place = step.start + 1;
            // A base token has no inside, and nothing can stand for it.
            let cost =
                if place == end { 0 } else { steps[place as usize].cost + costs_after[place as usize] };
            gaps.push(Gap { place, symbol: step.symbol, cost });
        });
        out[first..].reverse();
        gaps.reverse();
        self.find_ways_across();
        let cheapest = self.costs_after[0];
        let extra = |gap: &Gap| (gap.cost.saturating_sub(cheapest) + UNIT / 2) / UNIT;
        losses.extend(self.gaps.iter().map(|gap| extra(gap).min(u32::from(u8::MAX)) as u8));
    }

    fn find_costs_after(&mut self, len: usize) {
        let costs = &mut self.costs_after;
        costs.clear();
        costs.resize(len + 1, u32::MAX);
        costs[len] = 0;
        for found in self.matches.iter().rev() {
            let cost = costs[found.end as usize] + found.cost;
            let best = &mut costs[found.start as usize];
            *best = (*best).min(cost);
        }
    }

    /// A segmentation without the symbol around a gap has a border at the gap, or another symbol across it.
    fn find_ways_across(&mut self) {
        let mut next = 0;
        for found in &self.matches {
            while self.gaps.get(next).is_some_and(|gap| gap.place <= found.start) {
                next += 1;
            }
            let across = self.gaps[next..].iter_mut().take_while(|gap| gap.place < found.end);
            for gap in across.filter(|gap| gap.symbol != found.symbol) {
                let before = self.steps[found.start as usize].cost;
                let cost = before + found.cost + self.costs_after[found.end as usize];
                gap.cost = gap.cost.min(cost);
            }
        }
    }
}

fn start_steps(steps: &mut Vec<Step>, len: usize) {
    steps.clear();
    steps.resize(len + 1, Step { cost: u32::MAX, symbol: Symbol(0), start: 0 });
    steps[0].cost = 0;
}

/// Of two ways of equal cost the first found stays, whose last symbol is the longer one.
#[inline]
fn improve(steps: &mut [Step], found: &Match) {
    let cost = steps[found.start as usize].cost + found.cost;
    let step = &mut steps[found.end as usize];
    if cost < step.cost {
        *step = Step { cost, symbol: found.symbol, start: found.start };
    }
}

/// Calls `each` with the steps of the cheapest way, the last first, and where they end.
fn follow_back(steps: &[Step], mut each: impl FnMut(Step, u32)) {
    let mut end = steps.len() - 1;
    while end > 0 {
        each(steps[end], end as u32);
        end = steps[end].start as usize;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::places::Place;
    use super::super::symbols::Symbols;
    use super::*;

    const NUM_BASE: usize = 3;

    /// N-tokens joined from the symbols before them.
    fn symbols(pairs: &[(usize, usize)]) -> Symbols {
        let mut symbols = Symbols::new(&[Place::Any; NUM_BASE]);
        for (left, right) in pairs {
            let num = NUM_BASE + symbols.n_tokens().len();
            symbols.join(Symbol((left % num) as u32), Symbol((right % num) as u32));
            let joined = symbols.n_tokens().len() - 1;
            let is_new = !symbols.n_tokens()[..joined].contains(&symbols.n_tokens()[joined]);
            if !is_new || symbols.n_tokens()[joined].len() > 6 {
                let mut alive = vec![true; joined + 1];
                alive[joined] = false;
                symbols.retain(&alive);
            }
        }
        symbols
    }

    fn spelled(symbols: &Symbols, segmentation: &[Symbol]) -> Vec<TokenId> {
        let spell = |symbol: &Symbol| match symbols.as_n_token(*symbol) {
            Some(n_token) => symbols.n_tokens()[n_token].to_vec(),
            None => vec![TokenId(symbol.0)],
        };
        segmentation.iter().flat_map(spell).collect()
    }

    /// The fewest tokens, by trying everything, without `without` across a place.
    fn fewest(symbols: &Symbols, ids: &[TokenId], start: usize, without: Option<(Symbol, usize)>) -> usize {
        let Some(rest) = ids.get(start..).filter(|rest| !rest.is_empty()) else { return 0 };
        let base = 1 + fewest(symbols, ids, start + 1, without);
        let n_tokens = (0..symbols.n_tokens().len()).filter(|n_token| {
            let base = &symbols.n_tokens()[*n_token];
            let is_across = |place| start < place && place < start + base.len();
            let is_without =
                without.is_some_and(|(symbol, place)| symbol == symbols.symbol(*n_token) && is_across(place));
            rest.starts_with(base) && !is_without
        });
        n_tokens
            .map(|n_token| 1 + fewest(symbols, ids, start + symbols.n_tokens()[n_token].len(), without))
            .fold(base, usize::min)
    }

    proptest! {
        #[test]
        fn segmentations_and_losses_are_those_of_trying_everything(
            pairs in prop::collection::vec((0_usize..20, 0_usize..20), 0..12),
            ids in prop::collection::vec((0..NUM_BASE as u32).prop_map(TokenId), 1..13),
        ) {
            let symbols = symbols(&pairs);
            let trie = Trie::new(&symbols, |n_token| n_token as u32);
            let (mut paths, mut out, mut losses) = (Paths::default(), Vec::new(), Vec::new());
            paths.segment_with_losses(&trie, &ids, &mut out, &mut losses);
            prop_assert_eq!(spelled(&symbols, &out), &ids[..]);
            prop_assert_eq!(out.len(), fewest(&symbols, &ids, 0, None));
            let mut alone = Vec::new();
            paths.segment(&trie, &ids, None, &mut alone);
            prop_assert_eq!(&alone, &out);

            let mut start = 0;
            for (symbol, loss) in out.iter().zip(&losses) {
                let len = symbols.as_n_token(*symbol).map_or(1, |n_token| symbols.n_tokens()[n_token].len());
                let expected = match len {
                    1 => 0,
                    _ => fewest(&symbols, &ids, 0, Some((*symbol, start + 1))) - out.len(),
                };
                prop_assert_eq!(usize::from(*loss), expected);
                start += len;
            }
        }

        #[test]
        fn an_n_token_is_left_out_or_removed(
            pairs in prop::collection::vec((0_usize..20, 0_usize..20), 1..12),
            ids in prop::collection::vec((0..NUM_BASE as u32).prop_map(TokenId), 1..13),
        ) {
            let mut symbols = symbols(&pairs);
            prop_assume!(!symbols.n_tokens().is_empty());
            let mut trie = Trie::new(&symbols, |_| 0);
            let (mut paths, mut without, mut removed) = (Paths::default(), Vec::new(), Vec::new());
            paths.segment(&trie, &ids, Some(symbols.symbol(0)), &mut without);
            trie.remove(&symbols.n_tokens()[0]);
            paths.segment(&trie, &ids, None, &mut removed);
            prop_assert_eq!(&without, &removed);
            let mut alive = vec![true; symbols.n_tokens().len()];
            alive[0] = false;
            symbols.retain(&alive);
            prop_assert_eq!(removed.len(), fewest(&symbols, &ids, 0, None));
        }
    }
}
