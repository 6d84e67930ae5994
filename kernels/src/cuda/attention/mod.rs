//! Attention over slots (`cuda/attention.cu`, and `cuda/prefill_hopper.cu` for chunks of prompts on Hopper).
#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

mod hopper;
mod split;

use std::f32::consts::LOG2_E;

use fused_gpu::{Capability, Gpu, Kernel, Module, View};

pub use split::{DecodeOrder, DecodePiece, DecodePieces, DecodeSplit, TILE_ROWS, prefill_tiles};

use super::checked::{ByElement, Checked, ELEMENT_BYTES};
use super::slots::{HeadShape, KvLayout, Slots};
use super::{Kernels, Result};

/// The head dimensions that there are kernels for.
pub const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];
/// Query heads that share a key and value head at most: rows of a matrix fragment.
const MAX_GROUP: usize = 16;
const PREFILL_BLOCK: u32 = 256;
const DECODE_BLOCK: u32 = 128;
/// 164 of Hopper's 228 KiB of fast memory: a block of the largest heads fits, and the products before and behind it,
/// which have use for the first cache, can begin and end beside it (Llama-1B, one request, H100: 1.046 ms a step
/// without, 0.999 with it).
const FEW_SHARED_PERCENT: u8 = 72;
/// Keys that a prefill's block works on at a time; two such pieces, of keys and of values, lie in shared memory.
const PREFILL_KEYS: usize = 64;

/// One layer's attention for some rows of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The heads; their dimension is one of [`HEAD_DIMS`].
    pub shape: HeadShape,
    /// The layer's place in a token of a slot.
    pub layout: KvLayout,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Tokens that a query sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Rows of `qkv`, `out`, `positions` and `slots`.
    pub num_rows: usize,
    /// `[rows, (heads + 2 kv_heads) · dim]`, of which the queries are read.
    pub qkv: View<'a>,
    /// `[rows, heads · dim]`; rows that are not asked for stay as they are.
    pub out: View<'a>,
    /// i32 `[rows]`.
    pub positions: View<'a>,
    /// Where keys and values are, those of the rows themselves included.
    pub slots: Slots<'a>,
}

/// Rows that are chunks of prompts.
#[derive(Clone, Copy, Debug)]
pub struct Prefill<'a> {
    /// i32 `[tiles, 2]`, as [`prefill_tiles`] makes them: first row and number of rows, consecutive positions of one
    /// sequence. That they are rows of the batch is the runner's word.
    pub tiles: View<'a>,
    /// How many.
    pub num_tiles: usize,
}

/// Rows that are the only one of their sequence.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// [`DecodePiece`]s `[pieces]`, as [`DecodeSplit::pieces`] makes them. That their rows are rows of the batch, and
    /// that what they keep has a place, is the runner's word.
    pub pieces: View<'a>,
    /// How many, those included that are none.
    pub num_pieces: usize,
    /// In which order their blocks begin.
    pub order: DecodeOrder,
    /// Places for results of pieces that wait for others: [`DecodeSplit::max_parts`].
    pub num_parts: usize,
    /// f32, [`partial_bytes`] of them: scratch memory.
    pub partial: View<'a>,
    /// u32 `[parts, kv heads]`, zeros, which they are again when the launch is done.
    pub counters: View<'a>,
}

/// As in `cuda/attention.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    qkv: u64,
    out: u64,
    positions: u64,
    slots: u64,
    token_stride: u64,
    keys_offset: u64,
    num_heads: i32,
    num_kv_heads: i32,
    scale: f32,
    window: i32,
    tiles: u64,
    pieces: u64,
    partial: u64,
    counters: u64,
    num_parts: i32,
    num_pieces: i32,
}

/// The loaded kernels.
#[derive(Debug)]
pub(super) struct AttentionKernels {
    by_dim: [ByElement<Variant>; HEAD_DIMS.len()],
    decode_keys: usize,
}

#[derive(Debug)]
struct Variant {
    prefill: Kernel,
    /// Instead of `prefill`, where there is one.
    prefill_hopper: Option<Kernel>,
    decode: Kernel,
    /// Where a multiprocessor has one block at most.
    decode_few: Kernel,
}

