#![allow(
    unsafe_code,
    reason = "the addresses of a step are vouched for where they are written, and nowhere else"
)]

use fused_gpu::{Buffer, Gpu, Pinned, View};
use fused_kernels::RowSampling;
use fused_kernels::cuda::{
    DecodeOrder, DecodePiece, DecodePieces, DecodeSplit, SampledRows, Slots, prefill_tiles,
};
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::TokenId;

use super::Error;
use super::in_turn::InTurn;
use super::kept::{KeptLists, Lacks};
use super::lists::Lists;
use super::wanted::Wanted;
use crate::model::Shape;
use crate::runner::SequenceStep;

/// Batch sizes for which there are graphs: powers of two, and steps of 8 and 16 between the larger ones.
pub(super) const GRAPH_ROWS: [usize; 31] = [
    1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 144, 160, 176, 192, 208,
    224, 240, 256, 320, 384, 512,
];

/// How many rows the smallest graph has that so many fit into; `None` where there is none.
pub(super) fn graph_rows(num_rows: usize) -> Option<usize> {
    GRAPH_ROWS.into_iter().find(|rows| *rows >= num_rows)
}

/// A step's rows: the new tokens of all sequences, one after the other.
pub(super) struct Batch<'a> {
    pub(super) sequences: &'a [SequenceStep<'a>],
    /// The first row of each sequence.
    pub(super) first_rows: Vec<usize>,
    num_rows: usize,
    /// For each sequence of the step before where it leaves the token that it draws.
    drawn: &'a [Option<u32>],
}

impl<'a> Batch<'a> {
    /// Checks what is asked: the kernels cannot.
    pub(super) fn new(
        shape: &Shape,
        sequences: &'a [SequenceStep<'a>],
        drawn: &'a [Option<u32>],
    ) -> Result<Self, Error> {
        let mut num_rows = 0;
        let mut first_rows = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            if let Some(token) = sequence.tokens.iter().find(|token| token.row() >= shape.vocab_size) {
                let message =
                    format!("token {token} is not below the vocabulary's size {}", shape.vocab_size);
                return Err(Error::Batch(message));
            }
            let (num_tokens, context_len) = (sequence.num_tokens(), sequence.context_len);
            let end = context_len.saturating_add(num_tokens);
            let is_pending = sequence.drawn_by.is_some();
            if num_tokens == 0 || end > shape.max_positions || (is_pending && num_tokens > 1) {
                return Err(Error::Batch(format!("{num_tokens} tokens behind {context_len}")));
            }
            first_rows.push(num_rows);
            num_rows += num_tokens;
        }
        Ok(Self { sequences, first_rows, num_rows, drawn })
    }

    pub(super) fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// How many rows a graph for this step has; `None` where there is none: some prompt is computed, or looked at.
    pub(super) fn graph_rows(&self, max_rows: usize) -> Option<usize> {
        let is_decode =
            |s: &SequenceStep<'_>| s.num_tokens() == 1 && s.sample.is_some() && s.prompt_logprobs.is_none();
        let num_rows = graph_rows(self.num_rows)?;
        (num_rows <= max_rows && self.sequences.iter().all(is_decode)).then_some(num_rows)
    }

    /// The rows that are chunks: first row and number of rows.
    fn chunks(&self) -> Vec<(usize, usize)> {
        let sequences = self.sequences.iter().zip(&self.first_rows);
        sequences.filter(|(s, _)| s.num_tokens() > 1).map(|(s, first)| (*first, s.num_tokens())).collect()
    }
}

/// What the kernels are told of a step, on the host and on the device: one copy takes all of it.
#[derive(Debug)]
pub(super) struct BatchBuffers {
    host: InTurn<Pinned>,
    device: Buffer,
    lists: Lists,
    kept: KeptLists,
    max_rows: usize,
    split: DecodeSplit,
    /// Tokens of a context that attention reads at most, in the layer that reads most.
    window: usize,
}

/// What of a batch is on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnDevice {
    pub(super) num_rows: usize,
    pub(super) num_tiles: usize,
    /// Pieces of contexts of rows that decode, those of a recorded list included that are none.
    pub(super) num_pieces: usize,
    pub(super) order: DecodeOrder,
}

