//! Virtual memory with physical pages mapped on demand.
//!
//! A range of addresses is reserved once, large and free of charge; physical pages are created apart from it, mapped into
//! it where they are needed, and moved elsewhere later without copying a byte. The shape is that of the CUDA driver's
//! calls, so that what allocates KV memory is the same code on a GPU (`CudaMemory`, with the feature `cuda`), on the host
//! ([`LinuxMemory`]) and in simulation ([`SimulatedMemory`]).
//!
//! A step [pins](Pinned) the mapped pages it works on. Until it lets go of them they stay as they are, while another thread
//! maps what the next step needs.
//!
//! This room knows nothing of tokens, requests or models. Every backend asks one ledger whether a call
//! is legal before it makes it, so that a wrong call is an error and never undefined behaviour.

#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod ledger;
mod linux;
mod pinned;
mod simulated;
mod virtual_memory;

#[cfg(feature = "cuda")]
pub use cuda::{CudaMemory, DeviceSpan};
pub use error::{Error, IllegalUse, Result};
pub use linux::LinuxMemory;
pub use pinned::{Pinned, Span};
pub use simulated::{Calls, CostBySize, DriverCosts, SimulatedMemory};
pub use virtual_memory::{Access, HandleId, HostMemory, PinToken, RangeId, VirtualMemory};
