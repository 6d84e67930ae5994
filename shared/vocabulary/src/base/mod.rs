//! The base tokenizer: `tokenizer.json` as the `tokenizers` crate reads it, and beside it what that crate does not
//! offer: the bytes of every token, its merge rules, its hash.

mod byte_level;
mod bytes;
mod growth;
mod json;
mod stream;

use std::ops::Range;

use tokenizers::Tokenizer;

use self::byte_level::End;
pub(crate) use self::bytes::Leading;
pub(crate) use self::json::TokenizerJson;
pub use self::json::base_token_id;
use self::stream::{PieceEncoder, Undecided};

use crate::{Error, Fingerprint, Result, TokenId, fingerprint};

/// The largest vocabulary that is loaded; the largest published ones have a quarter of a million tokens.
pub(crate) const MAX_VOCAB_SIZE: usize = 1 << 22;

/// A loaded base tokenizer. All ids in here are base ids.
pub(crate) struct BaseTokenizer {
    tokenizer: Tokenizer,
    /// For the tokenizers that can do without that crate.
    pieces: Option<PieceEncoder>,
    hash: Fingerprint,
    leading: Leading,
    tokens: Vec<BaseToken>,
    bytes: Vec<u8>,
}

/// A text on its way to base ids.
#[derive(Default)]
pub(crate) struct BaseStream {
    undecided: Undecided,
    /// All of it, for the `tokenizers` crate, which takes texts whole.
    whole: String,
}

#[derive(Clone, Default)]
struct BaseToken {
    bytes: Range<usize>,
    kind: Kind,
}

/// Where a base id comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The id has no token.
    #[default]
    Absent,
    /// Learned by the tokenizer's model.
    Learned,
    /// Added by hand, recognised in the text before the model sees it.
    Added,
    /// Added, and no part of the text's meaning: `<s>`, `<|endoftext|>`.
    Special,
}

impl BaseTokenizer {
    pub(crate) fn load(json: &TokenizerJson) -> Result<Self> {
        let mut tokenizer: Tokenizer = json.tokenizer()?;
        // Both would change ids behind the caller's back; how long a prompt may be is decided elsewhere.
        tokenizer.with_truncation(None).map_err(Error::Tokenizer)?.with_padding(None);
        let decoding = bytes::Decoding::from_json(json.value())?;

        let texts = tokenizer.get_vocab(true);
        let max_id = texts.values().copied().max().unwrap_or(0);
        if max_id as usize >= MAX_VOCAB_SIZE {
            return Err(Error::VocabularyTooLarge { id: max_id, max: MAX_VOCAB_SIZE as u32 - 1 });
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens = vec![BaseToken::default(); max_id as usize + 1];
        let mut bytes = Vec::new();
        for (text, id) in &texts {
            let kind = match added.get(id) {
                Some(token) if token.special => Kind::Special,
                Some(_) => Kind::Added,
                None => Kind::Learned,
            };
            let start = bytes.len();
            match added.get(id) {
                Some(token) => bytes.extend_from_slice(token.content.as_bytes()),
                None => decoding.push_bytes(text, &mut bytes),
            }
            tokens[*id as usize] = BaseToken { bytes: start..bytes.len(), kind };
        }
        Ok(Self {
            pieces: PieceEncoder::from_json(json, &tokenizer),
            tokenizer,
            hash: fingerprint::of_tokenizer(json.value()),
            leading: decoding.leading,
            tokens,
            bytes,
        })
    }

    pub(crate) fn hash(&self) -> Fingerprint {
        self.hash
    }

    /// What the tokenizer drops at the very beginning of a decoded text.
    pub(crate) fn leading(&self) -> Leading {
        self.leading
    }

    /// The largest id and one.
    pub(crate) fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn id(&self, text: &str) -> Option<TokenId> {
        self.tokenizer.token_to_id(text).map(TokenId)
    }

    /// The token's text as the tokenizer's own files have it: `Ġthe`, `▁the`, `<0x0A>`.
    pub(crate) fn text(&self, id: TokenId) -> Option<String> {
        self.tokenizer.id_to_token(id.0)
    }

    pub(crate) fn kind(&self, id: TokenId) -> Kind {
        self.tokens.get(id.row()).map_or(Kind::Absent, |token| token.kind)
    }

    /// The text's bytes that a token stands for; none for an id without a token.
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        self.tokens.get(id.row()).map_or(&[], |token| &self.bytes[token.bytes.clone()])
    }

    /// The bytes of several tokens, joined.
    pub(crate) fn joined_bytes(&self, ids: &[TokenId]) -> Vec<u8> {
        ids.iter().flat_map(|id| self.bytes(*id)).copied().collect()
    }

    /// Encodes a whole text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        let (mut stream, mut ids) = (BaseStream::default(), Vec::new());
        self.push(&mut stream, text, &mut ids)?;
        self.finish(&mut stream, &mut ids)?;
        Ok(ids)
    }

    /// Encodes a whole text and lets the tokenizer's post-processor add its tokens.
    pub(crate) fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<TokenId>> {
        self.encode_by_crate(text, true)
    }

    /// Takes a piece of text and appends the ids that are decided.
    pub(crate) fn push(&self, stream: &mut BaseStream, text: &str, out: &mut Vec<TokenId>) -> Result<()> {
        match &self.pieces {
            Some(pieces) => pieces.push(&self.tokenizer, &mut stream.undecided, text, End::Open, out),
            None => {
                stream.whole.push_str(text);
                Ok(())
            }
        }
    }

    /// Appends what is left of a text.
    pub(crate) fn finish(&self, stream: &mut BaseStream, out: &mut Vec<TokenId>) -> Result<()> {
        match &self.pieces {
            Some(pieces) => pieces.push(&self.tokenizer, &mut stream.undecided, "", End::Closed, out),
            None => {
                out.extend(self.encode_by_crate(&std::mem::take(&mut stream.whole), false)?);
                Ok(())
            }
        }
    }

    /// On the calling thread: the `tokenizers` crate starts threads for batches and padding only.
    fn encode_by_crate(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>> {
        let encoding = self.tokenizer.encode_fast(text, add_special_tokens).map_err(Error::Encode)?;
        Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
    }

    #[cfg(test)]
    pub(crate) fn is_fast(&self) -> bool {
        self.pieces.is_some()
    }

    #[cfg(test)]
    pub(crate) fn oracle(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
