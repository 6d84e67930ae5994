//! How much longer a normalizer can make a text. Those of published tokenizers put a character before it, or write
//! another one for each space; one that doubles the text forty times over is a few lines of JSON, too.

use serde_json::Value;

use crate::{Error, Result};

/// Steps of a normalizer or a pre-tokenizer, those inside others included.
const MAX_STEPS: usize = 64;
/// Bytes that may come of one byte, and that may be put before a text.
const MAX_FACTOR: f64 = 256.0;
const MAX_ADDED_BYTES: f64 = 4096.0;

/// Refuses a tokenizer whose normalizer can make more of a text than any does.
pub(super) fn check(tokenizer: &Value) -> Result<()> {
    let mut growth = Growth { num_steps: 0, factor: 1.0, added_bytes: 0.0 };
    growth.add(tokenizer.get("normalizer").unwrap_or(&Value::Null), "normalizers")?;
    let mut splitting = Growth { num_steps: 0, factor: 1.0, added_bytes: 0.0 };
    splitting.add(tokenizer.get("pre_tokenizer").unwrap_or(&Value::Null), "pretokenizers")
}

/// A text of `n` bytes has at most `factor * n + added_bytes` afterwards.
struct Growth {
    num_steps: usize,
    factor: f64,
    added_bytes: f64,
}

impl Growth {
    fn add(&mut self, step: &Value, list: &str) -> Result<()> {
        if let Some(steps) = step.get(list).and_then(Value::as_array) {
            return steps.iter().try_for_each(|step| self.add(step, list));
        }
        self.num_steps += 1;
        if self.num_steps > MAX_STEPS {
            return Err(Error::Normalizer(format!("has more than {MAX_STEPS} steps")));
        }
        let len = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0.0, |text| text.len() as f64);
        match step.get("type").and_then(Value::as_str) {
            Some("Prepend") => self.added_bytes += len(step.get("prepend")),
            Some("Replace") => {
                let content = len(step.get("content"));
                let factor = match step.pointer("/pattern/String").map(|pattern| len(Some(pattern))) {
                    Some(pattern) if pattern > 0.0 => content / pattern,
                    // A regular expression, which may match nothing before every byte.
                    _ => content + 1.0,
                };
                self.factor *= factor.max(1.0);
                self.added_bytes = self.added_bytes * factor.max(1.0) + content;
            }
            _ => {}
        }
        if self.factor > MAX_FACTOR || self.added_bytes > MAX_ADDED_BYTES {
            return Err(Error::Normalizer(format!(
                "makes more than {MAX_FACTOR} bytes of one, or puts more than {MAX_ADDED_BYTES} before a text"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(steps: Vec<Value>) -> std::result::Result<(), String> {
        let tokenizer = json!({"normalizer": {"type": "Sequence", "normalizers": steps}});
        check(&tokenizer).map_err(|error| error.to_string())
    }

    #[test]
    fn what_published_tokenizers_do_is_taken() {
        check(&json!({})).unwrap();
        check(&json!({"normalizer": null, "pre_tokenizer": null})).unwrap();
        check(&json!({"normalizer": {"type": "NFC"}})).unwrap();
        checked(vec![
            json!({"type": "Precompiled", "precompiled_charsmap": "x".repeat(100_000)}),
            json!({"type": "NFKC"}),
            json!({"type": "Lowercase"}),
            json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}),
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            json!({"type": "Replace", "pattern": {"String": "``"}, "content": "\""}),
        ])
        .unwrap();
    }

    #[test]
    fn what_expands_is_refused() {
        let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let anywhere = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "aaaaaaaa"});
        let prepend = json!({"type": "Prepend", "prepend": "x".repeat(500)});
        for steps in [vec![doubling.clone(); 9], vec![anywhere; 3], vec![prepend; 9]] {
            assert!(checked(steps).unwrap_err().contains("makes more than"));
        }
        let nested = |step: Value| json!({"type": "Sequence", "normalizers": vec![step; 3]});
        let deep = nested(nested(nested(doubling)));
        assert!(checked(vec![deep]).is_err());
        let short = json!({"type": "Prepend", "prepend": "x"});
        assert!(checked(vec![short; 65]).unwrap_err().contains("more than 64 steps"));
        let steps = vec![json!({"type": "Whitespace"}); 65];
        assert!(check(&json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})).is_err());
    }
}
