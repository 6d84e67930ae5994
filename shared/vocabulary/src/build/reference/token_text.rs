use super::python;
use crate::TokenId;
use crate::base::BaseTokenizer;

/// The texts of tokens as the reference has them, and what its rules see in them. It works on strings such as `Ġthe`,
/// `▁the` or `<0x0A>`, not on the bytes they stand for.
pub(super) struct TokenTexts {
    tokens: Vec<Option<TokenText>>,
}

/// One token's text.
pub(super) struct TokenText {
    pub(super) text: Box<str>,
    /// The text begins with `▁`. An n-token may begin with such a token and hold none after it: the reference's only
    /// rule about words. It knows neither the `Ġ` of byte-level tokenizers nor markers at the end of a token, so with
    /// those n-tokens run across words and lines freely (quirk 5, kept).
    pub(super) begins_word: bool,
    /// `str.isdigit()`. In byte-level tokenizers the bytes B2, B3 and B9 read `²³¹` and count as digits (kept).
    pub(super) is_digit: bool,
    /// The text has `<0x` or a no-break space, and no n-token may hold it (kept). A byte-level tokenizer's no-break
    /// space is two other characters, which the reference does not recognise; nor do we.
    pub(super) is_banned: bool,
}

impl TokenTexts {
    pub(super) fn new(base: &BaseTokenizer) -> Self {
        let ids = (0..base.vocab_size() as u32).map(TokenId);
        Self { tokens: ids.map(|id| base.text(id).map(TokenText::new)).collect() }
    }

    #[cfg(test)]
    pub(super) fn of<const N: usize>(texts: [&str; N]) -> Self {
        Self { tokens: texts.iter().map(|text| Some(TokenText::new((*text).to_owned()))).collect() }
    }

    pub(super) fn get(&self, id: TokenId) -> Option<&TokenText> {
        self.tokens.get(id.row())?.as_ref()
    }

    /// Tokens of the vocabulary with their texts, by ascending id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TokenId, &TokenText)> {
        (0..).map(TokenId).zip(&self.tokens).filter_map(|(id, token)| Some((id, token.as_ref()?)))
    }

    /// `len(tokenizer.get_vocab())`: learned and added tokens, without gaps.
    pub(super) fn vocab_len(&self) -> usize {
        self.tokens.iter().flatten().count()
    }
}

impl TokenText {
    fn new(text: String) -> Self {
        Self {
            begins_word: text.starts_with('▁'),
            is_digit: python::is_digit(&text),
            is_banned: text.contains("<0x") || text.contains('\u{A0}'),
            text: text.into(),
        }
    }
}
