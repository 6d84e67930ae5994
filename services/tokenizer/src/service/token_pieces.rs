use std::sync::Arc;

use fused_proto::text::v1::TokenizeResponse;
use fused_vocabulary::TokenId;

use crate::prompt_ids::EncodedPrompt;
use crate::tokenizer::Core;

/// Ids of one piece, and texts.
const PIECE_TOKENS: usize = 4096;
/// What a message says of a token at most beside its text: an id, and the text's key and length.
const WIRE_BYTES: usize = 5 + 5;
/// What a token's text takes as a string of its own.
const STRING_BYTES: usize = 64;

/// The answer to a tokenizing request, in pieces: all ids, then all texts where they are asked for. A short one is one
/// piece.
pub(super) struct TokenPieces {
    core: Arc<Core>,
    ids: Vec<TokenId>,
    num_base_tokens: usize,
    max_model_len: Option<u32>,
    num_ids_told: usize,
    /// None where they are not asked for.
    num_texts_told: Option<usize>,
    has_begun: bool,
}

impl TokenPieces {
    pub(super) fn new(
        core: &Arc<Core>,
        prompt: EncodedPrompt,
        with_texts: bool,
        max_model_len: Option<u32>,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            ids: prompt.ids,
            num_base_tokens: prompt.encoded.num_base_tokens,
            max_model_len,
            num_ids_told: 0,
            num_texts_told: with_texts.then_some(0),
            has_begun: false,
        }
    }

    /// At most the bytes of the whole answer as one message.
    pub(super) fn num_message_bytes(&self) -> usize {
        // What is no text is told by a character of three bytes for each of it.
        let bytes = |id: &TokenId| 3 * self.core.vocabulary.token_bytes(*id).len();
        let texts: usize = if self.num_texts_told.is_some() { self.ids.iter().map(bytes).sum() } else { 0 };
        texts + WIRE_BYTES * self.ids.len()
    }

    /// What the whole answer takes here.
    pub(super) fn num_memory_bytes(&self) -> usize {
        let strings = if self.num_texts_told.is_some() { STRING_BYTES * self.ids.len() } else { 0 };
        strings + self.num_message_bytes()
    }

    /// All that is left.
    pub(super) fn whole(mut self) -> TokenizeResponse {
        self.piece(usize::MAX)
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> Option<TokenizeResponse> {
        let is_done = self.num_ids_told == self.ids.len()
            && self.num_texts_told.is_none_or(|num_told| num_told == self.ids.len());
        (!self.has_begun || !is_done).then(|| self.piece(PIECE_TOKENS))
    }

    fn piece(&mut self, num_tokens: usize) -> TokenizeResponse {
        let mut piece = TokenizeResponse::default();
        if !std::mem::replace(&mut self.has_begun, true) {
            piece.base_tokens = u32::try_from(self.num_base_tokens).ok();
            piece.max_model_len = self.max_model_len;
            piece.num_tokens = u32::try_from(self.ids.len()).ok();
        }
        let ids = self.ids.iter().skip(self.num_ids_told).take(num_tokens);
        piece.token_ids = ids.map(|id| id.0).collect();
        self.num_ids_told += piece.token_ids.len();
        if let Some(num_told) = &mut self.num_texts_told
            && self.num_ids_told == self.ids.len()
        {
            let vocabulary = &self.core.vocabulary;
            let text = |id: &TokenId| String::from_utf8_lossy(vocabulary.token_bytes(*id)).into_owned();
            piece.token_texts = self.ids.iter().skip(*num_told).take(num_tokens).map(text).collect();
            *num_told += piece.token_texts.len();
        }
        piece
    }
}
