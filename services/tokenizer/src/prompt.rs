use std::sync::Arc;
use std::time::Instant;

use fused_status::{Code, Error, Result};
use fused_vocabulary::{SpecialTokens, TokenId, Vocabulary};

use crate::chat_template::{ChatRequest, ChatTemplates, Conversation};
use crate::encode::{EncodePool, Purpose, Worker};
use crate::events;
use crate::prompt_ids::{Encoded, EncodedPrompt, PromptIds, prompt_ids};
use crate::special_tokens::Affixes;
use crate::text_memory::TextShare;

/// Text that is encoded between two looks at what has come of it: a millisecond's work.
const PIECE_BYTES: usize = 16 << 10;

/// Memory that a text's byte comes to at the most: itself, and a token id.
const BYTES_PER_TEXT_BYTE: usize = 5;
/// The same of a conversation, which is JSON, then values of the template's, and then a text.
const BYTES_PER_CHAT_BYTE: usize = 16;

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

impl TextPrompt {
    /// The bytes of its text, as far as they are known, and the memory that encoding it takes.
    fn size(&self) -> (usize, usize) {
        match &self.source {
            TextSource::Plain(text) => (text.len(), text.len().saturating_mul(BYTES_PER_TEXT_BYTE)),
            TextSource::Chat(chat) => {
                let parts = [&chat.tools, &chat.variables, &chat.template].into_iter().flatten();
                let num_bytes = chat.messages.iter().chain(parts).map(String::len).sum::<usize>();
                (num_bytes, num_bytes.saturating_mul(BYTES_PER_CHAT_BYTE))
            }
        }
    }
}

/// Who hears of a text's ids while it is being encoded.
pub(crate) trait Listener {
    /// Takes the next ids.
    fn extend(&self, ids: &[TokenId]);

    /// Whether nobody waits for them any more.
    fn is_gone(&self) -> bool;
}

/// Waits for the whole.
struct Patient<'a>(&'a dyn Fn() -> bool);

