use std::sync::Arc;

use fused_proto::engine::v1::PromptChunk;
use fused_status::{Code, Error, Result};
use fused_vocabulary::TokenId;

use super::{Limits, MAX_PROMPT_LOGPROBS, ValidGenerateRequest};
use crate::sampler::PromptOccurrences;

/// Some of a prompt's tokens, each of them in the vocabulary, in all no more than fit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidPromptChunk {
    pub(crate) tokens: Vec<TokenId>,
    /// With the last chunk: how many tokens may be drawn. They fit into the context.
    pub(crate) max_tokens: Option<usize>,
    /// With the last chunk, where penalties ask for it: which tokens the whole prompt has. Found here, beside the core's thread.
    pub(crate) occurrences: Option<Arc<PromptOccurrences>>,
}

/// How much of a prompt has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrived {
    Partly,
    Wholly,
}

/// Checks a prompt as it arrives.
#[derive(Debug)]
pub(crate) struct PromptReader {
    vocab_size: usize,
    max_model_len: usize,
    max_tokens: Option<usize>,
    default_max_tokens: usize,
    num_prompt_logprobs: Option<u32>,
    num_tokens: usize,
    /// Of the prompt until now, where penalties ask for them.
    occurrences: Option<PromptOccurrences>,
}

impl PromptReader {
    pub(crate) fn new(request: &ValidGenerateRequest, limits: Limits<'_>) -> Self {
        Self {
            vocab_size: limits.model.vocab_size,
            max_model_len: limits.model.max_model_len,
            max_tokens: request.stopping.max_tokens,
            default_max_tokens: request.stopping.default_max_tokens,
            num_prompt_logprobs: request.num_prompt_logprobs,
            num_tokens: 0,
            occurrences: request.sampling.has_penalties().then(PromptOccurrences::default),
        }
    }

    /// Tokens until now.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Checks the next chunk.
    ///
    /// # Errors
    /// A token that is not in the vocabulary, by its position; a prompt that is empty, or too long for the context or
    /// for the log-probabilities asked for.
    pub(crate) fn read(&mut self, chunk: PromptChunk) -> Result<ValidPromptChunk> {
        let arrived = if chunk.last.unwrap_or(false) { Arrived::Wholly } else { Arrived::Partly };
        let first_position = self.num_tokens;
        self.num_tokens = self.num_tokens.saturating_add(chunk.token_ids.len());
        // Before the tokens are looked at: an over-long prompt is told its length, not what else is wrong with it.
        self.check_length(arrived)?;
        let tokens: Vec<_> = chunk.token_ids.into_iter().map(TokenId).collect();
        if let Some(idx) = tokens.iter().position(|token| token.row() >= self.vocab_size) {
            let (token, position, vocab_size) = (tokens[idx], first_position + idx, self.vocab_size);
            let message = format!(
                "token {token} at position {position} of the prompt is not in the vocabulary of {vocab_size}"
            );
            return Err(Error::invalid("prompt", message));
        }
        let left = self.max_model_len - self.num_tokens;
        let max_tokens = self.max_tokens.unwrap_or(self.default_max_tokens).min(left);
        if let Some(occurrences) = &mut self.occurrences {
            occurrences.extend(&tokens);
        }
        if arrived == Arrived::Partly {
            return Ok(ValidPromptChunk { tokens, max_tokens: None, occurrences: None });
        }
        let occurrences = self.occurrences.take().map(Arc::new);
        Ok(ValidPromptChunk { tokens, max_tokens: Some(max_tokens), occurrences })
    }

    fn check_length(&self, arrived: Arrived) -> Result<()> {
        let Self { max_model_len, num_tokens, .. } = *self;
        let max_tokens = self.max_tokens.unwrap_or(1);
        let excess = match arrived {
            Arrived::Wholly if num_tokens == 0 => {
                return Err(Error::invalid("prompt", "the prompt is empty"));
            }
            _ if max_tokens == 0 && num_tokens <= max_model_len => None,
            _ if num_tokens >= max_model_len => {
                Some(("prompt", "shorten it: there is no room for output".to_owned()))
            }
            // Whether the output fits is known when all of the prompt is.
            Arrived::Wholly if num_tokens.saturating_add(max_tokens) > max_model_len => {
                Some(("max_tokens", format!("shorten it, or lower max_tokens, which is {max_tokens}")))
            }
            _ => None,
        };
        if let Some((param, advice)) = excess {
            let at_least = if arrived == Arrived::Wholly { "" } else { "at least " };
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens. However, your prompt contains \
                 {at_least}{num_tokens} input tokens; {advice}."
            );
            return Err(Error::new(Code::ContextLengthExceeded, message).with_param(param));
        }
        let num_logprobs = self.num_prompt_logprobs.map_or(0, |num| num as usize + 1);
        if num_tokens.saturating_mul(num_logprobs) > MAX_PROMPT_LOGPROBS {
            let most = MAX_PROMPT_LOGPROBS / num_logprobs;
            let message = format!(
                "with so many log-probabilities a token a prompt may have {most} tokens, got {num_tokens}"
            );
            return Err(Error::invalid("num_prompt", message));
        }
        Ok(())
    }
}
