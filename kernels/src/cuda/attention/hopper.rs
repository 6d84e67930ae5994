//! The prefill kernels of Hopper (`cuda/prefill_hopper.cu`).

use fused_gpu::{Kernel, Module};

use super::{ELEMENT_BYTES, Params, TILE_ROWS};

/// Two warpgroups that compute, and one that loads.
pub(super) const BLOCK: u32 = 384;
/// The head dimensions that there are such kernels for.
const HEAD_DIMS: [usize; 2] = [64, 128];
/// Pieces of keys, and as many of values, in shared memory.
const STAGES: usize = 3;

/// As in `cuda/prefill_hopper.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct PrefillParams {
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
    num_tiles: i32,
}

impl PrefillParams {
    pub(super) fn new(params: &Params, num_tiles: i32) -> Self {
        Self {
            qkv: params.qkv,
            out: params.out,
            positions: params.positions,
            slots: params.slots,
            token_stride: params.token_stride,
            keys_offset: params.keys_offset,
            num_heads: params.num_heads,
            num_kv_heads: params.num_kv_heads,
            scale: params.scale,
            window: params.window,
            tiles: params.tiles,
            num_tiles,
        }
    }
}

/// The kernel for an element type and a head dimension, where there is one.
pub(super) fn load(module: Option<&Module>, element: &str, dim: usize) -> fused_gpu::Result<Option<Kernel>> {
    let module = module.filter(|_| HEAD_DIMS.contains(&dim));
    module
        .map(|module| module.kernel(&format!("prefill_hopper_{element}_{dim}"), shared_bytes(dim)))
        .transpose()
}

/// Keys of a piece.
fn num_keys(dim: usize) -> usize {
    if dim == 64 { 192 } else { 128 }
}

/// A tile of queries, the pieces of keys and values, three barriers and two for each piece, room for one more,
/// and the item at work and the next.
pub(super) fn shared_bytes(dim: usize) -> usize {
    (TILE_ROWS + 2 * STAGES * num_keys(dim)) * dim * ELEMENT_BYTES + 8 * (4 + 4 * STAGES) + 16 + 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_fits() {
        for dim in HEAD_DIMS {
            // What a block may have on compute capability 9.0, from the CUDA programming guide.
            assert!(shared_bytes(dim) <= 227 << 10, "{dim}");
        }
    }
}
