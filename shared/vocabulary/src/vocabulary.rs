use crate::base::{BaseTokenizer, Kind, Leading, TokenizerJson};
use crate::segment::{self, Segmenter};
use crate::{
    Decoder, Encoder, Error, Fingerprint, PatchVocabulary, Result, Row, SpecialText, TokenId, fingerprint,
};

/// Whether the tokenizer's post-processor adds its special tokens (mostly one at the beginning).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It does.
    Add,
    /// The ids are those of the text alone. Special tokens written in the text are recognised all the same.
    Omit,
}

/// An encoded text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Model ids.
    pub ids: Vec<TokenId>,
    /// How many tokens the base vocabulary takes for the text.
    pub num_base_tokens: usize,
}

/// A base tokenizer with its patch vocabulary, if there is one: text to model ids and back.
pub struct Vocabulary {
    base: BaseTokenizer,
    patch: Option<Patch>,
    fingerprint: Fingerprint,
    tokens: Vec<Token>,
    bytes: Vec<u8>,
    max_token_bytes: usize,
}

struct Patch {
    vocabulary: PatchVocabulary,
    segmenter: Segmenter,
}

/// A token of the model's vocabulary.
struct Token {
    /// Where its bytes end; they begin where those of the id before it end.
    bytes_end: usize,
    /// Bytes of its first base token.
    first_bytes: usize,
    num_base_tokens: usize,
    is_special: bool,
}

impl Vocabulary {
    /// Loads a `tokenizer.json`, and a patch vocabulary made for it.
    ///
    /// # Errors
    /// The tokenizer cannot be used here; the patch was made for another one or breaks a rule.
    pub fn load(tokenizer_json: &[u8], patch: Option<PatchVocabulary>) -> Result<Self> {
        let base = BaseTokenizer::load(&TokenizerJson::parse(tokenizer_json)?)?;
        Self::from_base(base, patch)
    }

    pub(crate) fn from_base(base: BaseTokenizer, patch: Option<PatchVocabulary>) -> Result<Self> {
        let fingerprint = fingerprint::of_vocabulary(base.hash(), patch.as_ref())?;
        if let Some(patch) = &patch {
            check(patch, &base)?;
        }
        let (mut tokens, mut bytes) = (Vec::new(), Vec::new());
        let mut add = |row: &[TokenId]| {
            row.iter().for_each(|id| bytes.extend_from_slice(base.bytes(*id)));
            tokens.push(Token {
                bytes_end: bytes.len(),
                first_bytes: row.first().map_or(0, |id| base.bytes(*id).len()),
                num_base_tokens: row.len(),
                // An n-token is text, also where a special token is in it (see `Segmenter::new`).
                is_special: matches!(row, [id] if base.kind(*id) == Kind::Special),
            });
        };
        match &patch {
            None => (0..base.vocab_size() as u32).for_each(|id| add(&[TokenId(id)])),
            Some(patch) => patch.rows().for_each(|row| match row {
                Row::Base(id) => add(&[id]),
                Row::NToken(ids) => add(ids),
            }),
        }
        let patch = patch.map(|patch| Patch::new(patch, &base));
        let mut vocabulary = Self { base, patch, fingerprint, tokens, bytes, max_token_bytes: 0 };
        vocabulary.max_token_bytes = (0..vocabulary.vocab_size() as u32)
            .map(|id| vocabulary.token_bytes(TokenId(id)).len())
            .max()
            .unwrap_or(0);
        Ok(vocabulary)
    }

