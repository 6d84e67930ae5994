//! What tests share: the repository's fixtures, and real processes to talk to. Never a dependency of anything but tests.

mod data;
mod hold;
mod metrics;
mod server;
mod sse;

pub use data::{golden, model_dir, repository, test_data, token_ids};
pub use metrics::Metrics;
pub use server::{Finished, Server, run_to_end};
pub use sse::{Events, events};
