use std::sync::Arc;
use std::time::Instant;

use fused_status::{Code, Error, Result};
use fused_vocabulary::{SpecialTokens, TokenId, Vocabulary};

use crate::chat_template::{ChatRequest, ChatTemplates, Conversation};
use crate::encode::EncodePool;
use crate::events;
use crate::prompt_ids::{Encoded, PromptIds, PromptWriter, prompt_ids};
use crate::special_tokens::Affixes;

/// Text that is encoded between two looks at what has come of it: a millisecond's work.
const PIECE_BYTES: usize = 16 << 10;

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

/// Prompts to token ids.
pub(crate) struct PromptEncoder {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) templates: ChatTemplates,
    pub(crate) affixes: Affixes,
    pub(crate) max_prompt_bytes: usize,
}

impl PromptEncoder {
    /// Parses, renders and encodes a prompt, on the pool where there is work to do. Returns when its first ids are there,
    /// or all of them: those of a long text go to an engine while its tail is still text.
    ///
    /// # Errors
    /// What is wrong with the prompt, as far as that is known by then; the queue of texts is full.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        pool: &EncodePool,
        prompt: Prompt,
        limit: PromptLimit,
    ) -> Result<PromptIds> {
        let (writer, mut ids) = prompt_ids();
        match prompt {
            Prompt::Tokens(tokens) => {
                let result = self.take_ids(tokens, limit, &writer);
                writer.end(result);
            }
            Prompt::Text(prompt) => {
                let encoder = Arc::clone(self);
                let started = Instant::now();
                pool.spawn(move |place| {
                    if !writer.is_abandoned() {
                        let result = encoder.encode_text(prompt, limit, &writer);
                        events::encoded(started.elapsed());
                        drop(place);
                        writer.end(result);
                    }
                })?;
            }
        }
        ids.begun().await?;
        Ok(ids)
    }

    fn encode_text(&self, prompt: TextPrompt, limit: PromptLimit, writer: &PromptWriter) -> Result<Encoded> {
        let is_chat = matches!(prompt.source, TextSource::Chat(_));
        let (text, param) = match prompt.source {
            TextSource::Plain(text) => (text, "prompt"),
            TextSource::Chat(request) => {
                (self.templates.render(&Conversation::try_from(*request)?)?, "messages")
            }
        };
        let bare = Affixes::default();
        let affixes = if prompt.special_tokens == SpecialTokens::Add { &self.affixes } else { &bare };
        let num_base_tokens = self
            .check_bytes(&text, limit)
            .and_then(|()| self.encode_pieces(&text, affixes, limit, writer))
            .map_err(|error| error.with_param(param))?;
        Ok(Encoded { num_base_tokens, rendered: is_chat.then_some(text) })
    }

    /// Writes the ids of a text, those of a long one bit by bit, and counts the tokens of the base vocabulary.
    fn encode_pieces(
        &self,
        text: &str,
        affixes: &Affixes,
        limit: PromptLimit,
        writer: &PromptWriter,
    ) -> Result<usize> {
        let failed = |error: fused_vocabulary::Error| {
            Error::new(Code::InvalidArgument, "the tokenizer cannot encode this text").with_cause(&error)
        };
        let mut encoder = self.vocabulary.encoder();
        let (mut ids, mut num_written, mut num_around) = (Vec::new(), 0, 0);
        let mut rest = text;
        while rest.len() > PIECE_BYTES {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            encoder.push(piece, &mut ids).map_err(failed)?;
            rest = after;
            match limit {
                PromptLimit::Refuse { max_model_len } if ids.len() > max_model_len => {
                    return Err(too_long(max_model_len, &format!("over {max_model_len} tokens")));
                }
                PromptLimit::Refuse { .. } if ids.len() > affixes.num_before() => {
                    if num_written == 0 {
                        num_around += affixes.begin(&mut ids);
                    }
                    writer.extend(&ids[num_written..]);
                    num_written = ids.len();
                }
                // There is nothing yet, or what is kept is known at the end.
                PromptLimit::Refuse { .. } | PromptLimit::None | PromptLimit::KeepLast { .. } => {}
            }
            if writer.is_abandoned() {
                return Err(Error::new(Code::Cancelled, "the client has gone"));
            }
        }
        encoder.push(rest, &mut ids).map_err(failed)?;
        let num_base_tokens = encoder.finish(&mut ids).map_err(failed)?;
        if num_written == 0 {
            num_around += affixes.begin(&mut ids);
        }
        num_around += affixes.end(&mut ids);
        let num_kept = self.kept(limit, ids.len())?;
        let kept = &ids[ids.len() - num_kept..];
        writer.extend(&kept[num_written..]);
        let is_cut = num_kept < ids.len();
        Ok(if is_cut { self.num_base_tokens(kept) } else { num_base_tokens + num_around })
    }

    fn take_ids(&self, ids: Vec<TokenId>, limit: PromptLimit, writer: &PromptWriter) -> Result<Encoded> {
        let vocab_size = self.vocabulary.vocab_size();
        if let Some(id) = ids.iter().find(|id| id.row() >= vocab_size) {
            let message = format!("token id {id} is out of range: the vocabulary has {vocab_size} tokens");
            return Err(Error::invalid("prompt", message));
        }
        let num_kept = self.kept(limit, ids.len()).map_err(|error| error.with_param("prompt"))?;
        let kept = &ids[ids.len() - num_kept..];
        writer.extend(kept);
        Ok(Encoded { num_base_tokens: self.num_base_tokens(kept), rendered: None })
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

    /// How many of a prompt's tokens are kept: the last ones.
    fn kept(&self, limit: PromptLimit, num_tokens: usize) -> Result<usize> {
        match limit {
            _ if num_tokens == 0 => Err(Error::new(Code::InvalidArgument, "the prompt is empty")),
            PromptLimit::Refuse { max_model_len } if num_tokens > max_model_len => {
                Err(too_long(max_model_len, &format!("{num_tokens} tokens")))
            }
            PromptLimit::KeepLast { num_tokens: num_kept } => Ok(num_kept.min(num_tokens)),
            PromptLimit::None | PromptLimit::Refuse { .. } => Ok(num_tokens),
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
