//! The forward pass on an NVIDIA GPU: own CUDA C++ in `kernels/cuda`, and one safe function per kernel here.
//!
//! A function checks everything that the host can know: element types, shapes, alignment, that every buffer is
//! long enough for what the kernel will touch, and the shape of the launch. What stands in device memory it
//! cannot see: ids and indices are the runner's word, and addresses ([`Slots`], [`SampledRows`]) are
//! vouched for, which is unsafe. No
//! token id can do harm: the kernels clamp ids, and positions, to the table that they look into.
//!
//! On Hopper each kernel begins while the one before it still runs ([`fused_gpu::Gpu::launch_early`]), and waits
//! before it touches anything but weights and what the runner copies to the device for a step (positions, slots
//! and which rows there are): that must come by a copy, never from a kernel.
//!
//! The work is the CPU's, in other types: the residual stream and all sums are f32, everything between two
//! products is bf16 or f16. `tests/cuda_parity` compares each kernel with this crate's f32 functions.

mod error;
mod image;
mod kernels;

mod checked;
mod slots;

mod attention;
mod rows;
mod sample;

pub use attention::{
    Attention, Decode, DecodeOrder, DecodePiece, DecodePieces, DecodeSplit, HEAD_DIMS, Prefill, TILE_ROWS,
    partial_bytes, prefill_tiles,
};
pub use error::{Error, Result};
pub use fused_gpu::Element;
pub use image::Origin;
pub use kernels::Kernels;
pub use rows::{Activate, Embed, Few, FewInput, FewOutput, Heads, MAX_FEW_ROWS, MIN_FEW_OUTPUTS, Norm};
pub use sample::{MAX_TOP, Sample, SampledRows};
pub use slots::{HeadShape, KvLayout, Slots};
