//! What tests share: the repository's fixtures, and real processes to talk to. Never a dependency of anything but tests.

mod data;
mod server;
mod sse;

pub use data::{corpus, golden, model_dir, repository};
pub use server::{Finished, Server, run_to_end};
pub use sse::{Events, events};
