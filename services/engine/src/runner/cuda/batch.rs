use fused_gpu::{Buffer, Gpu, Pinned, View};
use fused_kernels::cuda::{Slots, prefill_tiles};
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::TokenId;

use super::Error;
use crate::kv::KvCache;
use crate::model::Shape;
use crate::runner::SequenceStep;

/// Batch sizes for which there are graphs: powers of two, and steps of 8 and 16 between the larger ones.
pub(super) const GRAPH_ROWS: [usize; 31] = [
    1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 144, 160, 176, 192, 208,
    224, 240, 256, 320, 384, 512,
];

/// Rows of the largest graph.
pub(super) const MAX_GRAPH_ROWS: usize = 512;

/// A step's rows: the new tokens of all sequences, one after the other.
pub(super) struct Batch<'a> {
    pub(super) sequences: &'a [SequenceStep<'a>],
    /// The first row of each sequence.
    pub(super) first_rows: Vec<usize>,
    num_rows: usize,
}

/// What the kernels are told of a step, on the host and on the device: one copy takes all of it.
#[derive(Debug)]
pub(super) struct BatchBuffers {
    host: Pinned,
    device: Buffer,
    max_rows: usize,
    is_small: bool,
}

/// Where each part lies, in units of `max_rows` u32.
const SLOTS: usize = 0;
const TOKENS: usize = 2;
const POSITIONS: usize = 3;
const TILES: usize = 4;
const DECODES: usize = 6;
const WANTED: usize = 7;
const NUM_PARTS: usize = 8;

impl<'a> Batch<'a> {
    /// Checks what is asked: the kernels cannot.
    pub(super) fn new(shape: &Shape, sequences: &'a [SequenceStep<'a>]) -> Result<Self, Error> {
        let mut num_rows = 0;
        let mut first_rows = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            if let Some(token) = sequence.tokens.iter().find(|token| token.row() >= shape.vocab_size) {
                let message =
                    format!("token {token} is not below the vocabulary's size {}", shape.vocab_size);
                return Err(Error::Batch(message));
            }
            let end = sequence.context_len.saturating_add(sequence.tokens.len());
            if sequence.tokens.is_empty() || end > shape.max_positions {
                let message = format!("{} tokens behind {}", sequence.tokens.len(), sequence.context_len);
                return Err(Error::Batch(message));
            }
            first_rows.push(num_rows);
            num_rows += sequence.tokens.len();
        }
        Ok(Self { sequences, first_rows, num_rows })
    }

    pub(super) fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// How many rows a graph for this step has; `None` where there is none: some prompt is computed, or looked at.
    pub(super) fn graph_rows(&self, max_rows: usize) -> Option<usize> {
        let is_decode =
            |s: &SequenceStep<'_>| s.tokens.len() == 1 && s.sample.is_some() && s.prompt_logprobs.is_none();
        let num_rows = GRAPH_ROWS.into_iter().find(|num_rows| *num_rows >= self.num_rows)?;
        (num_rows <= max_rows && self.sequences.iter().all(is_decode)).then_some(num_rows)
    }

    /// The rows that are chunks: first row and number of rows.
    fn chunks(&self) -> Vec<(usize, usize)> {
        let sequences = self.sequences.iter().zip(&self.first_rows);
        sequences.filter(|(s, _)| s.tokens.len() > 1).map(|(s, first)| (*first, s.tokens.len())).collect()
    }
}

/// What of a batch is on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnDevice {
    /// Whether it is in the small buffers, which steps from graphs have for themselves.
    pub(super) is_small: bool,
    pub(super) num_rows: usize,
    pub(super) num_tiles: usize,
    pub(super) num_decodes: usize,
}

impl BatchBuffers {
    pub(super) fn new(gpu: &Gpu, max_rows: usize) -> fused_gpu::Result<Self> {
        // Every part begins at a multiple of 16 bytes.
        let max_rows = max_rows.next_multiple_of(16);
        let len = 4 * NUM_PARTS * max_rows;
        Ok(Self { host: gpu.pinned(len)?, device: gpu.alloc_zeroed(len)?, max_rows, is_small: false })
    }

    /// Those of steps from graphs.
    pub(super) fn for_graphs(gpu: &Gpu, max_rows: usize) -> fused_gpu::Result<Self> {
        Ok(Self { is_small: true, ..Self::new(gpu, max_rows.min(MAX_GRAPH_ROWS))? })
    }

