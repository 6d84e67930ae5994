use http::StatusCode;

/// What went wrong, as far as a caller or an operator acts differently on it. README.md's table of error codes is this
/// list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A field of the request is missing, malformed or out of range.
    InvalidArgument,
    /// Prompt and output do not fit into the model's context.
    ContextLengthExceeded,
    /// The request names a model that is not served here.
    ModelNotFound,
    /// No such route or request.
    NotFound,
    /// The route exists, but not with this method.
    MethodNotAllowed,
    /// The API key is missing or wrong.
    InvalidApiKey,
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// A known feature that this build or model does not offer.
    Unsupported,
    /// Token ids were made with another vocabulary than the engine's.
    VocabularyMismatch,
    /// A bounded queue is full: try again later.
    QueueFull,
    /// The caller's own limit is reached: try again when it has room again.
    RateLimitExceeded,
    /// The client did not read its stream, and the buffer for it is full.
    SlowReader,
    /// The request's own deadline passed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The process drains: another replica takes the request.
    ShuttingDown,
    /// The next service cannot be reached or is not ready.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// One line of the mapping.
struct Row {
    name: &'static str,
    grpc: tonic::Code,
    http: StatusCode,
    /// The `type` of OpenAI's error object.
    openai_type: &'static str,
    /// Seconds after which trying again may help; sent as `Retry-After`.
    retry_after_s: Option<u64>,
}

impl Code {
    /// Every code, in the order of README.md.
    pub const ALL: [Self; 18] = [
        Self::InvalidArgument,
        Self::ContextLengthExceeded,
        Self::ModelNotFound,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::InvalidApiKey,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::Unsupported,
        Self::VocabularyMismatch,
        Self::QueueFull,
        Self::RateLimitExceeded,
        Self::SlowReader,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::ShuttingDown,
        Self::Unavailable,
        Self::Internal,
    ];

    fn row(self) -> Row {
        use tonic::Code as Grpc;
        let row = |name, grpc, http, openai_type, retry_after_s| Row {
            name,
            grpc,
            http,
            openai_type,
            retry_after_s,
        };
        let invalid = "invalid_request_error";
        let server = "server_error";
        match self {
            Self::InvalidArgument => {
                row("invalid_argument", Grpc::InvalidArgument, StatusCode::BAD_REQUEST, invalid, None)
            }
            Self::ContextLengthExceeded => {
                row("context_length_exceeded", Grpc::InvalidArgument, StatusCode::BAD_REQUEST, invalid, None)
            }
            Self::ModelNotFound => {
                row("model_not_found", Grpc::NotFound, StatusCode::NOT_FOUND, invalid, None)
            }
            Self::NotFound => row("not_found", Grpc::NotFound, StatusCode::NOT_FOUND, invalid, None),
            Self::MethodNotAllowed => {
                row("method_not_allowed", Grpc::Unimplemented, StatusCode::METHOD_NOT_ALLOWED, invalid, None)
            }
            Self::InvalidApiKey => {
                row("invalid_api_key", Grpc::Unauthenticated, StatusCode::UNAUTHORIZED, invalid, None)
            }
            Self::PayloadTooLarge => {
                row("payload_too_large", Grpc::InvalidArgument, StatusCode::PAYLOAD_TOO_LARGE, invalid, None)
            }
            Self::UnsupportedMediaType => row(
                "unsupported_media_type",
                Grpc::InvalidArgument,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                invalid,
                None,
            ),
            Self::Unsupported => {
                row("unsupported", Grpc::Unimplemented, StatusCode::BAD_REQUEST, invalid, None)
            }
            Self::VocabularyMismatch => row(
                "vocabulary_mismatch",
                Grpc::FailedPrecondition,
                StatusCode::INTERNAL_SERVER_ERROR,
                server,
                None,
            ),
            Self::QueueFull => row(
                "queue_full",
                Grpc::ResourceExhausted,
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some(1),
            ),
            Self::RateLimitExceeded => row(
                "rate_limit_exceeded",
                Grpc::ResourceExhausted,
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some(1),
            ),
            Self::SlowReader => row(
                "slow_reader",
                Grpc::ResourceExhausted,
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                None,
            ),
            Self::DeadlineExceeded => row(
                "deadline_exceeded",
                Grpc::DeadlineExceeded,
                StatusCode::GATEWAY_TIMEOUT,
                "timeout_error",
                None,
            ),
            Self::Cancelled => {
                let closed = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
                row("cancelled", Grpc::Cancelled, closed, server, None)
            }
            Self::ShuttingDown => {
                row("shutting_down", Grpc::Unavailable, StatusCode::SERVICE_UNAVAILABLE, server, Some(1))
            }
            Self::Unavailable => {
                row("unavailable", Grpc::Unavailable, StatusCode::SERVICE_UNAVAILABLE, server, Some(1))
            }
            Self::Internal => {
                row("internal", Grpc::Internal, StatusCode::INTERNAL_SERVER_ERROR, server, None)
            }
        }
    }

    /// The code's name on the wire: `code` of OpenAI's error object, `fused-code` in gRPC metadata.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The code with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The gRPC code.
    #[must_use]
    pub fn grpc(self) -> tonic::Code {
        self.row().grpc
    }

    /// The HTTP status.
    #[must_use]
    pub fn http(self) -> StatusCode {
        self.row().http
    }

    /// The `type` of OpenAI's error object.
    #[must_use]
    pub fn openai_type(self) -> &'static str {
        self.row().openai_type
    }

    /// Seconds for `Retry-After`, where trying again may help.
    #[must_use]
    pub fn retry_after_s(self) -> Option<u64> {
        self.row().retry_after_s
    }

    /// Whether a human must look: logged at ERROR where handled; everything else is counted.
    #[must_use]
    pub fn is_fault(self) -> bool {
        matches!(self, Self::Internal | Self::VocabularyMismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.name()), Some(code));
        }
        assert_eq!(Code::from_name("no such code"), None);
    }

    #[test]
    fn whatever_may_be_retried_says_when() {
        for code in Code::ALL {
            let overload = matches!(code.http(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(!overload || code.retry_after_s().is_some(), "{code:?}");
        }
    }
}