impl AttentionKernels {
    pub(super) fn load(gpu: &Gpu, module: &Module, prefill_hopper: Option<&Module>) -> Result<Self> {
        let decode_keys = decode_keys(gpu.compute_capability());
        let load = |dim| {
            ByElement::load(|element| {
                let decode_bytes = decode_shared_bytes(dim, decode_keys);
                let decode = module.kernel(&format!("decode_{element}_{dim}"), decode_bytes)?;
                Ok::<_, fused_gpu::Error>(Variant {
                    prefill: module.kernel(&format!("prefill_{element}_{dim}"), prefill_shared_bytes(dim))?,
                    prefill_hopper: hopper::load(prefill_hopper, element, dim)?,
                    decode_few: decode.with_shared_percent(FEW_SHARED_PERCENT),
                    decode,
                })
            })
        };
        let [a, b, c, d] = HEAD_DIMS.map(load);
        Ok(Self { by_dim: [a?, b?, c?, d?], decode_keys })
    }

    fn of(&self, checked: Checked, shape: &HeadShape) -> Result<&Variant> {
        let idx = HEAD_DIMS.iter().position(|&dim| dim == shape.head_dim);
        match idx.and_then(|idx| self.by_dim.get(idx)) {
            Some(variants) => Ok(variants.of(shape.element)),
            None => {
                checked.refuse(format!("a head of {} elements, not one of {HEAD_DIMS:?}", shape.head_dim))
            }
        }
    }
}

/// Keys that a decode's warp works on at a time: `DECODE_KEYS` in `cuda/attention.cu`.
fn decode_keys(capability: Capability) -> usize {
    let has_little_shared_memory =
        matches!((capability.major, capability.minor), (8, 6 | 9)) || capability.major >= 12;
    if has_little_shared_memory { 16 } else { 32 }
}

/// Two pieces of keys and two of values, in padded rows.
fn prefill_shared_bytes(dim: usize) -> usize {
    4 * PREFILL_KEYS * (dim + 8) * ELEMENT_BYTES
}

/// The same for each of four warps, and afterwards their results: maxima and sums of 16 rows, and the rows.
fn decode_shared_bytes(dim: usize, keys: usize) -> usize {
    (4 * 4 * keys * (dim + 8) * ELEMENT_BYTES).max(4 * (2 * 4 * 16 + 4 * 16 * dim))
}

/// Bytes of scratch memory that a decode needs: for each part and head a sum of values, a maximum and a sum.
#[must_use]
pub fn partial_bytes(shape: &HeadShape, num_parts: usize) -> usize {
    num_parts.saturating_mul(shape.num_heads).saturating_mul(4 * (shape.head_dim + 2))
}

