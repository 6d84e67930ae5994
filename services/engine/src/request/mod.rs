//! What a client may ask for. Only this room makes a [`ValidGenerateRequest`]; whoever has one need not look again.

mod opening;
mod prompt;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use fused_vocabulary::TokenId;

use crate::ModelInfo;
use crate::sampler::Sampling;

pub(crate) use prompt::{PromptReader, ValidPromptChunk};

/// Bytes of a request's id.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Sequences of one request; the number of slots bounds them too.
const MAX_NUM_SEQUENCES: usize = 128;
/// Stop tokens of one request.
const MAX_STOP_TOKEN_IDS: usize = 256;
/// Entries of `logit_bias`.
const MAX_LOGIT_BIAS: usize = 1024;
/// Bytes of `group_id`.
const MAX_GROUP_ID_BYTES: usize = 128;
/// Bytes of `cache_salt`.
const MAX_CACHE_SALT_BYTES: usize = 256;
/// Log-probabilities in one prompt info, which is one message: about 3.5 MB of the 4 that gRPC clients accept.
const MAX_PROMPT_LOGPROBS: usize = 1 << 18;

/// The caller's name for a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

/// An opening in which every value is in range.
#[derive(Clone, Debug)]
pub(crate) struct ValidGenerateRequest {
    pub(crate) id: RequestId,
    pub(crate) sampling: Sampling,
    pub(crate) stopping: Stopping,
    /// How many of the likeliest output tokens to return; `None`: no log-probabilities.
    pub(crate) num_logprobs: Option<u32>,
    /// The same for the prompt's tokens.
    pub(crate) num_prompt_logprobs: Option<u32>,
    /// At least one.
    pub(crate) num_sequences: u32,
    /// From arrival.
    pub(crate) timeout: Option<Duration>,
    /// Prefixes are shared only between requests with the same one; never empty.
    pub(crate) cache_salt: Option<Arc<str>>,
    /// What the requests of one caller's request have in common; never empty.
    pub(crate) group_id: Option<Arc<str>>,
    /// Lower is earlier, where the order asks for it.
    pub(crate) priority: i32,
    /// Keeps everybody else from making one.
    _validated: (),
}

/// When a sequence ends.
#[derive(Clone, Debug)]
pub(crate) struct Stopping {
    /// As given. What holds in the end is known when the prompt is: see [`ValidPromptChunk`].
    pub(crate) max_tokens: Option<usize>,
    /// Where none are given; other than those it need not fit into the context.
    pub(crate) default_max_tokens: usize,
    pub(crate) min_tokens: usize,
    /// End-of-sequence tokens; empty where the request ignores them.
    pub(crate) eos_token_ids: Vec<TokenId>,
    pub(crate) stop_token_ids: Vec<TokenId>,
}

/// What validation has to know about this engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) model: &'a ModelInfo,
}
