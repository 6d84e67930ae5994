use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::base::TokenizerJson;
use crate::{Error, PatchVocabulary, Result};

/// A SHA-256 hash, written as 64 hexadecimal digits: of a base tokenizer, or of a whole vocabulary (base tokenizer and
/// patch). Two services that hold the same fingerprint mean the same text by the same ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Fingerprint([u8; 32]);

/// The fingerprint of the vocabulary that a `tokenizer.json` and a patch make.
///
/// # Errors
/// The tokenizer is not JSON, or the patch was made for another one.
pub fn fingerprint(tokenizer_json: &[u8], patch: Option<&PatchVocabulary>) -> Result<Fingerprint> {
    of_vocabulary(of_tokenizer(TokenizerJson::parse(tokenizer_json)?.value()), patch)
}

pub(crate) fn of_vocabulary(base: Fingerprint, patch: Option<&PatchVocabulary>) -> Result<Fingerprint> {
    match patch {
        None => Ok(base),
        Some(patch) if patch.base_tokenizer() == base => Ok(patch.fingerprint()),
        Some(patch) => Err(Error::OtherTokenizer { patch: patch.base_tokenizer(), tokenizer: base }),
    }
}

/// The hash of a tokenizer's meaning: key order, white space, the spelling of merges (`"a b"` or `["a", "b"]`), absent
/// against null and the settings for truncation and padding, which nobody here applies, do not change it.
pub(crate) fn of_tokenizer(tokenizer: &Value) -> Fingerprint {
    let mut hash = Hasher::new("fused base tokenizer 1");
    if let Value::Object(map) = tokenizer {
        let relevant = map.iter().filter(|(key, _)| !matches!(key.as_str(), "truncation" | "padding"));
        write_object(&mut hash, relevant);
    } else {
        write_value(&mut hash, tokenizer);
    }
    hash.finish()
}

fn write_object<'a>(hash: &mut Hasher, entries: impl Iterator<Item = (&'a String, &'a Value)>) {
    let mut entries: Vec<_> = entries.filter(|(_, value)| !value.is_null()).collect();
    // Sorted here, because whether the map is sorted depends on a feature that any dependency may switch on.
    entries.sort_unstable_by_key(|(key, _)| key.as_str());
    hash.tag(b'{', entries.len());
    for (key, value) in entries {
        hash.text(key);
        match value {
            Value::Array(merges) if key == "merges" => write_merges(hash, merges),
            _ => write_value(hash, value),
        }
    }
}

fn write_merges(hash: &mut Hasher, merges: &[Value]) {
    hash.tag(b'[', merges.len());
    for merge in merges {
        match merge.as_str().and_then(|text| text.split_once(' ')) {
            Some((left, right)) => {
                hash.tag(b'[', 2);
                hash.text(left);
                hash.text(right);
            }
            None => write_value(hash, merge),
        }
    }
}

fn write_value(hash: &mut Hasher, value: &Value) {
    match value {
        Value::Null => hash.tag(b'0', 0),
        Value::Bool(value) => hash.tag(b'b', usize::from(*value)),
        Value::Number(number) => {
            hash.tag(b'n', 0);
            hash.text(&number.to_string());
        }
        Value::String(text) => hash.text(text),
        Value::Array(values) => {
            hash.tag(b'[', values.len());
            for value in values {
                write_value(hash, value);
            }
        }
        Value::Object(map) => write_object(hash, map.iter()),
    }
}

/// SHA-256 over values that say their own length, so that no two contents share one byte string.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new(domain: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.text(domain);
        hasher
    }

    fn tag(&mut self, tag: u8, len: usize) {
        self.0.update([tag]);
        self.0.update((len as u64).to_le_bytes());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.tag(b's', text.len());
        self.0.update(text.as_bytes());
    }

    pub(crate) fn numbers(&mut self, numbers: impl ExactSizeIterator<Item = u32>) {
        self.tag(b'#', numbers.len());
        for number in numbers {
            self.0.update(number.to_le_bytes());
        }
    }

    pub(crate) fn fingerprint(&mut self, fingerprint: Fingerprint) {
        self.0.update(fingerprint.0);
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A fingerprint is 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("expected 64 lower-case hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> std::result::Result<Self, NoFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NoFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn digit(byte: u8) -> std::result::Result<u8, NoFingerprint> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NoFingerprint),
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NoFingerprint;

    fn try_from(text: String) -> std::result::Result<Self, NoFingerprint> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reformatting_a_tokenizer_does_not_change_its_hash() {
        let legacy = br#"{"truncation": {"max_length": 9}, "model": {"type": "BPE", "dropout": null,
            "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;
        let new =
            br#"{"model":{"merges":[["a","b"]],"vocab":{"ab":2,"b":1,"a":0},"type":"BPE"},"padding":null}"#;
        assert_eq!(fingerprint(legacy, None).unwrap(), fingerprint(new, None).unwrap());
    }

    #[test]
    fn another_meaning_is_another_hash() {
        let hash = |json: &str| fingerprint(json.as_bytes(), None).unwrap();
        let merges = r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b", "b a"]}}"#;
        let swapped = r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["b a", "a b"]}}"#;
        let ids = r#"{"model": {"vocab": {"a": 1, "b": 0}, "merges": ["a b", "b a"]}}"#;
        assert_ne!(hash(merges), hash(swapped));
        assert_ne!(hash(merges), hash(ids));
    }

    #[test]
    fn text_and_back() {
        let hash = fingerprint(b"{}", None).unwrap();
        assert_eq!(hash.to_string().parse::<Fingerprint>().unwrap(), hash);
        assert!(hash.to_string().to_uppercase().parse::<Fingerprint>().is_err());
        assert!("äöüßäöüßäöüßäöüßäöüßäöüßäöüßäöüß".parse::<Fingerprint>().is_err());
    }
}
