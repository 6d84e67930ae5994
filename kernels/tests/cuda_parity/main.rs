//! Every CUDA kernel against this crate's f32 functions: odd sizes, one row, large shapes, and twice with the
//! same bits.
//!
//! What is compared with has the same rounded inputs. A result may be off by twice what rounding the exact one
//! to the kernel's type makes it; where a kernel rounds in between (attention), by twice what a plain version
//! that rounds in the same places is off. Says that it skips where there is no GPU; `FUSED_REQUIRE_GPU` makes
//! that a failure.
#![allow(unsafe_code, reason = "addresses that no check can see are vouched for")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "the helpers of tests, which the lints take for production code"
)]

mod attention;
mod device;
mod few;
mod graph;
mod heads;
mod products;
mod rows;
mod sample;
