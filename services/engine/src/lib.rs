//! The engine: token ids in, token ids out. It never sees text.
//!
//! A request's way: `service` (gRPC) → `request` (validated) → `core` (the loop, on its own OS thread) → `scheduler`
//! (pure: who runs how many tokens) → `kv` (vAttention memory: slots, pages) → `runner` (the forward pass; CPU here) →
//! `model` (one file a family) → `sampler` → back out through the request's stream. `scorer` uses the lower half alone:
//! it measures text that is there already.

mod budget;
mod chunk_schedule;
mod chunk_size;
mod config;
mod core;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod end_tokens;
mod engine;
mod error;
mod events;
pub mod kv;
mod memory;
pub mod model;
mod policy_name;
mod request;
pub mod runner;
pub mod sampler;
pub mod scheduler;
mod scorer;
mod service;
pub mod simulation;
mod throughput;

pub use chunk_schedule::ChunkSchedule;
pub use chunk_size::ChunkSize;
pub use config::{Config, WeightSource};
pub use engine::{Engine, ModelInfo};
pub use error::Error;
pub use memory::container_limit_bytes;
pub use policy_name::{Order, PolicyName, PrefillOrder};
pub use scorer::{Scorer, Window};
pub use service::EngineService;
