//! The arithmetic of the forward pass: on the CPU here, in f32 with weights in their own precision, and on an NVIDIA GPU in
//! `cuda` (with the feature of that name), for which what is here is the reference.
//!
//! Every function here is *batch-invariant*: a row's result is the same bit for bit whatever other rows are in the
//! batch, however many threads run, and into whatever chunks a prompt was cut. "The same seed gives the same text
//! whatever else is in the batch" and "a chunked prefill equals a whole one" rest on it. It holds because the sequence
//! of operations behind one number depends on that number's own row (and, in attention, its position) only; blocking
//! and threads merely choose who computes which numbers when. Between instruction sets results may differ in the last
//! bits.
//!
//! Threads: functions split their work over the rayon pool they are called in, and run inline where the work is
//! smaller than a fork (`parallel`). Shapes that disagree are a programming error and panic; models are checked against
//! their configuration when they are loaded.

mod simd;
#[cfg(test)]
mod testing;

#[cfg(feature = "cuda")]
pub mod cuda;

mod activation;
mod attention;
mod element;
mod linear;
mod matrix;
mod norm;
mod parallel;
mod rope;
mod sample;

pub use activation::{Activation, activate, activate_gated, add_assign};
pub use attention::{Attention, AttentionSequence, attention};
pub use element::Elements;
pub use linear::linear;
pub use matrix::{Matrix, MatrixError};
pub use norm::{layer_norm, rms_norm, rms_norm_in_place};
pub use parallel::for_each_chunk;
pub use rope::{rope_angles, rotate};
pub use sample::{Adjustments, Bias, Occurrence, RowSampling, draw, logprobs};
pub use simd::instruction_set;
