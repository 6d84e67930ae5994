/// Discounted counts are whole numbers of this part of an occurrence.
pub(super) const ONE: u64 = 1 << 10;

/// Occurrences in one block beyond this count as much as the last before.
const MAX_STEPS: usize = 1 << 12;

/// What occurrences in one block count together: so many to the power of three quarters, since what one document repeats
/// says little about others. Roots alone, for these round alike on every machine.
pub(super) struct Discount {
    /// By occurrences before in the block: what the next one adds.
    steps: Vec<u32>,
}

impl Discount {
    pub(super) fn new() -> Self {
        let power = |num: usize| {
            let root = (num as f64).sqrt();
            root * root.sqrt()
        };
        let total = |num: usize| (power(num) * ONE as f64).round() as u32;
        Self { steps: (0..MAX_STEPS).map(|num| total(num + 1) - total(num)).collect() }
    }

    #[inline]
    fn step(&self, num_before: u32) -> u32 {
        self.steps[(num_before as usize).min(MAX_STEPS - 1)]
    }
}

/// A discounted count; blocks must come one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    total: u64,
    /// The largest share of one block.
    most: u32,
    in_block: u32,
    num_in_block: u32,
    block: u32,
}

impl Count {
    pub(super) const ZERO: Self = Self { total: 0, most: 0, in_block: 0, num_in_block: 0, block: 0 };

    /// Adds an occurrence; what it counts. `block` may wrap round: it is only told from the block before.
    #[inline]
    pub(super) fn add(&mut self, block: u32, discount: &Discount) -> u64 {
        if self.block != block {
            (self.block, self.in_block, self.num_in_block) = (block, 0, 0);
        }
        let step = discount.step(self.num_in_block);
        self.num_in_block = self.num_in_block.saturating_add(1);
        self.in_block = self.in_block.saturating_add(step);
        self.most = self.most.max(self.in_block);
        self.total += u64::from(step);
        u64::from(step)
    }

    /// The total, less half of what the block with the most occurrences adds: that one may be why it was noticed.
    #[inline]
    pub(super) fn worth(&self) -> u64 {
        self.total - u64::from(self.most / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_to_the_power_of_three_quarters() {
        let discount = Discount::new();
        let worth = |blocks: &[u32]| {
            let mut count = Count::default();
            blocks.iter().for_each(|block| {
                count.add(*block, &discount);
            });
            count.worth()
        };
        assert_eq!(worth(&[]), 0);
        assert_eq!(worth(&[1]), ONE / 2);
        assert_eq!(worth(&[1, 2]), ONE * 3 / 2);
        assert_eq!(worth(&[1; 16]), ONE * 4);
        assert_eq!(worth(&[[1; 16], [2; 16], [3; 16]].concat()), ONE * 20);
        // The numbers of blocks wrap round.
        assert_eq!(worth(&[u32::MAX, 0]), worth(&[1, 2]));
        // Beyond the table the steps stay, and never are 0.
        let long = worth(&vec![1; MAX_STEPS * 4]) - worth(&vec![1; MAX_STEPS * 3]);
        assert_eq!(long, MAX_STEPS as u64 * u64::from(discount.step(u32::MAX)) / 2);
        assert!(long > 0);
    }
}
