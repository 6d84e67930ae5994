//! A model adapted to a patch vocabulary (AdaptiVocab, arXiv 2503.19693, section 3.3): what its matrices, its
//! configuration and its files are, given the base model's.
//!
//! [`AdaptedRows`] is the arithmetic, a few rows at a time: the engine makes a whole matrix of it while it loads an
//! unadapted model, [`AdaptedModel`] writes it block by block into a model directory. So what is computed at load and
//! what is written are the same bits. [`AdaptedConfig`] gives the configuration files their model ids. [`tokenizer_json`] is the base tokenizer
//! that both belong to.
//!
//! This room holds no model in memory, never runs one, and leaves to its caller where a directory is made and what
//! becomes of it.

mod card;
mod config;
mod error;
mod model;
mod rows;
mod tokenizer;

pub use config::AdaptedConfig;
pub use error::{Error, Result};
pub use model::{AdaptedModel, Progress};
pub use rows::AdaptedRows;
pub use tokenizer::tokenizer_json;