impl Listener for Patient<'_> {
    fn extend(&self, _: &[TokenId]) {}

    fn is_gone(&self) -> bool {
        self.0()
    }
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
        let _ticket = match prompt {
            Prompt::Tokens(tokens) => {
                let taken = self.take_ids(tokens, limit);
                writer.end(taken);
                None
            }
            Prompt::Text(prompt) => {
                if let TextSource::Plain(text) = &prompt.source {
                    self.check_bytes(text, limit).map_err(|error| error.with_param("prompt"))?;
                }
                let encoder = Arc::clone(self);
                let started = Instant::now();
                let (num_bytes, memory_bytes) = prompt.size();
                let work = move |worker: &Worker<'_>, place| {
                    let result = encoder.encode_text(prompt, limit, worker, &writer);
                    events::encoded(started.elapsed());
                    drop(place);
                    writer.end(result);
                };
                Some(pool.spawn(Purpose::Generation, num_bytes, memory_bytes, work)?)
            }
        };
        ids.begun().await?;
        Ok(ids)
    }

    /// Encodes a whole prompt of which nothing is generated, and says what memory its ids take.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) async fn whole(
        self: &Arc<Self>,
        pool: &EncodePool,
        prompt: Prompt,
    ) -> Result<(EncodedPrompt, TextShare)> {
        let (num_bytes, memory_bytes) = match &prompt {
            Prompt::Text(prompt) => prompt.size(),
            Prompt::Tokens(ids) => (ids.len(), size_of_val(&**ids)),
        };
        let encoder = Arc::clone(self);
        let started = Instant::now();
        let work = move |worker: &Worker<'_>, is_gone: &dyn Fn() -> bool| {
            let encoded = match prompt {
                Prompt::Tokens(ids) => encoder.take_ids(ids, PromptLimit::None),
                Prompt::Text(prompt) => {
                    encoder.encode_text(prompt, PromptLimit::None, worker, &Patient(is_gone))
                }
            };
            events::encoded(started.elapsed());
            encoded
        };
        let (encoded, mut memory) = pool.run(Purpose::Translation, num_bytes, memory_bytes, work).await?;
        memory
            .shrink_to(size_of_val(&*encoded.ids) + encoded.encoded.rendered.as_ref().map_or(0, String::len));
        Ok((encoded, memory))
    }

    /// Encodes a text. What the listener has not taken yet is returned.
    fn encode_text(
        &self,
        prompt: TextPrompt,
        limit: PromptLimit,
        worker: &Worker<'_>,
        listener: &impl Listener,
    ) -> Result<EncodedPrompt> {
        let is_chat = matches!(prompt.source, TextSource::Chat(_));
        let (text, param) = match prompt.source {
            TextSource::Plain(text) => (text, "prompt"),
            TextSource::Chat(request) => {
                (self.templates.render(&Conversation::try_from(*request)?)?, "messages")
            }
        };
        let bare = Affixes::default();
        let affixes = if prompt.special_tokens == SpecialTokens::Add { &self.affixes } else { &bare };
        let (ids, num_base_tokens) = self
            .check_bytes(&text, limit)
            .and_then(|()| self.encode_pieces(&text, affixes, limit, worker, listener))
            .map_err(|error| error.with_param(param))?;
        Ok(EncodedPrompt { ids, encoded: Encoded { num_base_tokens, rendered: is_chat.then_some(text) } })
    }

    /// The ids of a text, those of a long one bit by bit, and how many tokens the base vocabulary takes. Returns the ids
    /// that the listener has not been given.
    fn encode_pieces(
        &self,
        text: &str,
        affixes: &Affixes,
        limit: PromptLimit,
        worker: &Worker<'_>,
        listener: &impl Listener,
    ) -> Result<(Vec<TokenId>, usize)> {
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
                    listener.extend(&ids[num_written..]);
                    num_written = ids.len();
                }
                // There is nothing yet, or what is kept is known at the end.
                PromptLimit::Refuse { .. } | PromptLimit::None | PromptLimit::KeepLast { .. } => {}
            }
            if listener.is_gone() {
                return Err(Error::new(Code::Cancelled, "the client has gone"));
            }
            worker.let_others_past();
        }
        encoder.push(rest, &mut ids).map_err(failed)?;
        let num_base_tokens = encoder.finish(&mut ids).map_err(failed)?;
        if num_written == 0 {
            num_around += affixes.begin(&mut ids);
        }
        num_around += affixes.end(&mut ids);
        if ids.is_empty() && !matches!(limit, PromptLimit::None) {
            ids.push(self.affixes.beginning().ok_or_else(nothing_to_begin_with)?);
            num_around = 1;
        }
        let num_cut = ids.len() - self.kept(limit, ids.len())?;
        ids.drain(..num_written.max(num_cut));
        let num_base_tokens =
            if num_cut > 0 { self.num_base_tokens(&ids) } else { num_base_tokens + num_around };
        Ok((ids, num_base_tokens))
    }

    fn take_ids(&self, mut ids: Vec<TokenId>, limit: PromptLimit) -> Result<EncodedPrompt> {
        let vocab_size = self.vocabulary.vocab_size();
        if let Some(id) = ids.iter().find(|id| id.row() >= vocab_size) {
            let message = format!(
                "token id {id} is out of range: the model's vocabulary has {vocab_size} tokens, with ids as /tokenize gives them"
            );
            return Err(Error::invalid("prompt", message));
        }
        let num_kept = self.kept(limit, ids.len()).map_err(|error| error.with_param("prompt"))?;
        ids.drain(..ids.len() - num_kept);
        let encoded = Encoded { num_base_tokens: self.num_base_tokens(&ids), rendered: None };
        Ok(EncodedPrompt { ids, encoded })
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
            PromptLimit::None => Ok(num_tokens),
            _ if num_tokens == 0 => Err(Error::new(Code::InvalidArgument, "the prompt is empty")),
            PromptLimit::Refuse { max_model_len } if num_tokens > max_model_len => {
                Err(too_long(max_model_len, &format!("{num_tokens} tokens")))
            }
            PromptLimit::KeepLast { num_tokens: num_kept } => Ok(num_kept.min(num_tokens)),
            PromptLimit::Refuse { .. } => Ok(num_tokens),
        }
    }

    fn num_base_tokens(&self, ids: &[TokenId]) -> usize {
        ids.iter().map(|id| self.vocabulary.num_base_tokens(*id)).sum()
    }
}

fn nothing_to_begin_with() -> Error {
    let message = "the prompt is empty, and this model has no token that a text begins with: write a text";
    Error::new(Code::InvalidArgument, message)
}

fn too_long(max_model_len: usize, prompt: &str) -> Error {
    let message = format!(
        "This model's maximum context length is {max_model_len} tokens, but the prompt has {prompt}. Shorten it."
    );
    Error::new(Code::ContextLengthExceeded, message)
}