/// A part of the buffers that has so many bytes for each row. They lie one behind the other, each for as many rows as the step
/// has, so that a small step is a small copy.
#[derive(Clone, Copy)]
struct Part {
    /// Bytes a row of the parts before.
    before: usize,
    size: usize,
}

impl Part {
    const fn behind(part: Self, size: usize) -> Self {
        Self { before: part.before + part.size, size }
    }
}

const SAMPLING: Part = Part { before: 0, size: size_of::<RowSampling>() };
const SLOTS: Part = Part::behind(SAMPLING, 8);
const TOKENS: Part = Part::behind(SLOTS, 4);
const POSITIONS: Part = Part::behind(TOKENS, 4);
const TILES: Part = Part::behind(POSITIONS, 8);
const WANTED: Part = Part::behind(TILES, 4);
/// The last, of which there are more than rows.
const PIECES: Part = Part::behind(WANTED, size_of::<DecodePiece>());

/// Rows that a step's parts have room for: every part begins at a multiple of 16 bytes.
fn room(num_rows: usize) -> usize {
    num_rows.next_multiple_of(4)
}

/// Bytes of a step's parts.
fn step_bytes(num_rows: usize, num_pieces: usize) -> usize {
    PIECES.before * room(num_rows) + PIECES.size * num_pieces
}

/// How many pieces are launched, those included that are none: a graph's, which has room for as many as there can be.
fn num_listed(split: DecodeSplit, num_decodes: usize, order: DecodeOrder) -> usize {
    match order {
        _ if num_decodes == 0 => 0,
        DecodeOrder::ByPiece => split.max_pieces(num_decodes),
        DecodeOrder::ByHead => num_decodes,
    }
}

/// The parts on the host, each with room for the step's rows.
struct Parts<'a> {
    sampling: &'a mut [RowSampling],
    slots: &'a mut [u64],
    tokens: &'a mut [i32],
    positions: &'a mut [u32],
    tiles: &'a mut [i32],
    wanted: &'a mut [u32],
    pieces: &'a mut [DecodePiece],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a mut [u8], num_rows: usize) -> Self {
        let mut rest = bytes;
        let mut part = |part: Part| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(part.size * room(num_rows));
            rest = behind;
            part
        };
        Self {
            sampling: bytemuck::cast_slice_mut(part(SAMPLING)),
            slots: bytemuck::cast_slice_mut(part(SLOTS)),
            tokens: bytemuck::cast_slice_mut(part(TOKENS)),
            positions: bytemuck::cast_slice_mut(part(POSITIONS)),
            tiles: bytemuck::cast_slice_mut(part(TILES)),
            wanted: bytemuck::cast_slice_mut(part(WANTED)),
            pieces: bytemuck::cast_slice_mut(rest),
        }
    }
}

impl BatchBuffers {
    /// `window`: tokens of a context that attention reads at most, in the layer that reads most.
    pub(super) fn new(
        gpu: &Gpu,
        max_rows: usize,
        split: DecodeSplit,
        window: usize,
    ) -> fused_gpu::Result<Self> {
        let len = step_bytes(max_rows, split.max_pieces(max_rows));
        let host = InTurn::new(|| gpu.pinned(len))?;
        Ok(Self {
            host,
            device: gpu.alloc_zeroed(len)?,
            lists: Lists::new(gpu)?,
            kept: KeptLists::default(),
            max_rows,
            split,
            window,
        })
    }

