use rayon::prelude::*;

use super::counts::{Count, Discount};
use super::pairs::{NUM_TABLES, PairTable, table_of};
use super::paths::Paths;
use super::symbols::{Symbol, Symbols};
use super::trie::Trie;
use crate::build::observer::{Observer, go_on};
use crate::build::spool::Spool;
use crate::{Result, TokenId};

/// A document longer than a 128th of the corpus, within these bounds, counts as several blocks: else the discount of what
/// one document repeats would weigh down a corpus of few long ones.
const MIN_BLOCK: u64 = 1 << 8;
const MAX_BLOCK: u64 = 1 << 14;
const MIN_BLOCKS: u64 = 128;

/// Blocks are segmented in groups that reach so many tokens: enough of them to keep threads busy.
const GROUP_TOKENS: usize = 1 << 15;

/// One pass over the corpus: segments it and counts n-tokens, and either pairs of neighbours or what the corpus would lose
/// without each n-token.
pub(super) struct Pass<'a> {
    pub(super) spool: &'a Spool,
    pub(super) observer: &'a dyn Observer,
    pub(super) discount: &'a Discount,
    pub(super) max_n: usize,
    pub(super) symbols: &'a Symbols,
    pub(super) trie: &'a Trie,
}

/// What a pass counted of each n-token, discounted.
pub(super) struct Counted {
    pub(super) uses: Vec<u64>,
    /// By how many tokens the corpus would be longer without it; zeros where pairs were counted.
    pub(super) losses: Vec<u64>,
}

/// A group of segmented blocks.
#[derive(Default)]
struct Segmented {
    symbols: Vec<Symbol>,
    /// By symbol; empty where pairs are counted.
    losses: Vec<u8>,
    /// Where each block ends.
    ends: Vec<usize>,
}

/// Counts a share of the n-tokens, every so manieth, and of the tables. Each sees all symbols of the corpus in order, so
/// that the number of shares changes nothing.
struct Counter<'a> {
    share: usize,
    num_shares: usize,
    /// By n-token of the share.
    uses: Vec<Count>,
    losses: Vec<u64>,
    tables: [Option<&'a mut PairTable>; NUM_TABLES],
    block: u32,
}

impl Pass<'_> {
    /// Fills the tables with pairs.
    pub(super) fn count_pairs(&self, tables: &mut [PairTable; NUM_TABLES]) -> Result<Counted> {
        tables.par_iter_mut().for_each(PairTable::clear);
        let mut counters = self.counters();
        let num_shares = counters.len();
        for (idx, table) in tables.iter_mut().enumerate() {
            counters[idx % num_shares].tables[idx] = Some(table);
        }
        self.run(counters, false)
    }

    pub(super) fn count_losses(&self) -> Result<Counted> {
        self.run(self.counters(), true)
    }

    fn counters(&self) -> Vec<Counter<'_>> {
        let num_shares = rayon::current_num_threads().clamp(1, NUM_TABLES);
        let num = self.symbols.n_tokens().len().div_ceil(num_shares);
        let counter = |share| Counter {
            share,
            num_shares,
            uses: vec![Count::default(); num],
            losses: vec![0; num],
            tables: [const { None }; NUM_TABLES],
            block: 0,
        };
        (0..num_shares).map(counter).collect()
    }

    fn run(&self, mut counters: Vec<Counter<'_>>, with_losses: bool) -> Result<Counted> {
        let max_block = (self.spool.num_tokens() / MIN_BLOCKS).clamp(MIN_BLOCK, MAX_BLOCK) as usize;
        self.spool.for_each_chunk(|chunk| {
            let blocks: Vec<_> = chunk.documents().flat_map(|document| blocks(document, max_block)).collect();
            let segmented = groups(&blocks)
                .into_par_iter()
                .with_max_len(1)
                .map_init(Paths::default, |paths, blocks| self.segment(blocks, with_losses, paths))
                .collect::<Result<Vec<_>>>()?;
            counters.par_iter_mut().with_max_len(1).for_each(|counter| counter.count(self, &segmented));
            Ok(())
        })?;
        let num = self.symbols.n_tokens().len();
        let of = |n_token: usize| (&counters[n_token % counters.len()], n_token / counters.len());
        Ok(Counted {
            uses: (0..num).map(of).map(|(counter, idx)| counter.uses[idx].worth()).collect(),
            losses: (0..num).map(of).map(|(counter, idx)| counter.losses[idx]).collect(),
        })
    }

    fn segment(&self, blocks: &[&[TokenId]], with_losses: bool, paths: &mut Paths) -> Result<Segmented> {
        let mut segmented = Segmented::default();
        for ids in blocks {
            go_on(self.observer)?;
            let Segmented { symbols, losses, ends } = &mut segmented;
            if with_losses {
                paths.segment_with_losses(self.trie, ids, symbols, losses);
            } else {
                paths.segment(self.trie, ids, None, symbols);
            }
            ends.push(symbols.len());
            self.observer.advance(ids.len() as u64);
        }
        Ok(segmented)
    }
}

