//! The door: how many requests are inside, whether new ones are let in at all, how large their bodies may be, each and
//! together.

mod body;
mod memory;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use fused_lifecycle::{Lifecycle, RequestGuard};
use fused_status::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use body::JsonBody;
pub(crate) use memory::Share;

use memory::BodyMemory;

use crate::Config;
use crate::edge::{Guard, Held};
use crate::error::Result;
use crate::events;
use crate::gateway::Shared;

/// Counts requests in.
#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    max_requests: usize,
    body_memory: BodyMemory,
    lifecycle: Lifecycle,
}

impl Admission {
    pub(crate) fn new(config: &Config, lifecycle: Lifecycle) -> Self {
        let max_requests = config.max_requests_in_flight.min(Semaphore::MAX_PERMITS);
        let body_memory = BodyMemory::new(config.max_buffered_bytes);
        Self { permits: Arc::new(Semaphore::new(max_requests)), max_requests, body_memory, lifecycle }
    }

    fn enter(&self) -> std::result::Result<InFlight, Error> {
        let request = self.lifecycle.request().map_err(|draining| {
            Error::new(Code::ShuttingDown, "the server is shutting down; send the request to another replica")
                .with_cause(&draining)
        })?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|full| {
            let message =
                format!("{} requests are in flight, which is the limit; try again later", self.max_requests);
            Error::new(Code::QueueFull, message).with_cause(&full)
        })?;
        events::in_flight(1.0);
        Ok(InFlight { _request: request, _permit: permit })
    }
}

/// One request inside. Lives in the response body.
#[derive(Debug)]
struct InFlight {
    _request: RequestGuard,
    _permit: OwnedSemaphorePermit,
}

impl Guard for InFlight {}

impl Drop for InFlight {
    fn drop(&mut self) {
        events::in_flight(-1.0);
    }
}

/// Lets a request in, or refuses it before its body is read.
pub(crate) async fn admit(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let in_flight = shared.admission.enter()?;
    let response = next.run(request).await;
    Ok(response.map(|body| Body::new(Held::new(body, in_flight))))
}
