use aho_corasick::{AhoCorasick, MatchKind};
use icu_normalizer::ComposingNormalizerBorrowed;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

use super::TokenizerJson;
use super::byte_level::{ByteLevelBpe, End};
use crate::{Error, Result, TokenId};

/// The whole way from text to base ids for byte-level tokenizers, in pieces: added tokens are found, the text between
/// them is normalized, split and merged. Ids come as early as no further text can change them.
pub(super) struct PieceEncoder {
    bpe: ByteLevelBpe,
    added: AddedTokens,
    normalizes: bool,
}

/// What of a text is not decided yet.
#[derive(Default)]
pub(super) struct Undecided {
    /// As it came: an added token may begin in it, or the next character compose with its last.
    raw: String,
    /// Normalized, without added tokens: the beginning of a word whose end is not known.
    word: String,
    /// Not looked at again before it is so long: else a word of a megabyte that comes in small pieces would be scanned
    /// from its beginning for each of them.
    next_look: usize,
}

struct AddedTokens {
    matcher: Option<AhoCorasick>,
    ids: Vec<TokenId>,
    max_bytes: usize,
}

impl PieceEncoder {
    /// Nothing for a tokenizer that is left to the `tokenizers` crate.
    pub(super) fn from_json(json: &TokenizerJson, tokenizer: &Tokenizer) -> Option<Self> {
        let normalizer = json.value().get("normalizer").filter(|normalizer| !normalizer.is_null());
        if normalizer.is_some_and(|normalizer| normalizer.get("type").and_then(Value::as_str) != Some("NFC"))
        {
            return None;
        }
        Some(Self {
            bpe: ByteLevelBpe::from_json(json)?,
            added: AddedTokens::from_json(json, tokenizer)?,
            normalizes: normalizer.is_some(),
        })
    }

    /// Takes more text and appends the ids that are decided.
    ///
    /// # Errors
    /// [`Error::Encode`] where the tokenizer's normalizer fails.
    pub(super) fn push(
        &self,
        tokenizer: &Tokenizer,
        undecided: &mut Undecided,
        text: &str,
        end: End,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        undecided.raw.push_str(text);
        if end == End::Open && undecided.raw.len() + undecided.word.len() < undecided.next_look {
            return Ok(());
        }
        let raw = std::mem::take(&mut undecided.raw);
        let text = raw.as_str();
        let mut at = 0;
        while let Some((start, stop, id)) = self.added.find(text, at, end) {
            self.encode_between(tokenizer, undecided, &text[at..start], End::Closed, out)?;
            out.push(id);
            at = stop;
        }
        let cut = match end {
            End::Closed => text.len(),
            End::Open => self.cut(text, at),
        };
        self.encode_between(tokenizer, undecided, &text[at..cut], end, out)?;
        undecided.raw = text[cut..].to_owned();
        let len = undecided.raw.len() + undecided.word.len();
        undecided.next_look = if len < 1024 { 0 } else { len + len / 4 };
        Ok(())
    }

    fn encode_between(
        &self,
        tokenizer: &Tokenizer,
        undecided: &mut Undecided,
        text: &str,
        end: End,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let normalized = self.normalize(tokenizer, text)?;
        let text = normalized.as_deref().unwrap_or(text);
        if undecided.word.is_empty() {
            let rest = self.bpe.encode(text, end, out);
            undecided.word.push_str(&text[rest..]);
        } else {
            undecided.word.push_str(text);
            let rest = self.bpe.encode(&undecided.word, end, out);
            undecided.word.drain(..rest);
        }
        Ok(())
    }

    /// The normalized text, where that is another. Most texts are in normal form, which is quickly seen; what is not goes
    /// through the tokenizer's own normalizer, whose version of Unicode the ids depend on.
    fn normalize(&self, tokenizer: &Tokenizer, text: &str) -> Result<Option<String>> {
        if !self.normalizes || ComposingNormalizerBorrowed::new_nfc().is_normalized(text) {
            return Ok(None);
        }
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(Error::Encode)?;
        }
        Ok(Some(normalized.get().to_owned()))
    }

    /// How far a text is decided that more will follow: before anything that may become an added token, and before a
    /// character that certainly composes with none before it.
    fn cut(&self, text: &str, at: usize) -> usize {
        let mut cut = text.len().saturating_sub(self.added.max_bytes.saturating_sub(1)).max(at);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        if !self.normalizes {
            return cut;
        }
        let first = text[cut..].chars().next();
        if first.is_some_and(stands_alone) {
            return cut;
        }
        let before = text[at..cut].char_indices().rev().find(|(_, char)| stands_alone(*char));
        before.map_or(at, |(place, _)| at + place)
    }
}

/// Whether a character composes with none before it, whatever the version of Unicode: Latin, CJK and Hangul syllables
/// are enough to cut nearly any text soon.
fn stands_alone(char: char) -> bool {
    matches!(char, '\0'..'\u{300}' | '\u{3041}'..='\u{3096}' | '\u{30A1}'..='\u{30FA}' | '\u{4E00}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7A3}')
}

impl AddedTokens {
    /// Nothing where a token has a property that is not known here. Their ids are those that the crate gives them: it
    /// numbers on from the last one, whatever the file says.
    fn from_json(json: &TokenizerJson, tokenizer: &Tokenizer) -> Option<Self> {
        let none = Vec::new();
        let tokens = match json.value().get("added_tokens") {
            None | Some(Value::Null) => &none,
            Some(tokens) => tokens.as_array()?,
        };
        let (mut texts, mut ids) = (Vec::new(), Vec::new());
        for token in tokens {
            let is = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
            if ["single_word", "lstrip", "rstrip", "normalized"].into_iter().any(is) {
                return None;
            }
            let text = token.get("content")?.as_str()?;
            if !text.is_empty() {
                texts.push(text);
                ids.push(TokenId(tokenizer.token_to_id(text)?));
            }
        }
        let matcher = match texts.is_empty() {
            true => None,
            false => Some(AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts).ok()?),
        };
        Some(Self { matcher, ids, max_bytes: texts.iter().map(|text| text.len()).max().unwrap_or(0) })
    }

    /// The next added token from `at` on, where it begins and stops. In an open text one that a longer token may yet
    /// begin with is not decided.
    fn find(&self, text: &str, at: usize, end: End) -> Option<(usize, usize, TokenId)> {
        let found = self.matcher.as_ref()?.find(aho_corasick::Input::new(text).range(at..))?;
        if end == End::Open && found.start() + self.max_bytes > text.len() {
            return None;
        }
        Some((found.start(), found.end(), self.ids[found.pattern().as_usize()]))
    }
}