    pub(super) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Sends a batch to the device, padded to `num_rows`. `wanted`: the rows that logits are wanted of.
    pub(super) fn send(
        &mut self,
        gpu: &Gpu,
        batch: &Batch<'_>,
        pinned: &PinnedSlots<'_>,
        wanted: &[Wanted<'_>],
        num_rows: usize,
    ) -> Result<OnDevice, Error> {
        if num_rows > self.max_rows || wanted.len() > num_rows {
            let message = format!("{num_rows} rows and {} results of {}", wanted.len(), self.max_rows);
            return Err(Error::Batch(message));
        }
        let parts = Parts::of(self.host.next().as_mut_slice()?, num_rows);
        let mut decodes = Vec::with_capacity(batch.sequences.len());
        let mut row = 0;
        for (nth, sequence) in batch.sequences.iter().enumerate() {
            let num_tokens = sequence.num_tokens();
            let end = sequence.context_len + num_tokens;
            let address = pinned.address(nth, sequence.context_len, num_tokens)?;
            if num_tokens == 1 {
                decodes.push((row, end.min(self.window)));
            }
            let pending = sequence.drawn_by.map(|by| pending(batch.drawn, by)).transpose()?;
            let known = sequence.tokens.iter().map(|TokenId(token)| token.cast_signed());
            for (token, position) in known.chain(pending).zip(sequence.context_len..) {
                (parts.slots[row], parts.tokens[row], parts.positions[row]) =
                    (address, token, word(position)?);
                row += 1;
            }
        }
        // Rows that pad a batch have no slot: nothing is read or written for them.
        let num_padding = num_rows - row;
        for row in row..num_rows {
            (parts.slots[row], parts.tokens[row], parts.positions[row]) = (0, 0, 0);
        }
        let counted: Vec<_> = wanted.iter().filter_map(Wanted::occurrences).collect();
        let kept = self.kept.begin(gpu, &counted)?;
        let new: Vec<_> = kept.iter().zip(&counted).filter(|(kept, _)| kept.lacks == Lacks::All).collect();
        let num_new: usize = new.iter().map(|(_, list)| list.as_slice().len() + 1).sum();
        let num_biases: usize = wanted.iter().map(Wanted::num_biases).sum();
        let mut lists = self.lists.open(gpu, num_new + num_biases)?;
        let mut kept_rows = kept.iter();
        for (nth, wanted) in wanted.iter().enumerate() {
            parts.wanted[nth] = word(wanted.row)?;
            let kept = wanted.occurrences().and_then(|_| kept_rows.next());
            parts.sampling[nth] = wanted.sampling(&mut lists, kept)?;
        }
        let sent = new.iter().map(|(_, list)| lists.push(list.as_slice())).collect::<Result<Vec<_>, _>>()?;
        let len = lists.len();
        self.lists.send(gpu, len)?;
        for ((kept, list), (address, _)) in new.iter().zip(sent) {
            let list = self.kept.target(kept, list.as_slice().len())?;
            gpu.copy(self.lists.view(address, list.len())?, list)?;
        }
        for nth in wanted.len()..num_rows {
            parts.wanted[nth] = word(nth)?;
            parts.sampling[nth] = RowSampling::default();
        }
        let tiles = prefill_tiles(&batch.chunks());
        for (place, number) in parts.tiles.iter_mut().zip(tiles.iter().flatten()) {
            *place = *number;
        }
        let DecodePieces { pieces, order } = self.split.pieces(&decodes);
        let num_decodes = if decodes.is_empty() { 0 } else { decodes.len() + num_padding };
        let num_listed = num_listed(self.split, num_decodes, order);
        let (listed, filling) = parts.pieces[..num_listed].split_at_mut(pieces.len());
        listed.copy_from_slice(&pieces);
        filling.fill(DecodePiece::NONE);
        self.copy(gpu, num_rows, num_listed)?;
        Ok(OnDevice { num_rows, num_tiles: tiles.len(), num_pieces: num_listed, order })
    }

    /// Rows that are nothing but padding, with a list of pieces that is as long as that of others in that order.
    pub(super) fn send_padding(
        &mut self,
        gpu: &Gpu,
        num_rows: usize,
        order: DecodeOrder,
    ) -> Result<OnDevice, Error> {
        let bytes = self.host.next().as_mut_slice()?;
        bytes.fill(0);
        let parts = Parts::of(bytes, num_rows);
        for (row, wanted) in parts.wanted.iter_mut().enumerate().take(num_rows) {
            *wanted = word(row)?;
        }
        let num_pieces = num_listed(self.split, num_rows, order);
        parts.pieces[..num_pieces].fill(DecodePiece::NONE);
        self.copy(gpu, num_rows, num_pieces)?;
        Ok(OnDevice { num_rows, num_tiles: 0, num_pieces, order })
    }

    fn copy(&self, gpu: &Gpu, num_rows: usize, num_pieces: usize) -> Result<(), Error> {
        let bytes = 0..step_bytes(num_rows, num_pieces);
        Ok(gpu.copy_to_device(self.host.current(), bytes, &self.device, 0)?)
    }

    /// Of the rows that logits are wanted of, how those from `first` on are sampled.
    pub(super) fn sampling(&self, step: OnDevice, first: usize) -> fused_gpu::Result<SampledRows<'_>> {
        let part = self.part(SAMPLING, step)?;
        let part = part.slice(SAMPLING.size * first..part.len())?;
        // SAFETY: nobody but `send` and `send_padding` writes there. The rows of the one have lists that are kept, each in a buffer
        // of its own in this step, or biases in a place of their own in the lists' buffer; other steps write to both in the stream's
        // order. Those of the other have none. Buffers outlive the stream's work.
        Ok(unsafe { SampledRows::vouched_for(part) })
    }

