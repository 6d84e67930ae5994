//! How attention is spread over the GPU: pure functions.

use std::cmp::Reverse;

/// Rows of a tile at most: eight warps have 16 each.
pub const TILE_ROWS: usize = 128;
/// Tokens that all warps of a decode's block take at once: a shorter piece is not worth its block.
const MIN_PIECE_TOKENS: usize = 128;
/// What a piece costs beside reading its tokens, in tokens read meanwhile: a block that begins, and ends.
const PIECE_COST_TOKENS: usize = 128;

/// Cuts chunks, given as first row and number of rows, into tiles of the same kind: every row in one, in order,
/// and none with more than [`TILE_ROWS`]. A chunk's rows are consecutive positions of one sequence.
#[must_use]
pub fn prefill_tiles(chunks: &[(usize, usize)]) -> Vec<[i32; 2]> {
    let tiles = chunks.iter().flat_map(|&(first_row, num_rows)| {
        (0..num_rows)
            .step_by(TILE_ROWS)
            .map(move |at| [(first_row + at) as i32, (num_rows - at).min(TILE_ROWS) as i32])
    });
    tiles.collect()
}

/// A piece of a sequence's context, which a block reads for each head of keys: as `cuda/attention.cu` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DecodePiece {
    /// The sequence's row of the batch; below 0 there is no piece.
    pub row: i32,
    /// Which of its pieces, the first is 0.
    pub piece: i32,
    /// How many it has.
    pub num_pieces: i32,
    /// Where the result of its first piece is kept until all are there, each in a place of its own; of no meaning
    /// where it has only one.
    pub first_part: i32,
}

impl DecodePiece {
    /// What fills up a list that a graph has recorded as longer.
    pub const NONE: Self = Self { row: -1, piece: 0, num_pieces: 1, first_part: 0 };
}

/// Which blocks of a decode begin first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeOrder {
    /// Those of the first piece, for all heads: the longest pieces come before all others.
    ByPiece,
    /// Those of the first head, for all pieces: where pieces are alike, memory is read up to 14 % faster so (64 of 1,024
    /// tokens on an H200: 75.5 µs instead of 87.2; 255 of 500 beside one of 100,000: 376 instead of 246).
    ByHead,
}

/// What the contexts of a decode are cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePieces {
    /// The longest first.
    pub pieces: Vec<DecodePiece>,
    /// By head only where nothing is cut.
    pub order: DecodeOrder,
}

/// How the contexts of a decode are cut into pieces that end at about the same time, whatever their lengths.
#[derive(Clone, Copy, Debug)]
pub struct DecodeSplit {
    /// Pieces that the GPU reads at once, for all heads: a block for each multiprocessor, which is all that fits into
    /// it. (Two blocks each were slower on an H100: 22.7 µs instead of 19.4 for 8 sequences of 1024.)
    num_at_once: usize,
}

impl DecodeSplit {
    /// For a GPU with so many multiprocessors.
    #[must_use]
    pub fn new(num_kv_heads: usize, num_multiprocessors: usize) -> Self {
        Self { num_at_once: (num_multiprocessors / num_kv_heads.max(1)).max(1) }
    }

    /// The most pieces that so many contexts are cut into.
    #[must_use]
    pub fn max_pieces(self, num_contexts: usize) -> usize {
        num_contexts + self.num_at_once - 1
    }

    /// The most results that are kept until others are there: what is cut has at most twice as many pieces as it has
    /// more than one.
    #[must_use]
    pub fn max_parts(self) -> usize {
        2 * self.num_at_once
    }

    /// Cuts contexts, given as a sequence's row and its number of tokens, at least 1. The longest pieces come first,
    /// so that the short ones fill the gaps at the end.
    #[must_use]
    pub fn pieces(self, contexts: &[(usize, usize)]) -> DecodePieces {
        let mut contexts = contexts.to_vec();
        contexts.sort_unstable_by_key(|&(row, len)| (Reverse(len), row));
        let piece_len = self.piece_len(&contexts);
        let order = self.order(&contexts, piece_len);
        contexts.sort_by_key(|&(_, len)| Reverse(len.div_ceil(len.div_ceil(piece_len).max(1))));
        let mut num_parts = 0;
        let pieces = contexts.iter().flat_map(|&(row, len)| {
            let num_pieces = len.div_ceil(piece_len).max(1);
            let first_part = num_parts;
            num_parts += if num_pieces > 1 { num_pieces } else { 0 };
            let piece_of = move |piece| DecodePiece {
                row: row as i32,
                piece: piece as i32,
                num_pieces: num_pieces as i32,
                first_part: first_part as i32,
            };
            (0..num_pieces).map(piece_of)
        });
        DecodePieces { pieces: pieces.collect(), order }
    }

