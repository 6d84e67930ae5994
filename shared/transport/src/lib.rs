//! What lies between the services, and at the sockets: channels over sockets or inside one process, fleets of replicas,
//! and the one server of HTTP and gRPC connections, with one set of limits.
//!
//! The services never know which way they are reached: they are given [`Replica`]s and serve tonic routes. A request's
//! way: [`serve()`] accepts the connection and keeps its limits → [`grpc()`] keeps those of gRPC
//! messages → the service → [`Fleet`] chooses a replica of the next service → [`Channel`].

mod channel;
mod fleet;
mod grpc;
mod in_process;
mod replicas;
mod serve;

pub use channel::{Channel, ChannelError, connect};
pub use fleet::{Failed, Fault, Fleet, Kind, Lease, Load, Readiness, Timing};
pub use grpc::{MAX_MESSAGE_BYTES, grpc};
pub use in_process::in_process;
pub use replicas::{Replica, follow};
pub use serve::{Limits, bind, serve};
