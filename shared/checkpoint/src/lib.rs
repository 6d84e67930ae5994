//! Hugging Face model directories: what a model is made of, read and checked once.
//!
//! [`ModelFiles`] finds the files (a directory, a hub id, or carried in the binary); [`ModelConfig`] is config.json,
//! normalised over the families served here; [`Checkpoint`] gives the tensors of one or sharded safetensors files,
//! in place. Whatever is wrong with a model is found here, at start, and said with the model's, file's, key's or
//! tensor's name. [`Shards`] writes safetensors files, tensor after tensor. This crate never computes with weights and
//! never looks into a tokenizer.

mod config;
mod error;
mod files;
mod foreign;
mod hub;
mod tensor;
mod tied;
mod weights;
mod writer;

pub use config::{Activation, Family, ModelConfig, Rope, RopeScaling};
pub use error::{Error, Result};
pub use files::{FileBytes, ModelFiles, TEMPLATE_FOLDER, Wanted};
pub use hub::HubError;
pub use tensor::{Dtype, StoredDtype, StoredTensor, Tensor};
pub use tied::TokenTensors;
pub use weights::Checkpoint;
pub use writer::{NewTensor, Shards, TensorSink};