    /// By head where the last of the longest pieces, which then begin late, hold up nobody: because all are about as long, or
    /// each is a small part of what a multiprocessor reads.
    fn order(self, longest_first: &[(usize, usize)], piece_len: usize) -> DecodeOrder {
        let longest = longest_first.first().map_or(0, |(_, len)| *len);
        let total: usize = longest_first.iter().map(|(_, len)| len).sum();
        let are_alike = longest * longest_first.len() <= total + total / 4;
        let are_many = 4 * longest * self.num_at_once <= total;
        if longest <= piece_len && (are_alike || are_many) {
            DecodeOrder::ByHead
        } else {
            DecodeOrder::ByPiece
        }
    }

    /// The length of a piece with which all is read soonest. Tried are whole fractions of the longest context.
    fn piece_len(self, longest_first: &[(usize, usize)]) -> usize {
        let Some(&(_, longest)) = longest_first.first() else { return 1 };
        let total: usize = longest_first.iter().map(|(_, len)| len).sum();
        let num_longer_than = |limit| longest_first.partition_point(|&(_, len)| len > limit);
        let (mut soonest, mut best) = (usize::MAX, longest);
        for num_of_longest in 1..=longest.div_ceil(MIN_PIECE_TOKENS).min(self.num_at_once) {
            let piece_len = longest.div_ceil(num_of_longest);
            let num_cut = num_longer_than(piece_len);
            let num_of_cut: usize =
                longest_first[..num_cut].iter().map(|(_, len)| len.div_ceil(piece_len)).sum();
            let num_pieces = num_of_cut + longest_first.len() - num_cut;
            if num_pieces > self.max_pieces(longest_first.len()) {
                break;
            }
            // Pieces over half of the length, as all those of what is cut are, do not fit beside each other: they are
            // read in rounds. The others fill the gaps.
            let num_long = num_of_cut + num_longer_than(piece_len / 2) - num_cut;
            let rounds = num_long.div_ceil(self.num_at_once) * (piece_len + PIECE_COST_TOKENS);
            let mean = (total + num_pieces * PIECE_COST_TOKENS).div_ceil(self.num_at_once);
            if rounds.max(mean) < soonest {
                (soonest, best) = (rounds.max(mean), piece_len);
            }
        }
        best.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BinaryHeap};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        let chunks = [(0, 1), (1, 128), (129, 129), (258, 0), (258, 1000), (5000, 256)];
        let tiles = prefill_tiles(&chunks);
        let rows: Vec<i32> = tiles.iter().flat_map(|&[first, num]| first..first + num).collect();
        let wanted: Vec<i32> =
            chunks.iter().flat_map(|&(first, num)| first as i32..(first + num) as i32).collect();
        assert_eq!(rows, wanted);
        assert!(tiles.iter().all(|&[_, num]| (1..=TILE_ROWS as i32).contains(&num)));
        // A tile is of one chunk.
        assert_eq!(tiles[..4], [[0, 1], [1, 128], [129, 128], [257, 1]]);
        assert!(prefill_tiles(&[]).is_empty());
    }

    /// Eight heads of keys on a Hopper GPU: sixteen pieces at once.
    fn hopper() -> DecodeSplit {
        DecodeSplit::new(8, 132)
    }

    fn contexts(groups: &[(usize, usize)]) -> Vec<(usize, usize)> {
        groups.iter().flat_map(|&(num, len)| vec![len; num]).enumerate().collect()
    }

    /// Tokens of the pieces, as the kernel cuts them but for its rounding.
    fn lengths(pieces: &[DecodePiece], contexts: &[(usize, usize)]) -> Vec<usize> {
        let len = |piece: &DecodePiece| contexts[piece.row as usize].1.div_ceil(piece.num_pieces as usize);
        pieces.iter().map(len).collect()
    }

    /// When the last of sixteen that each take the next piece is done, in tokens.
    fn time(split: DecodeSplit, contexts: &[(usize, usize)]) -> usize {
        let mut free: BinaryHeap<Reverse<usize>> = (0..split.num_at_once).map(|_| Reverse(0)).collect();
        for len in lengths(&split.pieces(contexts).pieces, contexts) {
            let Reverse(at) = free.pop().unwrap();
            free.push(Reverse(at + len + PIECE_COST_TOKENS));
        }
        free.into_iter().map(|Reverse(at)| at).max().unwrap()
    }

    #[test]
    fn few_sequences_are_cut_and_many_are_not() {
        let num_of_each = |num, len| hopper().pieces(&contexts(&[(num, len)])).pieces[0].num_pieces;
        let of_8192 = |num| num_of_each(num, 8192);
        assert_eq!([1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 256].map(of_8192), [16, 8, 5, 4, 3, 2, 1, 1, 1, 1, 1]);
        assert_eq!(
            [(1, 1), (1, 128), (1, 129), (1, 1024)].map(|(num, len)| num_of_each(num, len)),
            [1, 1, 2, 8]
        );
        assert!(hopper().pieces(&[]).pieces.is_empty());
        assert_eq!(DecodeSplit::new(1, 0).pieces(&[(3, 1 << 20)]).pieces.len(), 1);
    }

    #[test]
    fn heads_come_one_after_the_other_where_pieces_are_alike() {
        let order = |groups: &[(usize, usize)]| hopper().pieces(&contexts(groups)).order;
        for alike in [&[(64, 1024)][..], &[(32, 8192)], &[(24, 1000), (8, 900)], &[(200, 500), (56, 2000)]] {
            assert_eq!(order(alike), DecodeOrder::ByHead, "{alike:?}");
        }
        for unlike in [&[(1, 8192)][..], &[(8, 1024)], &[(16, 1000), (16, 8000)], &[(31, 128), (1, 100_000)]]
        {
            assert_eq!(order(unlike), DecodeOrder::ByPiece, "{unlike:?}");
        }
    }

    /// What one long context beside short ones takes is its share of the whole GPU, not of one multiprocessor.
    #[test]
    fn a_long_context_among_short_ones_is_read_by_all() {
        for groups in [
            &[(31, 128), (1, 100_000)][..],
            &[(1, 100_000), (255, 500)],
            &[(8, 128), (2, 50_000)],
            &[(63, 1024), (1, 32_768)],
            &[(15, 4000), (2, 60_000), (100, 1)],
        ] {
            let contexts = contexts(groups);
            let total: usize = contexts.iter().map(|(_, len)| len).sum();
            let took = time(hopper(), &contexts);
            assert!(16 * took <= total * 115 / 100, "{groups:?}: {took} of {}", total / 16);
        }
    }

    proptest! {
        #[test]
        fn every_context_is_read_once_within_the_room_there_is(
            (num_kv_heads, num_multiprocessors) in (1..40usize, 1..150usize),
            lens in prop::collection::vec(prop_oneof![1..300usize, 1..200_000usize], 1..80),
        ) {
            let split = DecodeSplit::new(num_kv_heads, num_multiprocessors);
            let contexts: Vec<_> = lens.iter().copied().enumerate().collect();
            let DecodePieces { pieces, order } = split.pieces(&contexts);
            prop_assert!(pieces.len() <= split.max_pieces(contexts.len()));
            prop_assert!(order == DecodeOrder::ByPiece || pieces.len() == contexts.len());
            prop_assert!(lengths(&pieces, &contexts).is_sorted_by(|a, b| a >= b), "the longest first");
            let mut of_rows = BTreeMap::<i32, Vec<DecodePiece>>::new();
            pieces.iter().for_each(|piece| of_rows.entry(piece.row).or_default().push(*piece));
            prop_assert_eq!(of_rows.len(), contexts.len());
            let mut parts = Vec::new();
            for pieces in of_rows.values() {
                prop_assert!(pieces.iter().all(|piece| piece.num_pieces as usize == pieces.len()));
                prop_assert!(pieces.iter().map(|piece| piece.piece).eq(0..pieces.len() as i32));
                prop_assert!(pieces.iter().all(|piece| piece.first_part == pieces[0].first_part));
                if pieces.len() > 1 {
                    parts.extend(pieces.iter().map(|piece| piece.first_part + piece.piece));
                }
            }
            parts.sort_unstable();
            prop_assert!(parts.iter().copied().eq(0..parts.len() as i32), "places apart: {:?}", parts);
            prop_assert!(parts.len() <= split.max_parts());
        }

        /// The bound of longest pieces first is twice the best there can be; pieces are near their lengths, not at them.
        #[test]
        fn no_lengths_are_read_slowly(lens in prop::collection::vec(1..100_000usize, 1..64)) {
            let contexts: Vec<_> = lens.iter().copied().enumerate().collect();
            let num_pieces = hopper().pieces(&contexts).pieces.len();
            let mean = (lens.iter().sum::<usize>() + num_pieces * PIECE_COST_TOKENS).div_ceil(16);
            prop_assert!(2 * time(hopper(), &contexts) <= 5 * (mean + PIECE_COST_TOKENS));
        }
    }
}
