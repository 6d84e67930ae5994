//! The gRPC contracts and nothing else: `common` (sampling, finish reasons, model), `engine` (the token API) and `text`
//! (the text API). The `.proto` files beside this crate are the documentation.
//!
//! Generated types stop at a service's `service.rs`, the gateway's `api/` and the clients; they are not passed around.
#![allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]

/// What both APIs share.
pub mod common {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("fused.common.v1");
    }
}

/// The token API, served by the engine.
pub mod engine {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("fused.engine.v1");
    }
}

/// The text API, served by the tokenizer.
pub mod text {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("fused.text.v1");
    }
}

/// The encoded `FileDescriptorSet` of all contracts, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fused_descriptor.bin"));
