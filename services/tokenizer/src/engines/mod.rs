//! The engines behind this tokenizer: which are usable, which one a request goes to, and the client that talks to it.

mod client;
mod fleet;
mod routing;

use tonic::transport::Channel;

pub(crate) use client::{EngineRequest, EngineStream, Event, Finish, FinishReason, Matched, Parameters};
pub(crate) use fleet::{Fleet, Model};

/// An engine to send requests to.
#[derive(Clone, Debug)]
pub struct EngineEndpoint {
    /// What logs call it.
    pub name: String,
    /// The way to it; connects when first used and reconnects by itself.
    pub channel: Channel,
}

/// Whether requests can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At least one engine is usable.
    Ready,
    /// None is, and why.
    NotReady(String),
}
