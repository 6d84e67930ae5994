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

/// What stands for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenLabels {
    Texts,
    /// `token_id:7`, which tells apart tokens of one text.
    Ids,
}

impl CompletionLogprobs {
    /// Positions, whose offsets count from the start of the choice's text, an echoed prompt included.
    pub(super) fn new<'a>(
        positions: impl IntoIterator<Item = &'a TextLogprobs>,
        labels: TokenLabels,
    ) -> Self {
        let mut logprobs = Self::default();
        for position in positions {
            let token = position.token.as_ref();
            let label = token.map(|token| labels.array_label(token)).unwrap_or_default();
            let logprob = token.and_then(logprob);
            let top = logprob.map(|logprob| TopLogprobs::new(&position.top, labels, &label, logprob));
            logprobs.text_offset.push(position.text_offset());
            logprobs.top_logprobs.push(top);
            logprobs.token_logprobs.push(logprob);
            logprobs.tokens.push(label);
        }
        logprobs
    }
}

/// Likeliest first; an object in JSON.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    /// The likeliest tokens, and the one that stands there if it is not among them.
    fn new(likeliest: &[TextToken], labels: TokenLabels, sampled: &str, sampled_logprob: f32) -> Self {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(likeliest.len() + 1);
        for token in likeliest {
            let label = labels.array_label(token);
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

impl TokenLabels {
    /// A token's text; for bytes that are no text, OpenAI's spelling `bytes:\xe2\x80`, which keeps different ones apart.
    fn array_label(self, token: &TextToken) -> String {
        if self == Self::Ids || std::str::from_utf8(token.bytes()).is_ok() {
            return self.label(token);
        }
        let mut label = String::from("bytes:");
        for byte in token.bytes() {
            // Writing to a string does not fail.
            let _ = write!(label, "\\x{byte:02x}");
        }
        label
    }

    /// The same where the bytes stand beside it.
    fn label(self, token: &TextToken) -> String {
        match self {
            Self::Texts => token.text().to_owned(),
            Self::Ids => format!("token_id:{}", token.token_id()),
        }
    }
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
    pub(super) fn new(positions: Vec<TextLogprobs>, labels: TokenLabels) -> Self {
        let content = positions.into_iter().map(|position| Position {
            token: Token::new(position.token.unwrap_or_default(), labels),
            top_logprobs: position.top.into_iter().map(|token| Token::new(token, labels)).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl Token {
    fn new(token: TextToken, labels: TokenLabels) -> Self {
        let logprob = logprob(&token).unwrap_or(MIN_LOGPROB);
        Self { token: labels.label(&token), logprob, bytes: token.bytes }
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
        let logprobs = CompletionLogprobs::new([&position], TokenLabels::Texts);
        let expected = concat!(
            r#"{"text_offset":[4],"token_logprobs":[-3.0],"tokens":["bytes:\\xe2\\x80"],"#,
            r#""top_logprobs":[{"bytes:\\xe2":-0.5,"a":-1.0,"b":-9999.0,"bytes:\\xe2\\x80":-3.0}]}"#
        );
        assert_eq!(serde_json::to_string(&logprobs).unwrap(), expected);
        let ids = serde_json::to_value(CompletionLogprobs::new([&position], TokenLabels::Ids)).unwrap();
        assert_eq!(ids["tokens"], json!(["token_id:1"]));
        assert_eq!(ids["top_logprobs"], json!([{"token_id:1": -0.5}]));
        let by_id =
            serde_json::to_value(ChatLogprobs::new(vec![position.clone()], TokenLabels::Ids)).unwrap();
        assert_eq!(by_id["content"][0]["top_logprobs"][1]["token"], "token_id:1");
        let chat = serde_json::to_value(ChatLogprobs::new(vec![position], TokenLabels::Texts)).unwrap();
        assert_eq!(chat["content"][0]["bytes"], json!([0xe2, 0x80]));
        assert_eq!(chat["content"][0]["top_logprobs"][3]["logprob"], json!(-9999.0));
        assert_eq!(chat["refusal"], json!(null));
    }

    #[test]
    fn a_position_without_a_prediction_is_null() {
        let first = TextToken { logprob: None, ..token("a", b"a", 0.0) };
        let position = TextLogprobs { token: Some(first), top: vec![], text_offset: None };
        let logprobs = CompletionLogprobs::new([&position], TokenLabels::Texts);
        assert_eq!(
            serde_json::to_value(&logprobs).unwrap(),
            json!({"text_offset": [0], "token_logprobs": [null], "tokens": ["a"], "top_logprobs": [null]})
        );
    }
}
