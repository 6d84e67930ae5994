use crate::base::Leading;
use crate::{TokenId, Vocabulary};

/// Whether special tokens appear in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// They appear, as they are written in `tokenizer.json`.
    Keep,
    /// They leave no trace.
    Skip,
}

/// Turns a growing sequence of token ids into text, whole characters only.
///
/// What has been emitted, with [`finish`](Self::finish), always equals the lossy decoding of all bytes at once: a byte
/// sequence that can still become a character is held back (at most 3 bytes), one that no longer can becomes U+FFFD.
#[derive(Clone, Debug)]
pub struct Decoder {
    special: SpecialText,
    leading: Leading,
    /// The beginning of a character whose other bytes are still to come.
    held: Vec<u8>,
}

impl Decoder {
    /// A decoder for a text's first token.
    #[must_use]
    pub fn new(vocabulary: &Vocabulary, special: SpecialText) -> Self {
        Self { special, leading: vocabulary.leading(), held: Vec::with_capacity(4) }
    }

    /// A decoder for what follows `prompt`. A space at its beginning is dropped only where the prompt has no text.
    #[must_use]
    pub fn after(vocabulary: &Vocabulary, prompt: &[TokenId], special: SpecialText) -> Self {
        let mut decoder = Self::new(vocabulary, special);
        if prompt.iter().any(|id| !decoder.skips(vocabulary, *id) && !vocabulary.token_bytes(*id).is_empty())
        {
            decoder.leading = Leading::Keep;
        }
        decoder
    }

    /// Takes a token and appends the text that is certain now. An unknown id has no text.
    pub fn push(&mut self, vocabulary: &Vocabulary, id: TokenId, out: &mut String) {
        if self.skips(vocabulary, id) {
            return;
        }
        let bytes = self.strip_leading(vocabulary, id);
        if self.held.is_empty() {
            let num_done = push_certain(bytes, out);
            self.held.extend_from_slice(&bytes[num_done..]);
        } else {
            self.held.extend_from_slice(bytes);
            let num_done = push_certain(&self.held, out);
            self.held.drain(..num_done);
        }
    }

    /// Ends the text: a character that never became whole is U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Whether a token leaves no trace in the text.
    #[must_use]
    pub fn skips(&self, vocabulary: &Vocabulary, id: TokenId) -> bool {
        self.special == SpecialText::Skip && vocabulary.is_special(id)
    }

    fn strip_leading<'a>(&mut self, vocabulary: &'a Vocabulary, id: TokenId) -> &'a [u8] {
        let bytes = vocabulary.token_bytes(id);
        if self.leading == Leading::Keep || bytes.is_empty() {
            return bytes;
        }
        let num_spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
        let num_stripped = match self.leading {
            Leading::Keep => 0,
            Leading::Strip(max) => num_spaces.min(max),
            Leading::StripFirstToken => num_spaces.min(vocabulary.first_base_token_bytes(id)),
        };
        self.leading = match self.leading {
            Leading::Strip(max) if num_stripped == bytes.len() && num_stripped < max => {
                Leading::Strip(max - num_stripped)
            }
            _ => Leading::Keep,
        };
        &bytes[num_stripped..]
    }
}

/// Appends every whole character and U+FFFD for every sequence that can become none; how many bytes that took. The rest
/// is the beginning of a character.
fn push_certain(bytes: &[u8], out: &mut String) -> usize {
    let mut num_done = 0;
    loop {
        let error = match std::str::from_utf8(&bytes[num_done..]) {
            Ok(text) => {
                out.push_str(text);
                return bytes.len();
            }
            Err(error) => error,
        };
        let valid = &bytes[num_done..num_done + error.valid_up_to()];
        // Valid by the line above; lossy decoding is the way to say so without a panic.
        out.push_str(&String::from_utf8_lossy(valid));
        num_done += error.valid_up_to();
        let Some(num_invalid) = error.error_len() else { return num_done };
        out.push(char::REPLACEMENT_CHARACTER);
        num_done += num_invalid;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vocabulary::tests::demo;

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_whole(bytes: Vec<u8>, cuts in prop::collection::vec(1_usize..5, 0..40)) {
            let (mut held, mut out, mut rest) = (Vec::new(), String::new(), bytes.as_slice());
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                held.extend_from_slice(piece);
                let num_done = push_certain(&held, &mut out);
                held.drain(..num_done);
                prop_assert!(held.len() <= 3);
                rest = after;
            }
            out.push_str(if held.is_empty() { "" } else { "\u{FFFD}" });
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn random_ids_decode_as_their_joined_bytes(ids in prop::collection::vec(0_u32..8300, 0..60)) {
            let vocabulary = demo();
            let mut decoder = Decoder::new(vocabulary, SpecialText::Keep);
            let (mut out, mut bytes) = (String::new(), Vec::new());
            for id in ids.into_iter().map(TokenId) {
                decoder.push(vocabulary, id, &mut out);
                bytes.extend_from_slice(vocabulary.token_bytes(id));
            }
            decoder.finish(&mut out);
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
