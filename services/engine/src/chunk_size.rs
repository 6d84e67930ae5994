use crate::ChunkSchedule;

/// Chunks over this many tokens are multiples of it, so that they fill whole tiles of a matrix product.
const TILE: usize = 64;
/// A chunk has at least so many tokens where the budget leaves them, or many decodes would keep a prompt from ever ending.
const MIN_CHUNK_TOKENS: usize = 32;

/// How much of what a step's token budget leaves a chunk of a prompt takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// All of it, however long the context before the chunk.
    Budget,
    /// So many tokens that the step takes no longer than one without a context: each token attends to all before it, so
    /// that equal chunks late in a long prompt would make steps several times as long, for every decode beside them too.
    Balanced {
        /// Tokens of context at which attention takes as long as everything else that is computed for a token.
        parity_tokens: usize,
    },
    /// What a schedule says.
    Schedule(ChunkSchedule),
}

impl ChunkSize {
    /// What `num_tokens` tokens behind `context_len` cost of the budget, in tokens without a context.
    pub(crate) fn cost(&self, context_len: usize, num_tokens: usize) -> usize {
        match self {
            Self::Balanced { parity_tokens } => {
                let excess = excess(context_len, *parity_tokens);
                num_tokens.saturating_add(num_tokens.saturating_mul(excess) / (*parity_tokens).max(1))
            }
            Self::Budget | Self::Schedule(_) => num_tokens,
        }
    }

    /// The most tokens of a chunk behind `context_len`, where `left` of the budget is left and the step has `num_taken`
    /// tokens. At least one where anything is left.
    pub(crate) fn most_tokens(&self, context_len: usize, left: usize, num_taken: usize) -> usize {
        match self {
            Self::Budget => left,
            Self::Balanced { parity_tokens } => {
                let excess = excess(context_len, *parity_tokens);
                if excess == 0 {
                    return left;
                }
                let num_tokens = left.saturating_mul(*parity_tokens) / parity_tokens.saturating_add(excess);
                let in_tiles = if num_tokens > TILE { num_tokens - num_tokens % TILE } else { num_tokens };
                in_tiles.max(MIN_CHUNK_TOKENS).min(left)
            }
            Self::Schedule(schedule) => {
                let chunk = schedule.chunk_size(context_len).saturating_sub(num_taken);
                chunk.max(MIN_CHUNK_TOKENS).min(left)
            }
        }
    }
}

/// Context that counts: a step varies by a quarter for other reasons, and chunks of a short prompt stay whole.
fn excess(context_len: usize, parity_tokens: usize) -> usize {
    context_len.saturating_sub(parity_tokens / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_shrink_as_their_context_grows() {
        let balanced = ChunkSize::Balanced { parity_tokens: 20_000 };
        let sizes = [0, 5_000, 25_000, 105_000].map(|context_len| balanced.most_tokens(context_len, 2048, 0));
        assert_eq!(sizes, [2048, 2048, 1024, 320]);
        assert_eq!(balanced.cost(25_000, 1024), 2048);
        assert_eq!(ChunkSize::Budget.most_tokens(105_000, 2048, 0), 2048);
    }

    proptest! {
        #[test]
        fn a_chunk_costs_no_more_than_is_left_or_is_the_smallest(
            parity_tokens in prop_oneof![0..100_000_usize, Just(usize::MAX)],
            context_len in prop_oneof![0..1_000_000_usize, Just(usize::MAX)],
            left in 1..20_000_usize,
        ) {
            let balanced = ChunkSize::Balanced { parity_tokens };
            let num_tokens = balanced.most_tokens(context_len, left, 0);
            prop_assert!((1..=left).contains(&num_tokens));
            prop_assert!(balanced.cost(context_len, num_tokens) <= left || num_tokens <= MIN_CHUNK_TOKENS);
        }
    }
}
