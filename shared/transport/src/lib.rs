//! gRPC servers and channels with one set of limits: over sockets between pods, in memory inside one process.
//!
//! The services never know which: they are given a [`tonic::transport::Channel`] and serve tonic routes.

mod channel;
mod memory;
mod replicas;
mod server;

pub use channel::{ChannelError, connect};
pub use memory::{InMemoryListener, in_memory};
pub use replicas::{connect_balanced, replicas};
pub use server::{MAX_MESSAGE_BYTES, bind, server};
