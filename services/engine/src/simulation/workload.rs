use std::time::Duration;

/// Who asks for what, and when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    arrivals: Vec<Arrival>,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// From the start.
    pub at: Duration,
    /// What it brings.
    pub prompt: Prompt,
    /// Tokens it takes, at least one.
    pub num_output: usize,
    /// Lower goes first, where the order is by priority.
    pub priority: i32,
}

/// A prompt by what it shares with others: its tokens are made when it arrives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Tokens.
    pub num_tokens: usize,
    /// What its beginning consists of: equal ids are equal tokens, `block_len` each. What they do not cover is unlike any
    /// other prompt's.
    pub block_ids: Vec<u64>,
    /// Tokens of one block.
    pub block_len: usize,
}

impl Workload {
    /// Sorts by arrival; those that arrive together keep their order.
    #[must_use]
    pub fn new(mut arrivals: Vec<Arrival>) -> Self {
        arrivals.sort_by_key(|arrival| arrival.at);
        Self { arrivals }
    }

    /// In order of arrival.
    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }
}

impl Prompt {
    /// A prompt that shares nothing with any other.
    #[must_use]
    pub fn unique(num_tokens: usize) -> Self {
        Self { num_tokens, ..Self::default() }
    }

    /// Its tokens, below `vocab_size`: the same ones for the same seed, block and position. `request` tells unique
    /// prompts apart.
    #[must_use]
    pub fn tokens(&self, seed: u64, request: u64, vocab_size: usize) -> Vec<u32> {
        let vocab_size = vocab_size.clamp(1, u32::MAX as usize) as u64;
        let unique = mix(mix(seed) ^ request);
        let token = |position: usize| {
            let block = position.checked_div(self.block_len).and_then(|idx| self.block_ids.get(idx));
            let stream = block.map_or(unique, |id| mix(!seed) ^ mix(*id));
            u32::try_from(mix(stream.wrapping_add(position as u64)) % vocab_size).unwrap_or(0)
        };
        (0..self.num_tokens).map(token).collect()
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): neighbouring numbers become unlike ones.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_the_blocks_they_share_and_no_more() {
        let prompt = |block_ids: &[u64], num_tokens| Prompt {
            num_tokens,
            block_ids: block_ids.to_vec(),
            block_len: 4,
        };
        let (first, second) =
            (prompt(&[7, 8, 9], 11).tokens(1, 0, 1000), prompt(&[7, 8, 5], 14).tokens(1, 1, 1000));
        assert_eq!(first[..8], second[..8]);
        assert!(first[8..].iter().zip(&second[8..]).all(|(first, second)| first != second));
        assert_eq!((first.len(), second.len()), (11, 14));
        assert_ne!(prompt(&[7], 4).tokens(2, 0, 1000)[..], first[..4], "another seed");
        assert_ne!(Prompt::unique(4).tokens(1, 0, 1000), Prompt::unique(4).tokens(1, 1, 1000));
        assert!(Prompt::unique(1000).tokens(1, 0, 3).iter().all(|token| *token < 3));
    }

    #[test]
    fn arrivals_are_in_order() {
        let arrival = |at, num_output| Arrival {
            at: Duration::from_secs(at),
            prompt: Prompt::unique(1),
            num_output,
            priority: 0,
        };
        let workload = Workload::new(vec![arrival(2, 1), arrival(1, 2), arrival(1, 3)]);
        let order: Vec<_> = workload.arrivals().iter().map(|arrival| arrival.num_output).collect();
        assert_eq!(order, [2, 3, 1]);
    }
}
