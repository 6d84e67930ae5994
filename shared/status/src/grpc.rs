use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};

use crate::{Code, Error, transport};

const CODE_KEY: &str = "fused-code";
/// Binary, because a field name may come from the caller.
const PARAM_KEY: &str = "fused-param-bin";
/// Only where the error has a wait of its own: the code's is known on both sides.
const RETRY_AFTER_KEY: &str = "fused-retry-after-ms";
const MAX_PARAM_BYTES: usize = 128;

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let mut metadata = MetadataMap::new();
        metadata.insert(CODE_KEY, MetadataValue::from_static(error.code().name()));
        if let Some(param) = error.param() {
            let bytes = param.as_bytes();
            let value = MetadataValue::from_bytes(&bytes[..bytes.len().min(MAX_PARAM_BYTES)]);
            metadata.insert_bin(PARAM_KEY, value);
        }
        if let Some(ms) = error.retry_after_ms() {
            metadata.insert(RETRY_AFTER_KEY, ms.into());
        }
        #[expect(clippy::disallowed_methods, reason = "this is the one place that builds a status")]
        Self::with_metadata(error.code().grpc(), error.message(), metadata)
    }
}

impl From<&tonic::Status> for Error {
    /// What another service answered. A status that no service of ours made (the transport did) keeps its gRPC code's
    /// meaning and loses its words.
    fn from(status: &tonic::Status) -> Self {
        let metadata = status.metadata();
        let named = metadata.get(CODE_KEY).and_then(|name| Code::from_name(name.to_str().ok()?));
        let Some(code) = named else { return transport::at_client(status) };
        let mut error = Self::new(code, status.message());
        if let Some(param) = metadata.get_bin(PARAM_KEY).and_then(|value| value.to_bytes().ok()) {
            error = error.with_param(String::from_utf8_lossy(&param));
        }
        let retry_after = metadata.get(RETRY_AFTER_KEY).and_then(|ms| ms.to_str().ok()?.parse().ok());
        match retry_after {
            Some(ms) => error.with_retry_after(Duration::from_millis(ms)),
            None => error,
        }
    }
}

/// Whether a service of ours made a status: the transport's own have no code of ours.
#[must_use]
pub fn is_ours(status: &tonic::Status) -> bool {
    status.metadata().contains_key(CODE_KEY)
}

/// The status that a server sends in place of one that no service of ours made; none where ours is to go out as it is.
#[must_use]
pub fn in_our_words(status: &tonic::Status) -> Option<Error> {
    (status.code() != tonic::Code::Ok && !is_ours(status)).then(|| transport::at_server(status))
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::from(&status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_message_and_param_survive_the_wire() {
        for code in Code::ALL {
            let sent = Error::new(code, "what to change").with_param("sampling.top_p");
            let status = tonic::Status::from(sent);
            assert_eq!(status.code(), code.grpc());
            let received = Error::from(&status);
            assert_eq!(received.code(), code);
            assert_eq!(received.message(), "what to change");
            assert_eq!(received.param(), Some("sampling.top_p"));
        }
    }

    #[test]
    fn a_wait_survives_the_wire_to_the_millisecond() {
        for ms in [1, 1500, 60_000] {
            let sent = Error::new(Code::QueueFull, "later").with_retry_after(Duration::from_millis(ms));
            let received = Error::from(tonic::Status::from(sent));
            assert_eq!(received.retry_after_ms(), Some(ms));
        }
        let plain = Error::from(tonic::Status::from(Error::new(Code::QueueFull, "later")));
        assert_eq!((plain.retry_after_ms(), plain.retry_after_s()), (None, Some(1)));
    }

    #[test]
    fn a_wait_that_is_no_number_is_none() {
        for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            let mut status = tonic::Status::from(Error::new(Code::QueueFull, "later"));
            status.metadata_mut().insert(RETRY_AFTER_KEY, text.parse().unwrap());
            assert_eq!(Error::from(&status).retry_after_ms(), None, "{text}");
        }
        let mut status = tonic::Status::from(Error::new(Code::QueueFull, "later"));
        status.metadata_mut().insert(RETRY_AFTER_KEY, u64::MAX.into());
        assert_eq!(Error::from(&status).retry_after_s(), Some(86_400));
    }

    #[test]
    fn the_operators_detail_does_not_travel() {
        let cause = std::io::Error::other("/secret/path");
        let status = tonic::Status::from(Error::internal(&cause));
        assert!(!format!("{status:?}").contains("secret"));
    }

    #[test]
    fn a_transport_error_keeps_its_meaning() {
        #[expect(clippy::disallowed_methods, reason = "a status as the transport makes it")]
        let status = tonic::Status::from_error(Box::new(std::io::Error::other("refused")));
        let error = Error::from(status);
        assert_eq!(error.code(), Code::Unavailable);
    }
}
