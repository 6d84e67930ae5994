//! Attention of Llama-8B over slots as the engine lays them out: all layers of a token side by side.

use fused_gpu::Buffer;
use fused_kernels::cuda::{
    Attention, Decode, DecodeOrder, DecodePiece, DecodePieces, DecodeSplit, Element, Error, HeadShape,
    Kernels, KvLayout, Prefill, Slots, partial_bytes, prefill_tiles,
};

use crate::table::{Table, Work};

const SHAPE: HeadShape = HeadShape { element: Element::Bf16, num_heads: 32, num_kv_heads: 8, head_dim: 128 };
const NUM_LAYERS: usize = 32;
/// Keys and values of one token and layer.
const LAYER_BYTES: usize = 2 * 8 * 128 * 2;
const TOKEN_BYTES: usize = NUM_LAYERS * LAYER_BYTES;

/// Batches that decode: so many sequences of so many tokens; and some of both kinds together.
const DECODES: [&[(usize, usize)]; 14] = [
    &[(1, 1024)],
    &[(1, 8192)],
    &[(1, 32_768)],
    &[(2, 1024)],
    &[(8, 1024)],
    &[(24, 1024)],
    &[(32, 8192)],
    &[(64, 1024)],
    &[(256, 512)],
    &[(256, 1024)],
    &[(31, 128), (1, 100_000)],
    &[(63, 1024), (1, 32_768)],
    &[(255, 500), (1, 100_000)],
    &[(8, 128), (2, 50_000)],
];

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
        let batch = Batch::new(table, &[num_tokens], num_new)?;
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
    let split = DecodeSplit::new(SHAPE.num_kv_heads, table.gpu.num_multiprocessors());
    let partial = table.gpu.alloc(partial_bytes(&SHAPE, split.max_parts()))?;
    let counters = table.gpu.alloc_zeroed(4 * split.max_parts() * SHAPE.num_kv_heads)?;
    for groups in DECODES {
        let lengths: Vec<usize> = groups.iter().flat_map(|&(num, len)| vec![len; num]).collect();
        let batch = Batch::new(table, &lengths, 1)?;
        let contexts: Vec<_> = lengths.iter().copied().enumerate().collect();
        let DecodePieces { mut pieces, order } = split.pieces(&contexts);
        let num_used = pieces.len();
        if order == DecodeOrder::ByPiece {
            // As in a graph.
            pieces.resize(split.max_pieces(lengths.len()), DecodePiece::NONE);
        }
        let num_pieces = pieces.len();
        let pieces = table.gpu.upload(bytemuck::cast_slice(&pieces))?;
        let names: Vec<_> = groups.iter().map(|(num, len)| format!("{num} of {len}")).collect();
        let shape = format!("{}, {num_used} pieces", names.join(" + "));
        let bytes = (lengths.iter().sum::<usize>() * LAYER_BYTES) as f64;
        table.line("decode", &shape, Work::Bytes(bytes), NUM_LAYERS, |layer| {
            let decode = Decode {
                pieces: pieces.view(),
                num_pieces,
                order,
                num_parts: split.max_parts(),
                partial: partial.view(),
                counters: counters.view(),
            };
            kernels.decode(&batch.attention(layer), &decode)
        })?;
    }
    Ok(())
}

impl Batch {
    /// Sequences of so many tokens, the last `num_new` of each new.
    fn new(table: &Table, lengths: &[usize], num_new: usize) -> Result<Self, Error> {
        let num_rows = lengths.len() * num_new;
        let kept = table.random(lengths.iter().sum::<usize>() * TOKEN_BYTES)?;
        let mut start = kept.address();
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        for num_tokens in lengths {
            slots.extend(vec![start; num_new]);
            positions.extend(num_tokens - num_new..*num_tokens);
            start += (num_tokens * TOKEN_BYTES) as u64;
        }
        Ok(Self {
            qkv: table.random(2 * num_rows * SHAPE.num_all() * SHAPE.head_dim)?,
            out: table.random(2 * num_rows * SHAPE.num_heads * SHAPE.head_dim)?,
            positions: table.indices(positions.into_iter())?,
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
