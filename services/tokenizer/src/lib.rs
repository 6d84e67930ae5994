//! The tokenizer service: text in, text out, over gRPC; token ids to and from an engine. It sees no tensor.
//!
//! A request's way: `service` (gRPC in and out, validation) → `generate` (its life, one function) → `prompt` (chat
//! template, special tokens, encoding, on a bounded CPU pool, into `prompt_ids`, which are read while they are made) →
//! `engines` (which replica, its client) → `detokenize`
//! (ids to whole characters) → `stop` (stop strings) → back out through `service`. Dropping the response stream drops
//! the engine's stream with it, which frees the engine's memory.

mod chat_template;
mod config;
mod detokenize;
mod encode;
mod engines;
mod error;
mod events;
mod generate;
mod generation_defaults;
mod prompt;
mod prompt_ids;
mod service;
mod special_tokens;
mod stop;
mod text_memory;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_info;

#[cfg(test)]
mod tests;

pub use chat_template::{RENDER_COMMAND, answer_render_job, render_chat_template};
pub use config::Config;
pub use error::Error;
pub use fused_transport::Readiness;
pub use service::TextService;
pub use tokenizer::Tokenizer;