    pub(super) fn slots(&self, step: OnDevice) -> fused_gpu::Result<Slots<'_>> {
        // SAFETY: nobody but `send` and `send_padding` writes there. The one writes what `address` has found pinned for the
        // row's tokens, and the step keeps the pin until it is done; its rows are those of different sequences, each with a slot
        // of its own, or different positions of one. The other writes zeros.
        Ok(unsafe { Slots::vouched_for(self.part(SLOTS, step)?) })
    }

    pub(super) fn tokens(&self, step: OnDevice) -> fused_gpu::Result<View<'_>> {
        self.part(TOKENS, step)
    }

    pub(super) fn positions(&self, step: OnDevice) -> fused_gpu::Result<View<'_>> {
        self.part(POSITIONS, step)
    }

    pub(super) fn tiles(&self, step: OnDevice) -> fused_gpu::Result<View<'_>> {
        self.part(TILES, step)
    }

    /// The pieces of contexts of rows that decode, and places for their results.
    pub(super) fn pieces(&self, step: OnDevice) -> fused_gpu::Result<(View<'_>, usize)> {
        let first = PIECES.before * room(step.num_rows);
        let pieces = self.device.slice(first..first + PIECES.size * step.num_pieces)?;
        Ok((pieces, self.split.max_parts()))
    }

    /// Of the rows that logits are wanted of, those from `first` on.
    pub(super) fn wanted(&self, step: OnDevice, first: usize) -> fused_gpu::Result<View<'_>> {
        let part = self.part(WANTED, step)?;
        part.slice(WANTED.size * first..part.len())
    }

    fn part(&self, part: Part, step: OnDevice) -> fused_gpu::Result<View<'_>> {
        let room = room(step.num_rows);
        self.device.slice(part.before * room..(part.before + part.size) * room)
    }
}

/// The slots of a step's sequences, one span each, which stay pinned until the step is done.
pub(super) struct PinnedSlots<'a> {
    pub(super) pinned: &'a fused_virtual_memory::Pinned<CudaMemory>,
    pub(super) token_bytes: usize,
}

impl PinnedSlots<'_> {
    /// Where the nth sequence's slot begins, if it is pinned for reading so many tokens and writing so many behind them.
    fn address(&self, nth: usize, context_len: usize, num_tokens: usize) -> Result<u64, Error> {
        let span = self.pinned.device_span(nth)?;
        let (first, end) = (context_len * self.token_bytes, (context_len + num_tokens) * self.token_bytes);
        if span.len() < end || span.writable_from() > first || !span.address().is_multiple_of(16) {
            let message = format!("{num_tokens} tokens behind {context_len} are not pinned: {span:?}");
            return Err(Error::Batch(message));
        }
        Ok(span.address())
    }
}

/// How a token is named that only the device knows: negative, by where the step before left it.
fn pending(drawn: &[Option<u32>], by: usize) -> Result<i32, Error> {
    let place = drawn.get(by).copied().flatten();
    let place =
        place.ok_or_else(|| Error::Batch(format!("sequence {by} of the step before draws nothing")))?;
    Ok(!place.cast_signed())
}

fn word(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Batch(format!("{number} is beyond what a kernel counts")))
}
