//! Statuses that no service of ours made: tonic, h2 or a peer that is none of ours did. Their words are for the
//! operator; a caller gets a sentence of ours with what to do.

use tonic::Status;

use crate::{Code, Error};

/// What the client's half of a call reports.
pub(crate) fn at_client(status: &Status) -> Error {
    use tonic::Code as Grpc;
    // A connection that breaks in the middle of a stream is `Internal` or `Unknown` to the transport, with a cause; a
    // status that was sent has none.
    let is_broken = std::error::Error::source(status).is_some();
    let error = match status.code() {
        // Nobody here has cancelled the call: whoever did would not be listening.
        Grpc::Unavailable | Grpc::Cancelled | Grpc::Aborted => unreachable_service(),
        Grpc::Internal | Grpc::Unknown | Grpc::ResourceExhausted if is_broken => unreachable_service(),
        Grpc::OutOfRange if status.message().contains("encoded message length") => too_large(),
        Grpc::OutOfRange => Error::new(
            Code::InvalidArgument,
            "the answer is larger than one message may be; ask for fewer log-probabilities or a shorter text",
        ),
        Grpc::DeadlineExceeded => Error::new(
            Code::DeadlineExceeded,
            "the request's deadline passed before its answer's end; allow more time or ask for less",
        ),
        Grpc::ResourceExhausted => {
            Error::new(Code::QueueFull, "a service behind this one has no room; try again later")
        }
        _ => return Error::internal(status),
    };
    error.with_cause(status)
}

/// What the server's half of a call refuses before a service of ours sees it, or after.
pub(crate) fn at_server(status: &Status) -> Error {
    use tonic::Code as Grpc;
    let words = status.message();
    let error = match status.code() {
        Grpc::OutOfRange if words.contains("decoded message length") => too_large(),
        Grpc::Unimplemented if words.contains("compressed") => Error::new(
            Code::Unsupported,
            "compressed messages are not offered: send them as they are, with `grpc-encoding: identity`",
        ),
        Grpc::Unimplemented => Error::new(
            Code::Unsupported,
            "this server has no such method; its reflection service lists those that it has",
        ),
        Grpc::NotFound => Error::new(
            Code::NotFound,
            "nothing of that name is served here; the reflection service lists what is",
        ),
        // A client that goes away while it sends is no fault of the server's.
        Grpc::Internal | Grpc::Unknown if words.contains("error reading a body") => {
            Error::new(Code::Cancelled, "the call's messages broke off: its client or its connection is gone")
        }
        Grpc::Internal if words.contains("protocol error: received message") => Error::new(
            Code::InvalidArgument,
            "the body is no uncompressed gRPC message: each begins with a zero byte and its length in four bytes",
        ),
        Grpc::Internal if words.contains("Unexpected EOF") => Error::new(
            Code::InvalidArgument,
            "the message ended before the length that it announced; send it whole",
        ),
        Grpc::Internal if words.contains("Missing request message") => {
            Error::new(Code::InvalidArgument, "the call came without a message; send one")
        }
        Grpc::Internal if words.contains("decode") => Error::new(
            Code::InvalidArgument,
            "the message cannot be read; build it from this server's .proto files, which its reflection service has",
        ),
        Grpc::DeadlineExceeded => Error::new(
            Code::DeadlineExceeded,
            "the call's own deadline (grpc-timeout) passed; allow more time or ask for less",
        ),
        Grpc::Cancelled => Error::new(Code::Cancelled, "the call was cancelled by its client"),
        Grpc::InvalidArgument => Error::new(
            Code::InvalidArgument,
            "the message has a value that cannot be used; see the .proto files",
        ),
        Grpc::ResourceExhausted => {
            Error::new(Code::QueueFull, "the server has no room for this call; try again later")
        }
        Grpc::Unavailable => Error::new(Code::Unavailable, "the call cannot be answered now; try again"),
        _ => return Error::internal(status),
    };
    error.with_cause(status)
}

fn unreachable_service() -> Error {
    Error::new(Code::Unavailable, "a service behind this one cannot be reached; try again")
}

fn too_large() -> Error {
    Error::new(
        Code::PayloadTooLarge,
        "the request is larger than one gRPC message may be, which is 16 MiB; shorten it or send it in parts",
    )
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "statuses as the transport makes them")]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_the_transports_reaches_a_caller() {
        let words = [
            "Error, decoded message length too large: found 18 bytes, the limit is: 16 bytes",
            "Error, encoded message length too large: found 18 bytes, the limit is: 16 bytes",
            "Content is compressed with `gzip` which isn't supported",
            "protocol error: received message with invalid compression flag: 60 (valid flags are 0 and 1)",
            "failed to decode Protobuf message: invalid wire type",
            "Unexpected EOF decoding stream.",
            "Missing request message.",
            "h2 protocol error: error reading a body from connection",
            "service not registered",
            "Timeout expired",
            "",
        ];
        for number in 1..=16 {
            for words in words {
                let status = Status::new(tonic::Code::from(number), words);
                for error in [at_client(&status), at_server(&status)] {
                    assert!(words.is_empty() || !error.message().contains(words), "{error}");
                    assert!(error.message().len() > 20, "{number} {words}: {error}");
                }
            }
        }
    }

    #[test]
    fn what_the_caller_can_change_is_no_fault_of_ours() {
        let server = |code, words: &str| at_server(&Status::new(code, words)).code();
        use tonic::Code as Grpc;
        assert_eq!(
            server(Grpc::OutOfRange, "Error, decoded message length too large"),
            Code::PayloadTooLarge
        );
        assert_eq!(server(Grpc::Internal, "failed to decode Protobuf message"), Code::InvalidArgument);
        assert_eq!(server(Grpc::Internal, "Missing request message."), Code::InvalidArgument);
        let gone = "h2 protocol error: error reading a body from connection";
        assert_eq!(server(Grpc::Unknown, gone), Code::Cancelled);
        assert_eq!(server(Grpc::Unimplemented, ""), Code::Unsupported);
        assert_eq!(server(Grpc::NotFound, "service not registered"), Code::NotFound);
        assert_eq!(server(Grpc::Internal, "Error encoding"), Code::Internal);
        let client = |code, words: &str| at_client(&Status::new(code, words)).code();
        assert_eq!(
            client(Grpc::OutOfRange, "Error, encoded message length too large"),
            Code::PayloadTooLarge
        );
        assert_eq!(client(Grpc::Cancelled, "operation was canceled"), Code::Unavailable);
        assert_eq!(client(Grpc::Internal, "decode"), Code::Internal);
    }
}
