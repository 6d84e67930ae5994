//! OpenAI-style REST to the text API and back.
//!
//! The gateway knows HTTP, API keys and limits. It never sees a token id's meaning, a model or an engine: what a request
//! says is checked as far as HTTP can tell, translated to `fused.text.v1`, and the answer translated back, whole or as
//! server-sent events.
//!
//! The way of one request: `edge` gives it an id, a span and an end; `auth` asks for the key and knows whose it is;
//! `admission` reads its body and counts it in; `api` has one file a route; `generation` holds its calls to the text service; `sse`
//! streams the answer. Whatever fails on the way leaves through `error`. Dropping the response drops the calls, and
//! that cancels the request everywhere.

mod admission;
mod api;
mod auth;
mod backend;
mod config;
mod edge;
mod error;
mod events;
mod field_names;
mod fields;
mod gateway;
mod generation;
mod identity;
mod sse;

pub use auth::{ApiKeys, KeyFileError, KeySources};
pub use config::{Config, RenderMetrics};
pub use gateway::Gateway;