    /// Encodes a text: base tokens, removed ones replaced by their parts, and n-tokens laid over them as the patch
    /// vocabulary's [`crate::Segmentation`] says.
    ///
    /// # Errors
    /// [`Error::Encode`] where the base tokenizer fails, as some do on characters that they do not know.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Encoding> {
        if special_tokens == SpecialTokens::Add {
            let base_ids = self.base.encode_with_special_tokens(text)?;
            let num_base_tokens = base_ids.len();
            return Ok(Encoding { ids: self.adapt(base_ids), num_base_tokens });
        }
        let mut encoder = self.encoder();
        let mut ids = Vec::new();
        encoder.push(text, &mut ids)?;
        let num_base_tokens = encoder.finish(&mut ids)?;
        Ok(Encoding { ids, num_base_tokens })
    }

    /// An encoder for a text that comes in pieces; as [`encode`](Self::encode) with [`SpecialTokens::Omit`].
    #[must_use]
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder::new(self)
    }

    /// Base ids to model ids.
    pub(crate) fn adapt(&self, base_ids: Vec<TokenId>) -> Vec<TokenId> {
        match &self.patch {
            None => base_ids,
            Some(patch) => {
                let (mut undecided, mut ids) = (segment::Undecided::default(), Vec::new());
                patch.segmenter.push(&mut undecided, &base_ids, &mut ids);
                patch.segmenter.finish(undecided, &mut ids);
                ids
            }
        }
    }

    pub(crate) fn base(&self) -> &BaseTokenizer {
        &self.base
    }

    pub(crate) fn segmenter(&self) -> Option<&Segmenter> {
        self.patch.as_ref().map(|patch| &patch.segmenter)
    }

    /// Decodes whole: what a [`Decoder`] makes of these ids.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], special: SpecialText) -> String {
        let mut decoder = Decoder::new(self, special);
        let mut text = String::new();
        ids.iter().for_each(|id| decoder.push(self, *id, &mut text));
        decoder.finish(&mut text);
        text
    }

    /// The base ids that model ids stand for. An unknown id stands for none.
    pub fn expand(&self, ids: &[TokenId]) -> Vec<TokenId> {
        let Some(patch) = &self.patch else {
            return ids.iter().copied().filter(|id| id.row() < self.tokens.len()).collect();
        };
        let mut base_ids = Vec::with_capacity(ids.len());
        for id in ids {
            match patch.vocabulary.row(*id) {
                Some(Row::Base(id)) => base_ids.push(id),
                Some(Row::NToken(base)) => base_ids.extend_from_slice(base),
                None => {}
            }
        }
        base_ids
    }

    /// The bytes of text that a token stands for; none for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        let Some(token) = self.tokens.get(id.row()) else { return &[] };
        let start = id.row().checked_sub(1).map_or(0, |before| self.tokens[before].bytes_end);
        &self.bytes[start..token.bytes_end]
    }

    /// The token as `tokenizer.json` spells it, such as `Ġthe`; the pieces of an n-token joined. Empty for an unknown id.
    #[must_use]
    pub fn token_piece(&self, id: TokenId) -> String {
        self.expand(&[id]).into_iter().filter_map(|id| self.base.text(id)).collect()
    }

    /// Whether the token is no part of the text's meaning, as `<s>`.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.tokens.get(id.row()).is_some_and(|token| token.is_special)
    }

    /// How many base tokens a token stands for; 0 for an unknown id.
    #[must_use]
    pub fn num_base_tokens(&self, id: TokenId) -> usize {
        self.tokens.get(id.row()).map_or(0, |token| token.num_base_tokens)
    }

    /// The model id of the base token that `tokenizer.json` spells so; none if there is none or it is removed.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        let id = self.base.id(text)?;
        match &self.patch {
            None => Some(id),
            Some(patch) => patch.vocabulary.model_id(id),
        }
    }

    /// Model ids: the largest and one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// Base ids: the largest and one.
    #[must_use]
    pub fn base_vocab_size(&self) -> usize {
        self.base.vocab_size()
    }

    /// The fingerprint of tokenizer and patch.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The patch vocabulary, if there is one.
    #[must_use]
    pub fn patch(&self) -> Option<&PatchVocabulary> {
        self.patch.as_ref().map(|patch| &patch.vocabulary)
    }

    /// Bytes of the longest token: no text of more bytes than this times `n` fits into `n` tokens.
    #[must_use]
    pub fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }

    pub(crate) fn leading(&self) -> Leading {
        self.base.leading()
    }

    pub(crate) fn first_base_token_bytes(&self, id: TokenId) -> usize {
        self.tokens.get(id.row()).map_or(0, |token| token.first_bytes)
    }
}

impl Patch {
    fn new(vocabulary: PatchVocabulary, base: &BaseTokenizer) -> Self {
        let segmenter = Segmenter::new(&vocabulary, |id| base.kind(id) == Kind::Special);
        Self { segmenter, vocabulary }
    }
}

/// The rules that need the tokenizer: same base, same bytes, nothing special removed, texts true.
pub(crate) fn check(patch: &PatchVocabulary, base: &BaseTokenizer) -> Result<()> {
    if patch.base_vocab_size() != base.vocab_size() {
        let problem = format!("{}, but the tokenizer has {}", patch.base_vocab_size(), base.vocab_size());
        return Err(Error::field("base_vocab_size", problem));
    }
    for (idx, removed) in patch.removed().iter().enumerate() {
        let field = |name| format!("removed[{idx}].{name}");
        if base.kind(removed.id) != Kind::Learned {
            let problem = format!("{} is an added or special token, or none", removed.id);
            return Err(Error::field(field("id"), problem));
        }
        let bytes = base.bytes(removed.id);
        if base.joined_bytes(&removed.parts) != bytes {
            return Err(Error::field(field("parts"), "their bytes joined are not the removed token's"));
        }
        check_text(&removed.text, bytes).map_err(|problem| Error::field(field("text"), problem))?;
    }
    for (idx, n_token) in patch.n_tokens().iter().enumerate() {
        let field = |name| format!("n_tokens[{idx}].{name}");
        if let Some(id) = n_token.base.iter().find(|id| base.kind(**id) == Kind::Absent) {
            return Err(Error::field(field("base"), format!("{id} is no token of the tokenizer")));
        }
        let bytes = base.joined_bytes(&n_token.base);
        check_text(&n_token.text, &bytes).map_err(|problem| Error::field(field("text"), problem))?;
    }
    Ok(())
}

/// A text that lies would mislead whoever reviews the file.
fn check_text(text: &str, bytes: &[u8]) -> std::result::Result<(), String> {
    let expected = String::from_utf8_lossy(bytes);
    if text == expected { Ok(()) } else { Err(format!("the token reads {expected:?}, not {text:?}")) }
}

#[cfg(test)]
pub(crate) mod tests;
