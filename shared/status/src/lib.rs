//! The closed set of error codes and their one mapping to gRPC and HTTP.
//!
//! Every room has its own error enum; at a service's edge it becomes an [`Error`], which carries a [`Code`], a message
//! the caller may see (what is wrong and what to change) and, apart from it, a detail for the operator's log. Nobody
//! else builds a [`tonic::Status`] or picks an HTTP status.

mod code;
mod error;
mod grpc;
mod transport;

pub use code::Code;
pub use error::{Error, Result, with_causes};
pub use grpc::{in_our_words, is_ours};
