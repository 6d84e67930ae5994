//! Log-probabilities in the two forms that OpenAI's API has for them.

use std::fmt::Write;

use fused_proto::text::v1::{TextLogprobs, TextToken};
use serde::{Serialize, Serializer};

/// What stands for minus infinity, which JSON cannot say.
const MIN_LOGPROB: f32 = -9999.0;

/// The form of completions: parallel arrays.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    text_offset: Vec<u32>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<TopLogprobs>>,
}

impl CompletionLogprobs {
    /// Adds positions, whose offsets count from the start of the choice's text, an echoed prompt included.
    pub(super) fn extend(&mut self, positions: &[TextLogprobs]) {
        for position in positions {
            let token = position.token.as_ref();
            let label = token.map(label).unwrap_or_default();
            let logprob = token.and_then(logprob);
            self.text_offset.push(position.text_offset());
            self.top_logprobs.push(logprob.map(|logprob| TopLogprobs::new(&position.top, &label, logprob)));
            self.token_logprobs.push(logprob);
            self.tokens.push(label);
        }
    }
}

/// Likeliest first; an object in JSON.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    /// The likeliest tokens, and the one that stands there if it is not among them.
    fn new(likeliest: &[TextToken], sampled: &str, sampled_logprob: f32) -> Self {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(likeliest.len() + 1);
        for token in likeliest {
            let label = label(token);
            // Two tokens can have one text; an object has each key once, and the likelier came first.
            if !top.iter().any(|(known, _)| *known == label) {
                top.push((label, logprob(token).unwrap_or(MIN_LOGPROB)));
            }
        }
        if !top.iter().any(|(known, _)| known == sampled) {
            top.push((sampled.to_owned(), sampled_logprob));
        }
        Self(top)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// A token's text; for bytes that are no text, OpenAI's spelling `bytes:\xe2\x80`, which keeps different ones apart.
fn label(token: &TextToken) -> String {
    if std::str::from_utf8(token.bytes()).is_ok() {
        return token.text().to_owned();
    }
    let mut label = String::from("bytes:");
    for byte in token.bytes() {
        // Writing to a string does not fail.
        let _ = write!(label, "\\x{byte:02x}");
    }
    label
}

fn logprob(token: &TextToken) -> Option<f32> {
    // `max` takes the number where the other is NaN.
    token.logprob.map(|logprob| logprob.max(MIN_LOGPROB))
}

/// The form of chat completions: a list of positions.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<Position>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Position {
    #[serde(flatten)]
    token: Token,
    top_logprobs: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl ChatLogprobs {
    pub(super) fn new(positions: Vec<TextLogprobs>) -> Self {
        let content = positions.into_iter().map(|position| Position {
            token: position.token.unwrap_or_default().into(),
            top_logprobs: position.top.into_iter().map(Token::from).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl From<TextToken> for Token {
    fn from(token: TextToken) -> Self {
        let logprob = logprob(&token).unwrap_or(MIN_LOGPROB);
        Self { token: token.text.unwrap_or_default(), logprob, bytes: token.bytes }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(text: &str, bytes: &[u8], logprob: f32) -> TextToken {
        TextToken {
            token_id: Some(1),
            text: Some(text.to_owned()),
            bytes: Some(bytes.to_vec()),
            logprob: Some(logprob),
        }
    }

    #[test]
    fn the_sampled_token_is_added_and_halves_of_characters_stay_apart() {
        let position = TextLogprobs {
            token: Some(token("\u{fffd}", b"\xe2\x80", -3.0)),
            top: vec![
                token("\u{fffd}", b"\xe2", -0.5),
                token("a", b"a", -1.0),
                token("a", b"a", -1.5),
                token("b", b"b", f32::NEG_INFINITY),
            ],
            text_offset: Some(4),
        };
        let mut logprobs = CompletionLogprobs::default();
        logprobs.extend(std::slice::from_ref(&position));
        let expected = concat!(
            r#"{"text_offset":[4],"token_logprobs":[-3.0],"tokens":["bytes:\\xe2\\x80"],"#,
            r#""top_logprobs":[{"bytes:\\xe2":-0.5,"a":-1.0,"b":-9999.0,"bytes:\\xe2\\x80":-3.0}]}"#
        );
        assert_eq!(serde_json::to_string(&logprobs).unwrap(), expected);
        let chat = serde_json::to_value(ChatLogprobs::new(vec![position])).unwrap();
        assert_eq!(chat["content"][0]["bytes"], json!([0xe2, 0x80]));
        assert_eq!(chat["content"][0]["top_logprobs"][3]["logprob"], json!(-9999.0));
        assert_eq!(chat["refusal"], json!(null));
    }

    #[test]
    fn a_position_without_a_prediction_is_null() {
        let mut logprobs = CompletionLogprobs::default();
        let first = TextToken { logprob: None, ..token("a", b"a", 0.0) };
        logprobs.extend(&[TextLogprobs { token: Some(first), top: vec![], text_offset: None }]);
        assert_eq!(
            serde_json::to_value(&logprobs).unwrap(),
            json!({"text_offset": [0], "token_logprobs": [null], "tokens": ["a"], "top_logprobs": [null]})
        );
    }
}
