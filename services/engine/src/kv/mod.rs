//! KV memory as vAttention has it (arXiv 2405.04437): a sequence's keys and values are contiguous in virtual memory, and
//! physical pages are mapped under them on demand.
//!
//! Every slot is a range of addresses for one sequence of the greatest length, reserved once. Physical memory comes in
//! extents of 1, 2, 4 … 32 pages, because the driver charges by extent, not by byte: a prompt takes few large ones, a growing
//! sequence small ones, mapped ahead of its need by a thread of their own while a step runs. A slot that is given back keeps
//! its pages ("parked"): the next sequence adopts it whole, so that steady state makes no driver calls, and pages leave it
//! only when somebody needs them, from the slot longest out of use first.
//!
//! Where the system has no memory for an extent, because a neighbour on the GPU has taken it, the pool shrinks to what was
//! had, and those who run are served from that: the last in order gives way, as where the pool was small from the start. It
//! grows again as the memory comes back.
//!
//! **Prefix sharing.** A slot also keeps what is in its pages. A sequence whose prompt begins like a slot's content goes on in
//! that very slot, or has the extents of the common beginning mapped, for reading only, at the start of a slot of its own,
//! and the rest of the beginning copied. So every sequence stays contiguous, and plain attention kernels run on shared
//! prefixes too; lists of segments would save the driver calls and burden every kernel. An extent has as many references as
//! slots that map it; it may be written where there is one.
//!
//! What the allocator of vAttention's authors has, and where it is here: deferred reclamation: parked slots (`parked`, `pages`);
//! eager allocation, for the sequence that comes next, and overlapped allocation: `ahead` and `mapper`; tensor slicing: `layout`; over-commit accounting: what no live
//! sequence needs counts as available (`extents`); `map_common_pages`: `admit`; its watermark: `cache`.
//!
//! Bookkeeping is pure: no clock (but for the mapper's thread, which measures waits), no I/O apart from calls to
//! [`VirtualMemory`](fused_virtual_memory), no randomness.

mod admit;
mod ahead;
mod cache;
mod choose;
mod error;
mod extents;
mod find;
mod layout;
mod mapper;
mod pages;
mod parked;
mod prefix;
mod size;
mod slot;
mod stats;
#[cfg(test)]
mod tests;

pub use admit::{Admission, Candidate};
pub use cache::{KvCache, KvCopy, SlotUse};
pub use error::Error;
pub use find::Coming;
pub use layout::KvLayout;
pub use size::KvSize;
pub use slot::SlotId;
pub use stats::KvStats;
