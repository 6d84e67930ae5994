//! Chooses n-tokens so that text of the corpus's kind takes as few tokens as possible when it is segmented optimally: grows
//! a set of some three times as many candidates, pair by pair, and shrinks it by what the corpus loses without each.
//!
//! 1. The corpus is cut into *blocks*, which are documents or equal parts of long ones. Occurrences in one block count
//!    together to the power of 3/4 (`counts`), and half of what a pair's best block adds is taken off its worth.
//! 2. Each *pass* (`pass`) segments all blocks anew by all candidates (`trie`, `paths`) into the fewest tokens. Of equally
//!    short segmentations the one is taken whose n-tokens are used more, so that uses gather on few.
//! 3. *Growing*: 20 passes. Each counts pairs of neighbours by the base ids that they spell (`symbols`, `pairs`), and those
//!    worth most become candidates, in passes of rising size.
//! 4. *Shrinking*: 8 passes. Each counts how often every candidate is used, and by how many tokens the corpus would be
//!    longer without it; then those of the least loss go one by one, their uses going to what stands for them (`shrink`),
//!    in passes of falling size.
//! 5. If fewer remain than asked for, both again, with pairs that are worth less.
//!
//! With 10,000 n-tokens held-out text takes 1.2 to 2.0 points fewer tokens than by pair merging alone: 33 % (biomedical) to
//! 57 % (command help) fewer than base tokens, measured on five corpora with GPT-2's and Llama-3's tokenizer. Constants were
//! set on a tenth of each training corpus that was held out; their comments say what they bring there, in points of tokens
//! saved, where 0.02 is noise. Tried for at most that much: other powers from 0.6 to 0.8, more passes, adding and removing
//! by turns after them.
//!
//! Memory is bounded by constants, the number of n-tokens and the longest document; all totals are of 64 bits. All sums
//! are of whole numbers and all orders are total, so the number of threads changes nothing.

mod counts;
mod pairs;
mod pass;
mod paths;
mod places;
mod shrink;
mod symbols;
mod trie;

use std::cmp::Reverse;

use self::counts::{Discount, ONE};
use self::pairs::{NUM_TABLES, PairTable};
use self::pass::{Counted, Pass};
use self::shrink::Shrink;
use self::symbols::{Symbol, Symbols};
use self::trie::{Trie, UNIT};
use super::BuildRequest;
use super::observer::{Observer, Stage, Unit};
use super::spool::Spool;
use crate::base::BaseTokenizer;
use crate::{Error, Result, TokenId};

/// Candidates are this many times the n-tokens asked for, and some. Two times, with whole worth and a least worth of 2, cost
/// 0.12 points.
const CANDIDATES: usize = 3;
const MORE_CANDIDATES: usize = 64;

/// 10 instead of 20 cost 0.02 points for half the time; 40 bring nothing for 1.7 times the time.
const NUM_GROW_PASSES: usize = 20;
/// 16 or 20 instead of 8 bring 0.01 points.
const NUM_SHRINK_PASSES: usize = 8;

/// Pairs worth less do not become candidates: a pair in two blocks, once in each, just does.
const MIN_WORTH: u64 = ONE * 3 / 2;
/// The same where those are too few: a pair twice in one block just does.
const MIN_WORTH_AT_NEED: u64 = ONE * 3 / 4;

/// The surcharge of an n-token that is never used. Without any, 0.04 points are lost; ten or a hundred times as much is the
/// same.
const MAX_SURCHARGE: u32 = UNIT / 100;

/// Pairs counted at once, in all tables; they take 80 bytes each. Twice as many bring nothing, a fifth costs 0.04 points
/// (GPT-2's tokenizer, Rust documentation, 3.8 million tokens).
const MAX_PAIRS: usize = 1 << 19;

/// The n-tokens of the most value, most valuable first: by the base tokens that an n-token saves in the corpus,
/// discounted (its uses, times its base tokens less one).
///
/// # Errors
/// [`Error::NotReachable`] if there are fewer than asked for, [`Error::Cancelled`], [`Error::Spool`].
pub(super) fn choose(
    base: &BaseTokenizer,
    spool: &Spool,
    request: &BuildRequest<'_>,
    observer: &dyn Observer,
) -> Result<Vec<Vec<TokenId>>> {
    let symbols = Symbols::new(&places::of_base_tokens(base, request));
    let (num, max_n) = (request.add, request.max_n);
    let selector = Selector { spool, observer, max_n, discount: Discount::new(), symbols, uses: Vec::new() };
    let n_tokens = selector.select(num)?;
    if n_tokens.len() < num {
        return Err(Error::NotReachable { what: "n-tokens", asked: num, reachable: n_tokens.len() });
    }
    Ok(n_tokens)
}

struct Selector<'a> {
    spool: &'a Spool,
    observer: &'a dyn Observer,
    max_n: usize,
    discount: Discount,
    symbols: Symbols,
    /// By n-token, discounted, as last known.
    uses: Vec<u64>,
}