impl Kernels {
    /// Attention of chunks of prompts: one launch for all of them.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn prefill(&self, attention: &Attention<'_>, prefill: &Prefill<'_>) -> Result<()> {
        let checked = Checked { kernel: "prefill" };
        let variant = self.attention.of(checked, &attention.shape)?;
        let params = Params {
            tiles: checked.matrix("tiles", prefill.tiles, 2 * prefill.num_tiles, 1, 4)?,
            ..attention.params(checked)?
        };
        let shape = attention.shape;
        // It takes a maximum before it multiplies by the scale.
        if let Some(kernel) = variant.prefill_hopper.as_ref().filter(|_| params.scale > 0.0) {
            let num_items = checked.grid_x(prefill.num_tiles.saturating_mul(shape.num_heads))?;
            let grid = (num_items.min(self.gpu.num_multiprocessors() as u32), 1, 1);
            let params = hopper::PrefillParams::new(&params, checked.count("num_tiles", prefill.num_tiles)?);
            let shared_bytes = hopper::shared_bytes(shape.head_dim);
            // SAFETY: as below, with the kernel's own struct, but a block has one tile and head after the other.
            // All launches of these kernels are on the GPU's one stream, none beside another.
            unsafe { self.gpu.launch_early(kernel, grid, hopper::BLOCK, shared_bytes, &params)? };
            return Ok(());
        }
        let grid = (checked.grid_x(prefill.num_tiles)?, checked.grid_yz(shape.num_heads)?, 1);
        let shared_bytes = prefill_shared_bytes(shape.head_dim);
        // SAFETY: `Params` is the kernel's struct. A block has a tile and a head: it reads queries and writes
        // results of the tile's rows, which the runner vouches for, in matrices of so many columns, whose rows
        // begin at multiples of 16 bytes; and it reads keys and values of their slot up to the last row's
        // position, as `Slots` allows. The shared memory is what its constants make it.
        unsafe { self.gpu.launch_early(&variant.prefill, grid, PREFILL_BLOCK, shared_bytes, &params)? };
        Ok(())
    }

    /// Attention of one token of each of some sequences.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn decode(&self, attention: &Attention<'_>, decode: &Decode<'_>) -> Result<()> {
        let checked = Checked { kernel: "decode" };
        let shape = attention.shape;
        let variant = self.attention.of(checked, &shape)?;
        if shape.group() > MAX_GROUP {
            return checked
                .refuse(format!("{} query heads for one of keys, more than {MAX_GROUP}", shape.group()));
        }
        let partial_bytes = partial_bytes(&shape, decode.num_parts);
        let params = Params {
            pieces: checked.matrix("pieces", decode.pieces, decode.num_pieces, 4, 4)?,
            partial: checked.matrix("partial", decode.partial, 1, partial_bytes / 4, 4)?,
            counters: checked.matrix(
                "counters",
                decode.counters,
                decode.num_parts * shape.num_kv_heads,
                1,
                4,
            )?,
            num_parts: checked.count("num_parts", decode.num_parts)?,
            num_pieces: match decode.order {
                DecodeOrder::ByPiece => 0,
                DecodeOrder::ByHead => checked.count("num_pieces", decode.num_pieces)?,
            },
            ..attention.params(checked)?
        };
        let num_blocks = decode.num_pieces.saturating_mul(shape.num_kv_heads);
        let grid = (checked.grid_x(num_blocks)?, 1, 1);
        let shared_bytes = decode_shared_bytes(shape.head_dim, self.attention.decode_keys);
        // Where there are contexts to cut, there is a block for each multiprocessor, and less than one more for each that is
        // not cut.
        let kernel = match num_blocks < 2 * self.gpu.num_multiprocessors() {
            true => &variant.decode_few,
            false => &variant.decode,
        };
        // SAFETY: `Params` is the kernel's struct. A block has the query heads of a key and value head, at most
        // 16, of a row that the runner vouches for, and a piece of its context, of which it reads keys and
        // values up to the row's position, as `Slots` allows. It writes the row's result or its place in
        // `partial`, which the runner vouches for too, and with it for that of its counter. The shared memory is what
        // its constants make it. Before it waits it reads which pieces there are, and their rows' slots and positions,
        // which come with the batch.
        unsafe { self.gpu.launch_early(kernel, grid, DECODE_BLOCK, shared_bytes, &params)? };
        Ok(())
    }
}

impl Attention<'_> {
    fn params(&self, checked: Checked) -> Result<Params> {
        let (shape, rows) = (self.shape, self.num_rows);
        shape.check(checked)?;
        self.layout.check(checked, &shape)?;
        let width = shape.num_all() * shape.head_dim;
        Ok(Params {
            qkv: checked.matrix("qkv", self.qkv, rows, width, ELEMENT_BYTES)?,
            out: checked.matrix("out", self.out, rows, shape.num_heads * shape.head_dim, ELEMENT_BYTES)?,
            positions: checked.matrix("positions", self.positions, rows, 1, 4)?,
            slots: self.slots.address(checked, rows)?,
            token_stride: self.layout.token_stride,
            keys_offset: self.layout.keys_offset,
            num_heads: checked.count("num_heads", shape.num_heads)?,
            num_kv_heads: checked.count("num_kv_heads", shape.num_kv_heads)?,
            // The kernels' exponentials are powers of two.
            scale: self.scale * LOG2_E,
            // A window of more tokens than an i32 counts is none.
            window: self.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(0),
            tiles: 0,
            pieces: 0,
            partial: 0,
            counters: 0,
            num_parts: 0,
            num_pieces: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use fused_gpu::Element;

    use super::*;

    #[test]
    fn shared_memory_fits_every_architecture() {
        let capability = |major, minor| Capability { major, minor };
        // What one block may have, from the CUDA programming guide's table of compute capabilities.
        for (capability, kib) in [
            (capability(8, 0), 163),
            (capability(8, 6), 99),
            (capability(8, 9), 99),
            (capability(9, 0), 227),
            (capability(10, 0), 227),
            (capability(12, 0), 99),
        ] {
            for dim in HEAD_DIMS {
                let decode = decode_shared_bytes(dim, decode_keys(capability));
                assert!(decode.max(prefill_shared_bytes(dim)) <= kib << 10, "{capability} {dim}: {decode}");
            }
        }
    }

    #[test]
    fn scratch_memory_is_for_parts_only() {
        let shape = HeadShape { element: Element::Bf16, num_heads: 32, num_kv_heads: 8, head_dim: 128 };
        assert_eq!(partial_bytes(&shape, 3), 3 * 32 * 130 * 4);
    }
}
