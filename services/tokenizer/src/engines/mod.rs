//! The engines behind this tokenizer: which are usable, and the client that talks to the one that a request goes to.

mod client;
mod fleet;

pub(crate) use client::{EngineRequest, EngineStream, Event, Finish, FinishReason, Matched, Parameters};
pub(crate) use fleet::{Engines, Model};
