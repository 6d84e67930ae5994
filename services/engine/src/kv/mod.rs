//! KV memory as vAttention has it (arXiv 2405.04437): a sequence's keys and values are contiguous in virtual memory, and
//! physical pages are mapped under them on demand.
//!
//! Every slot is a range of addresses for one sequence of the greatest length, reserved once. Pages move between slots
//! without being copied; a slot that is given back keeps its pages ("parked") until somebody needs them, so that steady
//! state makes no system calls. Pure bookkeeping apart from its calls to [`VirtualMemory`](fused_virtual_memory): no
//! clock, no I/O, no randomness.

mod cache;
mod error;
mod layout;
mod size;
#[cfg(test)]
mod tests;

pub use cache::{KvCache, SlotId};
pub use error::Error;
pub use layout::KvLayout;
pub use size::{KvSize, KvStats};
