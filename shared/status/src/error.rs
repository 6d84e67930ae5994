use std::fmt::Write;

use crate::Code;

/// A result whose error is ready to leave the process.
pub type Result<T> = std::result::Result<T, Error>;

/// The longest message that travels: gRPC carries it in a header, and headers are small.
const MAX_MESSAGE_BYTES: usize = 1024;

/// An error at a service's edge.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
    param: Option<String>,
    detail: Option<String>,
}

impl Error {
    /// An error with a message the caller may see: what is wrong, and what to change.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            let mut end = MAX_MESSAGE_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        Self { code, message, param: None, detail: None }
    }

    /// A field of the request is wrong: names it.
    #[must_use]
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message).with_param(param)
    }

    /// A fault of ours: the caller sees one sentence, the operator the cause.
    #[must_use]
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(Code::Internal, "internal error; the server's log has the cause under this request's id")
            .with_cause(cause)
    }

    /// Names the request's field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Keeps the cause, with its own causes, for the operator.
    #[must_use]
    pub fn with_cause(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut detail = cause.to_string();
        let mut next = cause.source();
        while let Some(error) = next {
            // Writing to a string does not fail.
            let _ = write!(detail, ": {error}");
            next = error.source();
        }
        self.detail = Some(detail);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message the caller sees.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The request's field at fault.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// What the operator sees beside the message; never sent to a caller.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// OpenAI's error object, the one shape of every failure over HTTP and inside event streams.
    #[must_use]
    pub fn openai_body(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "message": self.message,
            "type": self.code.openai_type(),
            "param": self.param,
            "code": self.code.name(),
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let error = Error::new(Code::InvalidArgument, "ä".repeat(2000));
        assert!(error.message().len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        assert!(error.message().ends_with('…'));
    }

    #[test]
    fn the_openai_body_has_all_four_keys() {
        let body = Error::invalid("top_p", "top_p must be over 0 and at most 1, got 2").openai_body();
        assert_eq!(
            body,
            serde_json::json!({"error": {"message": "top_p must be over 0 and at most 1, got 2",
                "type": "invalid_request_error", "param": "top_p", "code": "invalid_argument"}})
        );
    }
}
