//! Virtual memory with physical pages mapped on demand.
//!
//! A range of addresses is reserved once, large and free of charge; physical pages are created apart from it, mapped into
//! it where they are needed, and moved elsewhere later without copying a byte. The shape is that of the CUDA driver's
//! calls, so that what allocates KV memory is the same code on a GPU ([`VirtualMemory`]), on the host ([`LinuxMemory`])
//! and in simulation ([`SimulatedMemory`]).
//!
//! This room knows nothing of tokens, requests or models. Every backend asks one ledger whether a call
//! is legal before it makes it, so that a wrong call is an error and never undefined behaviour.

mod error;
mod ledger;
mod linux;
mod simulated;
mod virtual_memory;

pub use error::{Error, IllegalUse, Result};
pub use linux::LinuxMemory;
pub use simulated::{Calls, SimulatedMemory};
pub use virtual_memory::{Access, HandleId, HostMemory, RangeId, VirtualMemory};