impl Counter<'_> {
    fn count(&mut self, pass: &Pass<'_>, segmented: &[Segmented]) {
        let counts_pairs = self.tables.iter().any(Option::is_some);
        for group in segmented {
            let mut start = 0;
            for end in group.ends.iter().copied() {
                self.block = self.block.wrapping_add(1);
                let losses = group.losses.get(start..end).unwrap_or_default();
                self.count_uses(pass, &group.symbols[start..end], losses);
                if counts_pairs {
                    self.count_block_pairs(pass, &group.symbols[start..end]);
                }
                start = end;
            }
        }
    }

    fn count_uses(&mut self, pass: &Pass<'_>, block: &[Symbol], losses: &[u8]) {
        for (at, symbol) in block.iter().enumerate() {
            let Some(n_token) = pass.symbols.as_n_token(*symbol) else { continue };
            if n_token % self.num_shares != self.share {
                continue;
            }
            let idx = n_token / self.num_shares;
            let step = self.uses[idx].add(self.block, pass.discount);
            self.losses[idx] += step * losses.get(at).map_or(0, |loss| u64::from(*loss));
        }
    }

    fn count_block_pairs(&mut self, pass: &Pass<'_>, block: &[Symbol]) {
        let joins = pass.symbols.joins();
        let mut was_twin = false;
        for pair in block.windows(2) {
            let (left, right) = (pair[0], pair[1]);
            // In a run of equal symbols each can be part of one pair only.
            let is_overlap = left == right && was_twin;
            was_twin = left == right && !is_overlap;
            if is_overlap {
                continue;
            }
            if let Some(key) = joins[left.idx()].with(&joins[right.idx()], pass.max_n)
                && let Some(table) = &mut self.tables[table_of(key)]
            {
                table.add(key, (left, right), self.block, pass.discount);
            }
        }
    }
}

/// A document in equal parts of at most `max_block` ids.
fn blocks(document: &[TokenId], max_block: usize) -> impl Iterator<Item = &[TokenId]> {
    let (len, num) = (document.len(), document.len().div_ceil(max_block));
    (0..num).map(move |part| &document[len * part / num..len * (part + 1) / num])
}

fn groups<'a, 'b>(blocks: &'b [&'a [TokenId]]) -> Vec<&'b [&'a [TokenId]]> {
    let (mut groups, mut start, mut num_tokens) = (Vec::new(), 0, 0);
    for (idx, block) in blocks.iter().enumerate() {
        num_tokens += block.len();
        if num_tokens >= GROUP_TOKENS || idx + 1 == blocks.len() {
            groups.push(&blocks[start..=idx]);
            (start, num_tokens) = (idx + 1, 0);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_groups_leave_nothing_out() {
        let ids: Vec<_> = (0..100_001).map(TokenId).collect();
        let cut: Vec<_> = blocks(&ids, 1000).collect();
        assert!(cut.iter().all(|block| (990..=1000).contains(&block.len())));
        assert_eq!(cut.concat(), ids);
        let grouped = groups(&cut);
        assert_eq!(grouped.len(), 3);
        assert_eq!(grouped.concat().concat(), ids);
        assert!(groups(&[]).is_empty());
        assert_eq!(blocks(&[TokenId(1)], 1000).count(), 1);
    }
}
