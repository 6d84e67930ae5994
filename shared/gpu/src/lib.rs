//! A safe layer over one NVIDIA GPU: the CUDA driver, cuBLASLt and NVRTC, all looked for at run time.
//!
//! Nothing of CUDA is linked, and nothing here panics: a machine without driver, library or GPU gets an
//! [`Error`] that says what is missing. Everything is behind the feature `cuda`; without it this crate is
//! empty.
//!
//! One [`Gpu`] has one stream, on which everything happens in the order of the calls: no call needs to know
//! what ran before it, and a [`Buffer`] may be given back while work on it is still queued. What the host
//! shares with the device while it runs, [`Pinned`] memory, knows the last copy that touches it and waits for
//! it. What a [`Graph`] has recorded stays allocated as long as any graph lives.
//!
//! This room knows no model, no kernel and no tensor: addresses, bytes, and the shapes of matrix products. The
//! one thing it cannot check is what a kernel does with its parameters: [`Gpu::launch`] and
//! [`Gpu::launch_early`] are unsafe, and `fused-kernels` answers for them.

#![cfg_attr(
    not(feature = "cuda"),
    allow(rustdoc::broken_intra_doc_links, reason = "what the header names is behind the feature")
)]
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod gpu;

#[cfg(feature = "cuda")]
mod buffer;
#[cfg(feature = "cuda")]
mod event;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod image;
#[cfg(feature = "cuda")]
mod kernel;
#[cfg(feature = "cuda")]
mod pinned;

#[cfg(feature = "cuda")]
mod compiler;
#[cfg(feature = "cuda")]
mod products;

#[cfg(feature = "cuda")]
pub use {
    buffer::{Buffer, View},
    compiler::{CompilerVersion, Source, compile, compiler_version},
    error::{Error, Result},
    event::Event,
    gpu::{Capability, Gpu},
    graph::Graph,
    kernel::{Kernel, Module},
    pinned::Pinned,
    products::{Element, Output, Product, Products, Shape},
};
