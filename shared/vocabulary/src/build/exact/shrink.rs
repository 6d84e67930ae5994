use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::paths::Paths;
use super::symbols::{Symbol, Symbols};
use super::trie::Trie;
use crate::Result;
use crate::build::observer::{Observer, go_on};

/// Where many n-tokens go at once, what would have stood for one may go too. So a loss counts as this share, of 16, on the
/// way from what the corpus loses without this one alone to what it loses where all around it stays as it is. The former
/// alone costs 0.03 points of savings, the latter alone 0.07.
const CAUTION: u64 = 2;

/// Removes the n-tokens without which the corpus loses least.
pub(super) struct Shrink<'a> {
    pub(super) symbols: &'a Symbols,
    /// From which removed ones are taken out.
    pub(super) trie: &'a mut Trie,
    /// By n-token, as a pass counted them. Those of a removed one go to what stands for it.
    pub(super) uses: &'a mut [u64],
    pub(super) losses: &'a mut [u64],
}

impl Shrink<'_> {
    /// Removes `num` n-tokens, and all that are of no use; says which are left.
    pub(super) fn remove(&mut self, num: usize, observer: &dyn Observer) -> Result<Vec<bool>> {
        let mut is_alive = vec![true; self.symbols.n_tokens().len()];
        let (mut paths, mut parts) = (Paths::default(), Vec::new());
        // Of equal losses the later n-token goes first.
        let mut heap: BinaryHeap<_> = (0..is_alive.len())
            .map(|n_token| Reverse((self.loss(n_token, &mut paths, &mut parts), Reverse(n_token))))
            .collect();
        let mut num_removed = 0;
        while let Some(Reverse((known, Reverse(n_token)))) = heap.pop() {
            if num_removed >= num && known > 0 {
                break;
            }
            go_on(observer)?;
            // Each removal makes others dearer, never cheaper: so the first whose loss still holds is the least.
            let loss = self.loss(n_token, &mut paths, &mut parts);
            if loss > known {
                heap.push(Reverse((loss, Reverse(n_token))));
                continue;
            }
            is_alive[n_token] = false;
            num_removed += 1;
            self.replace(n_token, &parts);
        }
        Ok(is_alive)
    }

    /// What the corpus loses without an n-token; leaves in `parts` what would stand for it.
    fn loss(&self, n_token: usize, paths: &mut Paths, parts: &mut Vec<Symbol>) -> u64 {
        parts.clear();
        let ids = &self.symbols.n_tokens()[n_token];
        paths.segment(self.trie, ids, Some(self.symbols.symbol(n_token)), parts);
        let most = self.uses[n_token].saturating_mul(parts.len() as u64 - 1);
        let least = self.losses[n_token].min(most);
        least + (most - least).saturating_mul(CAUTION) / 16
    }

    fn replace(&mut self, n_token: usize, parts: &[Symbol]) {
        self.trie.remove(&self.symbols.n_tokens()[n_token]);
        let uses = std::mem::take(&mut self.uses[n_token]);
        for part in parts.iter().filter_map(|part| self.symbols.as_n_token(*part)) {
            self.uses[part] = self.uses[part].saturating_add(uses);
            self.losses[part] = self.losses[part].saturating_add(uses);
        }
    }
}
