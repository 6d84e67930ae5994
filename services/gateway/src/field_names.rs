//! Which field an error from behind means: the services behind name the fields of their own API, the client knows those
//! it sent.

use fused_status::Error;

/// What a route calls the fields that have another name behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldNames {
    pub(crate) prompt: &'static str,
    pub(crate) logprobs: &'static str,
    pub(crate) max_tokens: &'static str,
}

impl FieldNames {
    pub(crate) const COMPLETIONS: Self =
        Self { prompt: "prompt", logprobs: "logprobs", max_tokens: "max_tokens" };
    pub(crate) const CHAT: Self =
        Self { prompt: "messages", logprobs: "top_logprobs", max_tokens: "max_tokens" };

    /// The error with the client's name of its field, in the message too where the message begins with it.
    pub(crate) fn rename(self, error: Error) -> Error {
        let Some(theirs) = error.param() else { return error };
        let ours = match theirs {
            "num_sequences" => "n",
            "num_output" | "num_prompt" => self.logprobs,
            "strings" => "stop",
            "prompt" | "text" | "token_ids" => self.prompt,
            "max_tokens" => self.max_tokens,
            _ => return error,
        };
        match error.message().strip_prefix(theirs) {
            Some(rest) if rest.starts_with(' ') => {
                let message = format!("{ours}{rest}");
                error.with_message(message).with_param(ours)
            }
            _ => error.with_param(ours),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fused_status::Code;

    use super::*;

    #[test]
    fn every_name_from_behind_becomes_the_clients() {
        let renewed = FieldNames { max_tokens: "max_completion_tokens", ..FieldNames::CHAT };
        for (theirs, completions, chat) in [
            ("num_sequences", "n", "n"),
            ("num_output", "logprobs", "top_logprobs"),
            ("num_prompt", "logprobs", "top_logprobs"),
            ("strings", "stop", "stop"),
            ("stop", "stop", "stop"),
            ("text", "prompt", "messages"),
            ("token_ids", "prompt", "messages"),
            ("prompt", "prompt", "messages"),
            ("max_tokens", "max_tokens", "max_completion_tokens"),
            ("messages[0].content", "messages[0].content", "messages[0].content"),
            ("stop_token_ids", "stop_token_ids", "stop_token_ids"),
            ("top_p", "top_p", "top_p"),
        ] {
            for (names, ours) in [(FieldNames::COMPLETIONS, completions), (renewed, chat)] {
                let error = names.rename(Error::invalid(theirs, format!("{theirs} must be 1")));
                assert_eq!((error.param(), error.message()), (Some(ours), &*format!("{ours} must be 1")));
                assert_eq!(error.code(), Code::InvalidArgument);
            }
        }
    }

    #[test]
    fn a_sentence_stays_as_it_is() {
        for message in ["the prompt is empty", "prompts must be shorter", "prompt"] {
            let error = FieldNames::CHAT.rename(Error::invalid("prompt", message));
            assert_eq!((error.param(), error.message()), (Some("messages"), message));
        }
        let wait = Duration::from_millis(1500);
        let waiting =
            FieldNames::CHAT.rename(Error::invalid("prompt", "prompt is too long").with_retry_after(wait));
        assert_eq!((waiting.message(), waiting.retry_after_ms()), ("messages is too long", Some(1500)));
        let nameless = FieldNames::CHAT.rename(Error::new(Code::Unavailable, "try again"));
        assert_eq!((nameless.param(), nameless.message()), (None, "try again"));
    }
}
