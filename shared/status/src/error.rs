use std::fmt::Write;
use std::time::Duration;

use crate::Code;

/// A result whose error is ready to leave the process.
pub type Result<T> = std::result::Result<T, Error>;

/// The longest message that travels: gRPC carries it in a header, and headers are small.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The longest wait that is told to anybody: past it, nobody waits but comes back some time.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// An error at a service's edge.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
    param: Option<String>,
    detail: Option<String>,
    retry_after: Option<Duration>,
}

impl Error {
    /// An error with a message the caller may see: what is wrong, and what to change.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into()), param: None, detail: None, retry_after: None }
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

    /// The same error in other words.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = cut(message.into());
        self
    }

    /// Says when trying again may help, where that is known better than the code's constant says: at most a day, in
    /// whole milliseconds, rounded up.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        let ms = u64::try_from(wait.min(MAX_RETRY_AFTER).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.retry_after = Some(Duration::from_millis(ms));
        self
    }

    /// Keeps the cause, with its own causes, for the operator.
    #[must_use]
    pub fn with_cause(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        self.detail = Some(with_causes(cause));
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

    /// Seconds for the header `Retry-After`: this error's own, rounded up and at least 1, or its code's.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        let own = self.retry_after_ms().map(|ms| ms.div_ceil(1000).max(1));
        own.or(self.code.retry_after_s())
    }

    /// Milliseconds for the header `retry-after-ms`, which OpenAI's clients prefer; only where this error has a wait of
    /// its own.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after.and_then(|wait| u64::try_from(wait.as_millis()).ok())
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

/// An error with all that lies behind it, the nearest cause first.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let mut end = MAX_MESSAGE_BYTES;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_may_know_better_than_its_code_when_to_come_back() {
        let full = || Error::new(Code::QueueFull, "the queue is full");
        assert_eq!((full().retry_after_s(), full().retry_after_ms()), (Some(1), None));
        let after = |wait| {
            let error = full().with_retry_after(wait);
            (error.retry_after_s(), error.retry_after_ms())
        };
        assert_eq!(after(Duration::from_millis(7001)), (Some(8), Some(7001)));
        assert_eq!(after(Duration::from_secs(7)), (Some(7), Some(7000)));
        assert_eq!(after(Duration::from_nanos(1)), (Some(1), Some(1)));
        assert_eq!(after(Duration::ZERO), (Some(1), Some(0)));
        assert_eq!(after(Duration::MAX), (Some(86_400), Some(86_400_000)));
        let never = Error::new(Code::InvalidArgument, "no").retry_after_s();
        assert_eq!(never, None);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let error = Error::new(Code::InvalidArgument, "ä".repeat(2000));
        assert!(error.message().len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        assert!(error.message().ends_with('…'));
        let again = Error::new(Code::InvalidArgument, "").with_message("ä".repeat(2000));
        assert_eq!(again.message(), error.message());
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
