use std::sync::Arc;
use std::time::Instant;

use fused_status::{Code, Error, Result};
use fused_vocabulary::{SpecialTokens, TokenId, Vocabulary};

use crate::chat_template::{ChatRequest, ChatTemplates, Conversation};
use crate::encode::EncodePool;
use crate::events;
use crate::special_tokens::Affixes;

/// What a caller wants continued.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(TextPrompt),
    Tokens(Vec<TokenId>),
}

/// A prompt that is still text.
#[derive(Debug)]
pub(crate) struct TextPrompt {
    pub(crate) source: TextSource,
    pub(crate) special_tokens: SpecialTokens,
}

/// Where the text comes from.
#[derive(Debug)]
pub(crate) enum TextSource {
    Plain(String),
    Chat(Box<ChatRequest>),
}

/// How many tokens a prompt may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PromptLimit {
    /// Any number: nothing is generated from it.
    None,
    /// The model's context; a longer prompt is refused.
    Refuse { max_model_len: usize },
    /// Only so many last tokens are kept.
    KeepLast { num_tokens: usize },
}

/// A prompt as the engine takes it.
#[derive(Debug)]
pub(crate) struct EncodedPrompt {
    pub(crate) ids: Vec<TokenId>,
    /// What the base vocabulary would have taken.
    pub(crate) num_base_tokens: usize,
    /// What the chat template made, where one did.
    pub(crate) rendered: Option<String>,
}

/// Prompts to token ids.
pub(crate) struct PromptEncoder {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) templates: ChatTemplates,
    pub(crate) affixes: Affixes,
    pub(crate) max_prompt_bytes: usize,
}

impl PromptEncoder {
    /// Parses, renders and encodes a prompt, on the pool where there is work to do.
    pub(crate) async fn encode(
        self: &Arc<Self>,
        pool: &EncodePool,
        prompt: Prompt,
        limit: PromptLimit,
    ) -> Result<EncodedPrompt> {
        match prompt {
            Prompt::Tokens(ids) => self.take_ids(ids, limit),
            Prompt::Text(prompt) => {
                let started = Instant::now();
                let encoder = Arc::clone(self);
                let encoded = pool.run(move || encoder.encode_text(prompt, limit)).await?;
                events::encoded(started.elapsed());
                Ok(encoded)
            }
        }
    }

    fn encode_text(&self, prompt: TextPrompt, limit: PromptLimit) -> Result<EncodedPrompt> {
        let is_chat = matches!(prompt.source, TextSource::Chat(_));
        let (text, param) = match prompt.source {
            TextSource::Plain(text) => (text, "prompt"),
            TextSource::Chat(request) => {
                (self.templates.render(&Conversation::try_from(*request)?)?, "messages")
            }
        };
        self.check_bytes(&text, limit).map_err(|error| error.with_param(param))?;
        let encoding = self.vocabulary.encode(&text, SpecialTokens::Omit).map_err(|error| {
            Error::invalid(param, "the tokenizer cannot encode this text").with_cause(&error)
        })?;
        let mut ids = encoding.ids;
        let num_bare = ids.len();
        if prompt.special_tokens == SpecialTokens::Add {
            self.affixes.wrap(&mut ids);
        }
        let num_base_tokens = encoding.num_base_tokens + ids.len() - num_bare;
        let encoded = EncodedPrompt { ids, num_base_tokens, rendered: is_chat.then_some(text) };
        self.apply(limit, encoded).map_err(|error| error.with_param(param))
    }

    fn take_ids(&self, ids: Vec<TokenId>, limit: PromptLimit) -> Result<EncodedPrompt> {
        let vocab_size = self.vocabulary.vocab_size();
        if let Some(id) = ids.iter().find(|id| id.row() >= vocab_size) {
            let message = format!("token id {id} is out of range: the vocabulary has {vocab_size} tokens");
            return Err(Error::invalid("prompt", message));
        }
        let num_base_tokens = self.num_base_tokens(&ids);
        self.apply(limit, EncodedPrompt { ids, num_base_tokens, rendered: None })
            .map_err(|error| error.with_param("prompt"))
    }

    /// Refuses, before any tokenizing, a text that cannot fit even if every token in it were the longest there is.
    fn check_bytes(&self, text: &str, limit: PromptLimit) -> Result<()> {
        if let PromptLimit::Refuse { max_model_len } = limit
            && text.len() > max_model_len.saturating_mul(self.vocabulary.max_token_bytes())
        {
            return Err(too_long(max_model_len, &format!("{} bytes, which cannot fit", text.len())));
        }
        if text.len() > self.max_prompt_bytes {
            let message = format!("the prompt has {} bytes, over {}", text.len(), self.max_prompt_bytes);
            return Err(Error::new(Code::PayloadTooLarge, message));
        }
        Ok(())
    }

    fn apply(&self, limit: PromptLimit, mut encoded: EncodedPrompt) -> Result<EncodedPrompt> {
        let num_tokens = encoded.ids.len();
        match limit {
            _ if num_tokens == 0 => Err(Error::new(Code::InvalidArgument, "the prompt is empty")),
            PromptLimit::Refuse { max_model_len } if num_tokens > max_model_len => {
                Err(too_long(max_model_len, &format!("{num_tokens} tokens")))
            }
            PromptLimit::KeepLast { num_tokens: num_kept } if num_tokens > num_kept => {
                encoded.ids.drain(..num_tokens - num_kept);
                encoded.num_base_tokens = self.num_base_tokens(&encoded.ids);
                Ok(encoded)
            }
            _ => Ok(encoded),
        }
    }

    fn num_base_tokens(&self, ids: &[TokenId]) -> usize {
        ids.iter().map(|id| self.vocabulary.num_base_tokens(*id)).sum()
    }
}

fn too_long(max_model_len: usize, prompt: &str) -> Error {
    let message = format!(
        "This model's maximum context length is {max_model_len} tokens, but the prompt has {prompt}. Shorten it."
    );
    Error::new(Code::ContextLengthExceeded, message)
}
