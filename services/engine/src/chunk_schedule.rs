/// What chunk sizes are rounded to, so that a chunk fills whole tiles of a matrix product.
const UNIT: usize = 32;

/// Chunks that shrink as a prompt progresses: a token late in a long prompt attends to more tokens before it and takes
/// longer, so that equal chunks would make ever longer steps. As sarathi-lean's `enable_dynamic_chunking_schedule`, where
/// a prompt beyond `max_tokens` fails; here it goes on with the last size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSchedule {
    /// Tokens of a prompt's first chunks.
    pub high: usize,
    /// Tokens of its last ones; at most `high`.
    pub low: usize,
    /// Tokens over which the size goes down.
    pub max_tokens: usize,
    /// Equal stretches of `max_tokens`, each with a size of its own. A single one has `low`, as there.
    pub stages: usize,
}

impl ChunkSchedule {
    /// Tokens of the next chunk of a prompt of which `num_computed` tokens are done: at least 1, at most `high`, and a
    /// multiple of 32 (of `low`, where that is less) where `high` is one.
    #[must_use]
    pub fn chunk_size(&self, num_computed: usize) -> usize {
        let last = self.stages.saturating_sub(1);
        let tokens_per_stage = self.max_tokens.div_ceil(last + 1).max(1);
        let stages_left = last - (num_computed / tokens_per_stage).min(last);
        // Equally spaced sizes, fractions dropped; they lie between `low` and `high` even where the product saturates.
        let above_low = self.high.saturating_sub(self.low).saturating_mul(stages_left) / last.max(1);
        let rounded = round(self.low + above_low, self.low.clamp(1, UNIT));
        rounded.clamp(1, self.high.max(1))
    }
}

/// The nearest multiple; of two equally near ones the even one, as numpy rounds.
fn round(size: usize, unit: usize) -> usize {
    let (whole, rest) = (size / unit, size % unit);
    let is_up = rest > unit - rest || (rest == unit - rest && whole % 2 == 1);
    (whole + usize::from(is_up)).saturating_mul(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: ChunkSchedule = ChunkSchedule { high: 2048, low: 128, max_tokens: 4096, stages: 16 };

    #[test]
    fn sizes_go_down_stage_by_stage_and_stay_at_the_last() {
        let sizes: Vec<usize> = (0..16).map(|stage| DEFAULT.chunk_size(stage * 256)).collect();
        let expected: Vec<usize> = (1..=16).rev().map(|stage| stage * 128).collect();
        assert_eq!(sizes, expected);
        assert_eq!((DEFAULT.chunk_size(255), DEFAULT.chunk_size(256)), (2048, 1920));
        assert_eq!((DEFAULT.chunk_size(4096), DEFAULT.chunk_size(usize::MAX)), (128, 128));
    }

    #[test]
    fn sizes_between_multiples_are_rounded_half_to_even() {
        let sizes = |schedule: ChunkSchedule, step: usize| -> Vec<usize> {
            (0..schedule.stages).map(|stage| schedule.chunk_size(stage * step)).collect()
        };
        let exact = ChunkSchedule { high: 512, low: 128, max_tokens: 1000, stages: 5 };
        assert_eq!(sizes(exact, 200), [512, 416, 320, 224, 128]);
        // 256, 208, 160, 112, 64: 208 is 6.5 units and 112 is 3.5.
        let halves = ChunkSchedule { high: 256, low: 64, max_tokens: 1000, stages: 5 };
        assert_eq!(sizes(halves, 200), [256, 192, 160, 128, 64]);
        let small = ChunkSchedule { high: 10, low: 1, max_tokens: 10, stages: 10 };
        assert_eq!(sizes(small, 1), [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn a_size_is_never_over_the_highest() {
        let odd = ChunkSchedule { high: 48, low: 40, max_tokens: 100, stages: 2 };
        assert_eq!((odd.chunk_size(0), odd.chunk_size(50)), (48, 32));
        let single = ChunkSchedule { high: 2048, low: 128, max_tokens: 4096, stages: 1 };
        assert_eq!((single.chunk_size(0), single.chunk_size(9000)), (128, 128));
    }

    proptest! {
        #[test]
        fn any_schedule_ends_and_never_goes_up(
            high in prop_oneof![0..5000_usize, Just(usize::MAX)],
            low in prop_oneof![0..5000_usize, Just(usize::MAX)],
            max_tokens in prop_oneof![0..100_000_usize, Just(usize::MAX)],
            stages in prop_oneof![0..100_usize, Just(usize::MAX)],
            places in prop::collection::vec(prop_oneof![0..200_000_usize, any::<usize>()], 2),
        ) {
            let schedule = ChunkSchedule { high, low, max_tokens, stages };
            let (earlier, later) = (places[0].min(places[1]), places[0].max(places[1]));
            prop_assert!(schedule.chunk_size(later) <= schedule.chunk_size(earlier));
            prop_assert!((1..=high.max(1)).contains(&schedule.chunk_size(later)));
        }
    }
}
