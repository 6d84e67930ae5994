//! Attention of Llama-8B over slots as the engine lays them out: all layers of a token side by side.

use fused_gpu::Buffer;
use fused_kernels::cuda::{
    Attention, Decode, Element, Error, HeadShape, Kernels, KvLayout, Prefill, Slots, num_splits,
    partial_bytes, prefill_tiles,
};

use crate::table::{Table, Work};

const SHAPE: HeadShape = HeadShape { element: Element::Bf16, num_heads: 32, num_kv_heads: 8, head_dim: 128 };
const NUM_LAYERS: usize = 32;
/// Keys and values of one token and layer.
const LAYER_BYTES: usize = 2 * 8 * 128 * 2;
const TOKEN_BYTES: usize = NUM_LAYERS * LAYER_BYTES;

/// Sequences with slots of their own.
struct Batch {
    _kept: Buffer,
    qkv: Buffer,
    out: Buffer,
    positions: Buffer,
    slots: Buffer,
    num_rows: usize,
}

pub(crate) fn print(table: &Table, kernels: &Kernels) -> Result<(), Error> {
    for (num_tokens, num_new) in [(2048, 2048), (8192, 8192), (8192, 2048), (8192, 512), (32_768, 2048)] {
        let batch = Batch::new(table, 1, num_tokens, num_new)?;
        let tiles = prefill_tiles(&[(0, num_new)]);
        let num_tiles = tiles.len();
        let tiles = table.gpu.upload(bytemuck::cast_slice(&tiles))?;
        let pairs = num_new as f64 * (num_tokens as f64 - (num_new as f64 - 1.0) / 2.0);
        let flops = 4.0 * pairs * (SHAPE.num_heads * SHAPE.head_dim) as f64;
        let shape = format!("{num_new} tokens at the end of {num_tokens}");
        table.line("prefill", &shape, Work::Flops(flops), 4, |layer| {
            kernels.prefill(&batch.attention(layer), &Prefill { tiles: tiles.view(), num_tiles })
        })?;
    }
    for (num_sequences, num_tokens) in
        [(1, 1024), (1, 8192), (1, 32_768), (8, 1024), (32, 8192), (64, 1024), (256, 512), (256, 1024)]
    {
        let batch = Batch::new(table, num_sequences, num_tokens, 1)?;
        let rows = table.indices(0..num_sequences)?;
        let counters = table.gpu.alloc_zeroed(4 * num_sequences * SHAPE.num_kv_heads)?;
        let best = num_splits(num_sequences, SHAPE.num_kv_heads, table.gpu.num_multiprocessors());
        for num_splits in [1, 2, 4, 8, 16] {
            let partial = table.gpu.alloc(partial_bytes(&SHAPE, num_sequences, num_splits))?;
            let chosen = if num_splits == best { ", as chosen" } else { "" };
            let shape = format!("{num_sequences} sequences of {num_tokens}, {num_splits} parts{chosen}");
            let bytes = (num_sequences * num_tokens * LAYER_BYTES) as f64;
            table.line("decode", &shape, Work::Bytes(bytes), NUM_LAYERS, |layer| {
                let decode = Decode {
                    rows: rows.view(),
                    num_sequences,
                    num_splits,
                    partial: partial.view(),
                    counters: counters.view(),
                };
                kernels.decode(&batch.attention(layer), &decode)
            })?;
        }
    }
    Ok(())
}

impl Batch {
    fn new(table: &Table, num_sequences: usize, num_tokens: usize, num_new: usize) -> Result<Self, Error> {
        let num_rows = num_sequences * num_new;
        let kept = table.random(num_sequences * num_tokens * TOKEN_BYTES)?;
        let slots: Vec<u64> = (0..num_rows)
            .map(|row| kept.address() + (row / num_new * num_tokens * TOKEN_BYTES) as u64)
            .collect();
        Ok(Self {
            qkv: table.random(2 * num_rows * SHAPE.num_all() * SHAPE.head_dim)?,
            out: table.random(2 * num_rows * SHAPE.num_heads * SHAPE.head_dim)?,
            positions: table.indices((0..num_rows).map(|row| num_tokens - num_new + row % num_new))?,
            slots: table.gpu.upload(bytemuck::cast_slice(&slots))?,
            _kept: kept,
            num_rows,
        })
    }

    fn attention(&self, layer: usize) -> Attention<'_> {
        Attention {
            shape: SHAPE,
            layout: KvLayout {
                token_stride: TOKEN_BYTES as u64,
                keys_offset: (layer % NUM_LAYERS * LAYER_BYTES) as u64,
            },
            scale: 1.0 / (SHAPE.head_dim as f32).sqrt(),
            window: None,
            num_rows: self.num_rows,
            qkv: self.qkv.view(),
            out: self.out.view(),
            positions: self.positions.view(),
            // SAFETY: memory of the bench for every row's tokens, which lives until it has waited for the launches.
            slots: unsafe { Slots::vouched_for(self.slots.view()) },
        }
    }
}
