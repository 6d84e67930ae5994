use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// How a learned token's text becomes the bytes it stands for: the tokenizer's decoder, taken apart token by token, so
/// that text can be made incrementally and cut anywhere.
pub(super) struct Decoding {
    alphabet: Alphabet,
    pub(super) leading: Leading,
}

enum Alphabet {
    /// Each character stands for one byte (GPT-2's table).
    ByteLevel,
    /// A character stands for a space; `<0xNN>` may stand for a byte.
    Pieces { space: Option<char>, byte_fallback: bool },
}

/// What the tokenizer drops at the very beginning of a decoded text, because its encoder put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leading {
    /// Nothing.
    Keep,
    /// Up to so many spaces.
    Strip(usize),
    /// All spaces with which the first base token begins.
    StripFirstToken,
}

/// The steps of a decoder that are understood, as `tokenizer.json` spells them.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel {},
    Metaspace { replacement: char, prepend_scheme: Option<String>, add_prefix_space: Option<bool> },
    Replace { pattern: Pattern, content: String },
    ByteFallback {},
    Fuse {},
    Strip { content: char, start: usize, stop: usize },
    Sequence { decoders: Vec<Value> },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

impl Decoding {
    pub(super) fn from_json(tokenizer: &Value) -> Result<Self> {
        let decoder = tokenizer.get("decoder").unwrap_or(&Value::Null);
        let steps = match step(decoder)? {
            Step::Sequence { decoders } => decoders.iter().map(step).collect::<Result<_>>()?,
            single => vec![single],
        };
        if matches!(steps[..], [Step::ByteLevel {}]) {
            return Ok(Self { alphabet: Alphabet::ByteLevel, leading: Leading::Keep });
        }
        let (mut space, mut byte_fallback, mut fused) = (None, false, false);
        let mut leading = Leading::Keep;
        for step in steps {
            match step {
                Step::Replace { pattern: Pattern::String(from), content } if content == " " => {
                    space = Some(single_char(&from)?);
                }
                Step::Metaspace { replacement, prepend_scheme, add_prefix_space } => {
                    space = Some(replacement);
                    if prepend_scheme.as_deref() != Some("never") && add_prefix_space != Some(false) {
                        leading = Leading::StripFirstToken;
                    }
                }
                Step::ByteFallback {} => byte_fallback = true,
                Step::Fuse {} => fused = true,
                // Before Fuse it would strip every token's space.
                Step::Strip { content: ' ', start, stop: 0 } if fused => leading = Leading::Strip(start),
                other => return Err(Error::UnsupportedDecoder(other.describe())),
            }
        }
        Ok(Self { alphabet: Alphabet::Pieces { space, byte_fallback }, leading })
    }

    /// Appends the bytes of a learned token.
    pub(super) fn push_bytes(&self, token: &str, out: &mut Vec<u8>) {
        match self.alphabet {
            Alphabet::ByteLevel => {
                let start = out.len();
                for char in token.chars() {
                    let Some(byte) = byte_of(char) else {
                        // Not of the alphabet: the token means itself, as the `tokenizers` crate has it.
                        out.truncate(start);
                        return out.extend_from_slice(token.as_bytes());
                    };
                    out.push(byte);
                }
            }
            Alphabet::Pieces { space, byte_fallback } => match fallback_byte(token).filter(|_| byte_fallback)
            {
                Some(byte) => out.push(byte),
                None => {
                    let mut utf8 = [0; 4];
                    for char in token.chars() {
                        let char = if Some(char) == space { ' ' } else { char };
                        out.extend_from_slice(char.encode_utf8(&mut utf8).as_bytes());
                    }
                }
            },
        }
    }
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::ByteLevel {} => "ByteLevel beside others".to_owned(),
            Self::Replace { pattern: Pattern::String(from) | Pattern::Regex(from), content } => {
                format!("Replace of {from:?} by {content:?}")
            }
            Self::Strip { content, start, stop } => format!("Strip of {content:?}, {start} and {stop}"),
            Self::Sequence { .. } => "Sequence in a Sequence".to_owned(),
            Self::Metaspace { .. } => "Metaspace".to_owned(),
            Self::ByteFallback {} => "ByteFallback".to_owned(),
            Self::Fuse {} => "Fuse".to_owned(),
        }
    }
}

fn step(value: &Value) -> Result<Step> {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or("none");
    Step::deserialize(value).map_err(|_| Error::UnsupportedDecoder(kind.to_owned()))
}

fn single_char(text: &str) -> Result<char> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(char), None) => Ok(char),
        _ => Err(Error::UnsupportedDecoder(format!("Replace of {text:?}"))),
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that a character of GPT-2's table stands for: printable Latin-1 characters stand for themselves, and the
/// 68 other bytes, in order, for the characters from U+0100 on.
pub(super) fn byte_of(char: char) -> Option<u8> {
    static OTHERS: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..=255).filter(|byte| !is_printable(*byte)).collect());
    match u8::try_from(char) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => OTHERS.get(char as usize - 0x100).copied(),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(decoder: Value) -> String {
        match Decoding::from_json(&json!({ "decoder": decoder })) {
            Err(Error::UnsupportedDecoder(kind)) => kind,
            _ => panic!("not refused"),
        }
    }

    #[test]
    fn decoders_that_are_not_understood_are_refused_by_name() {
        assert_eq!(refused(json!({"type": "WordPiece", "prefix": "##", "cleanup": true})), "WordPiece");
        assert_eq!(refused(Value::Null), "none");
        let in_sequence = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "CTC"}]});
        assert_eq!(refused(in_sequence), "CTC");
        let strip = json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(refused(strip), "Strip of ' ', 1 and 0");
    }

    #[test]
    fn the_byte_table_is_a_bijection() {
        let bytes: std::collections::BTreeSet<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(('\0'..'\u{1000}').filter_map(byte_of).count(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn pieces_know_spaces_and_byte_fallback() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let decoding = Decoding::from_json(&json!({ "decoder": decoder })).unwrap();
        assert_eq!(decoding.leading, Leading::Strip(1));
        let bytes = |token| {
            let mut out = Vec::new();
            decoding.push_bytes(token, &mut out);
            out
        };
        assert_eq!(bytes("▁the"), b" the");
        assert_eq!(bytes("<0xE4>"), [0xE4]);
        assert_eq!(bytes("<0xG4>"), b"<0xG4>");
        assert_eq!(bytes("<0xE4"), b"<0xE4");
    }
}