impl Selector<'_> {
    /// As many n-tokens, or fewer if the corpus repeats too little.
    fn select(mut self, num: usize) -> Result<Vec<Vec<TokenId>>> {
        let num_candidates = num.saturating_mul(CANDIDATES).saturating_add(MORE_CANDIDATES);
        self.grow(num_candidates, MIN_WORTH)?;
        self.shrink(num)?;
        while self.num() < num {
            let before = self.num();
            self.grow(num_candidates, MIN_WORTH_AT_NEED)?;
            self.shrink(num)?;
            if self.num() <= before {
                break;
            }
        }
        Ok(self.by_value())
    }

    fn num(&self) -> usize {
        self.symbols.n_tokens().len()
    }

    /// Adds candidates until there are `goal`, or no more pairs that are worth it.
    fn grow(&mut self, goal: usize, min_worth: u64) -> Result<()> {
        self.begin("finding candidates", NUM_GROW_PASSES);
        let start = self.num();
        let mut tables = std::array::from_fn(|_| PairTable::new(MAX_PAIRS / NUM_TABLES));
        for pass in 1..=NUM_GROW_PASSES {
            let trie = self.trie();
            self.uses = self.pass(&trie).count_pairs(&mut tables)?.uses;
            let now = start + share(goal.saturating_sub(start), pass, NUM_GROW_PASSES);
            let num_added = self.add_pairs(&tables, now.saturating_sub(self.num()), min_worth);
            if num_added == 0 && self.num() < now {
                break;
            }
        }
        Ok(())
    }

    /// Removes n-tokens until there are `goal`, and those of no use.
    fn shrink(&mut self, goal: usize) -> Result<()> {
        self.begin("choosing n-tokens", NUM_SHRINK_PASSES);
        let start = self.num();
        for pass in 1..=NUM_SHRINK_PASSES {
            let mut trie = self.trie();
            let Counted { mut uses, mut losses } = self.pass(&trie).count_losses()?;
            let rest = share(start.saturating_sub(goal), NUM_SHRINK_PASSES - pass, NUM_SHRINK_PASSES);
            let num_removed = self.num().saturating_sub(goal + rest);
            let mut shrink =
                Shrink { symbols: &self.symbols, trie: &mut trie, uses: &mut uses, losses: &mut losses };
            let is_alive = shrink.remove(num_removed, self.observer)?;
            self.symbols.retain(&is_alive);
            let uses = uses.into_iter().zip(is_alive);
            self.uses = uses.filter(|(_, is_alive)| *is_alive).map(|(uses, _)| uses).collect();
        }
        Ok(())
    }

    fn begin(&self, name: &'static str, num_passes: usize) {
        let total = self.spool.num_tokens().saturating_mul(num_passes as u64);
        self.observer.begin(&Stage { name, unit: Unit::Tokens, total: Some(total) });
    }

    fn trie(&self) -> Trie {
        Trie::new(&self.symbols, |n_token| surcharge(self.uses[n_token]))
    }

    fn pass<'a>(&'a self, trie: &'a Trie) -> Pass<'a> {
        Pass {
            spool: self.spool,
            observer: self.observer,
            discount: &self.discount,
            max_n: self.max_n,
            symbols: &self.symbols,
            trie,
        }
    }

    /// Makes candidates of the pairs worth most; how many. Two that spell the same share a key, and a pair that spells an
    /// n-token never stands in a segmentation of the fewest tokens, so none is there twice.
    fn add_pairs(&mut self, tables: &[PairTable; NUM_TABLES], num: usize, min_worth: u64) -> usize {
        let pairs = tables.iter().flat_map(PairTable::pairs);
        let mut pairs: Vec<(Reverse<u64>, Symbol, Symbol)> = pairs
            .map(|pair| (Reverse(pair.count.worth()), pair.left, pair.right))
            .filter(|(Reverse(worth), ..)| *worth >= min_worth)
            .collect();
        if num < pairs.len() {
            pairs.select_nth_unstable(num);
            pairs.truncate(num);
        }
        pairs.sort_unstable();
        for (Reverse(worth), left, right) in &pairs {
            self.symbols.join(*left, *right);
            self.uses.push(*worth);
        }
        pairs.len()
    }

    fn by_value(self) -> Vec<Vec<TokenId>> {
        let value = |uses: u64, ids: &[TokenId]| uses.saturating_mul(ids.len() as u64 - 1);
        let n_tokens = self.uses.iter().zip(self.symbols.into_n_tokens());
        let mut n_tokens: Vec<_> = n_tokens.map(|(uses, ids)| (Reverse(value(*uses, &ids)), ids)).collect();
        n_tokens.sort_unstable();
        n_tokens.into_iter().map(|(_, ids)| ids.into_vec()).collect()
    }
}

/// The less an n-token is used, the more it costs, so that uses gather on few.
fn surcharge(uses: u64) -> u32 {
    MAX_SURCHARGE / (2 + (uses / ONE).checked_ilog2().unwrap_or(0))
}

/// (`part` / `whole`)^1.5 of `num`: passes begin small, as what the first add is the most used part of what later ones
/// join. Roots alone, for these round alike on every machine.
fn share(num: usize, part: usize, whole: usize) -> usize {
    let power = |num: usize| (num as f64 * (num as f64).sqrt() * 1000.0) as usize;
    num.saturating_mul(power(part)) / power(whole)
}

#[cfg(test)]
mod tests;
