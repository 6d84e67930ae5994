use std::sync::Arc;

use fused_proto::text::v1::{TokenizeRequest, TokenizeResponse};
use fused_vocabulary::TokenId;

use crate::prompt_ids::EncodedPrompt;
use crate::tokenizer::Core;

/// Ids of one piece, and texts.
const PIECE_TOKENS: usize = 4096;
/// What a message says of a token at most beside its text: an id, and the text's key and length.
const WIRE_BYTES: usize = 5 + 5;
/// The most bytes by which a string tells one byte of a token's: `<0x0A>`.
const MAX_SPELLING: usize = 6;
/// What a token's text takes as a string of its own.
const STRING_BYTES: usize = 64;

/// Which strings are told of the tokens.
#[derive(Clone, Copy)]
pub(super) struct Strings {
    texts: bool,
    pieces: bool,
}

impl Strings {
    pub(super) fn asked_for(request: &TokenizeRequest) -> Self {
        Self { texts: request.return_token_texts(), pieces: request.return_token_pieces() }
    }

    fn num_a_token(self) -> usize {
        usize::from(self.texts) + usize::from(self.pieces)
    }
}

/// The answer to a tokenizing request, in pieces: all ids, then all strings that are asked for. A short one is one piece.
pub(super) struct TokenPieces {
    core: Arc<Core>,
    ids: Vec<TokenId>,
    num_base_tokens: usize,
    max_model_len: Option<u32>,
    num_ids_told: usize,
    strings: Strings,
    /// Tokens of which the strings are told.
    num_strings_told: usize,
    has_begun: bool,
}

impl TokenPieces {
    pub(super) fn new(
        core: &Arc<Core>,
        prompt: EncodedPrompt,
        strings: Strings,
        max_model_len: Option<u32>,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            ids: prompt.ids,
            num_base_tokens: prompt.encoded.num_base_tokens,
            max_model_len,
            num_ids_told: 0,
            strings,
            num_strings_told: 0,
            has_begun: false,
        }
    }

    /// At most the bytes of the whole answer as one message.
    pub(super) fn num_message_bytes(&self) -> usize {
        let bytes = |id: &TokenId| MAX_SPELLING * self.core.vocabulary.token_bytes(*id).len();
        let num_strings = self.strings.num_a_token();
        let strings =
            if num_strings > 0 { num_strings * self.ids.iter().map(bytes).sum::<usize>() } else { 0 };
        strings + WIRE_BYTES * self.ids.len()
    }

    /// What the whole answer takes here.
    pub(super) fn num_memory_bytes(&self) -> usize {
        let strings = self.strings.num_a_token() * STRING_BYTES * self.ids.len();
        strings + self.num_message_bytes()
    }

    /// All that is left.
    pub(super) fn whole(mut self) -> TokenizeResponse {
        self.piece(usize::MAX)
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> Option<TokenizeResponse> {
        let is_done = self.num_ids_told == self.ids.len()
            && (self.strings.num_a_token() == 0 || self.num_strings_told == self.ids.len());
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
        if self.strings.num_a_token() > 0 && self.num_ids_told == self.ids.len() {
            let vocabulary = &self.core.vocabulary;
            let text = |id: &TokenId| String::from_utf8_lossy(vocabulary.token_bytes(*id)).into_owned();
            let ids = &self.ids[self.num_strings_told..];
            let ids = &ids[..num_tokens.min(ids.len())];
            if self.strings.texts {
                piece.token_texts = ids.iter().map(text).collect();
            }
            if self.strings.pieces {
                piece.token_pieces = ids.iter().map(|id| vocabulary.token_piece(*id)).collect();
            }
            self.num_strings_told += ids.len();
        }
        piece
    }
}