    pub(super) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Sends a batch to the device, padded to `num_rows`. `wanted`: the rows that logits are wanted of.
    pub(super) fn send(
        &mut self,
        gpu: &Gpu,
        batch: &Batch<'_>,
        kv: &KvCache<CudaMemory>,
        wanted: &[usize],
        num_rows: usize,
    ) -> Result<OnDevice, Error> {
        let max_rows = self.max_rows;
        let words: &mut [u32] = bytemuck::cast_slice_mut(self.host.as_mut_slice()?);
        let (slots, rest) = words.split_at_mut(TOKENS * max_rows);
        let slots: &mut [u64] = bytemuck::cast_slice_mut(slots);
        let mut parts = rest.chunks_exact_mut(max_rows);
        let mut part = || parts.next().unwrap_or_default();
        let (tokens, positions) = (part(), part());
        let (first_tiles, second_tiles, decodes, wanted_rows) = (part(), part(), part(), part());
        let mut num_decodes = 0;
        let mut row = 0;
        for sequence in batch.sequences {
            let end = sequence.context_len + sequence.tokens.len();
            let address = kv.memory().device_address(kv.range_of(sequence.slot, end)?)?;
            if let [_] = sequence.tokens {
                decodes[num_decodes] = word(row)?;
                num_decodes += 1;
            }
            for (TokenId(token), position) in sequence.tokens.iter().zip(sequence.context_len..) {
                (slots[row], tokens[row], positions[row]) = (address, *token, word(position)?);
                row += 1;
            }
        }
        // Rows that pad a batch have no slot: nothing is read or written for them.
        for row in row..num_rows {
            (slots[row], tokens[row], positions[row], decodes[num_decodes]) = (0, 0, 0, word(row)?);
            num_decodes += 1;
        }
        for (place, row) in wanted_rows.iter_mut().zip(wanted) {
            *place = word(*row)?;
        }
        let tiles = prefill_tiles(&batch.chunks());
        let places = first_tiles.iter_mut().chain(second_tiles);
        for (place, number) in places.zip(tiles.iter().flatten()) {
            *place = number.cast_unsigned();
        }
        gpu.copy_to_device(&self.host, 0..4 * NUM_PARTS * max_rows, &self.device, 0)?;
        Ok(OnDevice { is_small: self.is_small, num_rows, num_tiles: tiles.len(), num_decodes })
    }

    /// Rows that are nothing but padding.
    pub(super) fn send_padding(&mut self, gpu: &Gpu, num_rows: usize) -> Result<OnDevice, Error> {
        let max_rows = self.max_rows;
        let words: &mut [u32] = bytemuck::cast_slice_mut(self.host.as_mut_slice()?);
        words.fill(0);
        for part in [DECODES, WANTED] {
            for (row, place) in words[part * max_rows..][..num_rows].iter_mut().enumerate() {
                *place = word(row)?;
            }
        }
        gpu.copy_to_device(&self.host, 0..4 * NUM_PARTS * max_rows, &self.device, 0)?;
        Ok(OnDevice { is_small: self.is_small, num_rows, num_tiles: 0, num_decodes: num_rows })
    }

    pub(super) fn slots(&self) -> fused_gpu::Result<Slots<'_>> {
        // `send` writes addresses of slots that the step has pinned, or 0, and its rows are those of different sequences or
        // different positions of one.
        Ok(Slots::vouched_for(self.part(SLOTS, 2)?))
    }

    pub(super) fn tokens(&self) -> fused_gpu::Result<View<'_>> {
        self.part(TOKENS, 1)
    }

    pub(super) fn positions(&self) -> fused_gpu::Result<View<'_>> {
        self.part(POSITIONS, 1)
    }

    pub(super) fn tiles(&self) -> fused_gpu::Result<View<'_>> {
        self.part(TILES, 2)
    }

    pub(super) fn decodes(&self) -> fused_gpu::Result<View<'_>> {
        self.part(DECODES, 1)
    }

    /// Of the rows that logits are wanted of, those from `first` on.
    pub(super) fn wanted(&self, first: usize) -> fused_gpu::Result<View<'_>> {
        let part = self.part(WANTED, 1)?;
        part.slice(4 * first..part.len())
    }

    fn part(&self, first: usize, num: usize) -> fused_gpu::Result<View<'_>> {
        self.device.slice(4 * first * self.max_rows..4 * (first + num) * self.max_rows)
    }
}

fn word(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Batch(format!("{number} is beyond what a kernel counts")))
}
