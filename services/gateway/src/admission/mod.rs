//! The door: how many requests are inside, whether new ones are let in at all, how much memory their bodies and answers
//! may take, each and together.

mod body;
mod memory;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fused_lifecycle::{Lifecycle, RequestGuard};
use fused_status::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use body::JsonBody;
pub(crate) use memory::Share;

use body::ReadBody;
use memory::RequestMemory;

use crate::auth::{Caller, Turn};
use crate::edge::{Guard, Held};
use crate::error::Failure;
use crate::gateway::Shared;
use crate::{Config, events};

/// Counts requests in.
#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    max_requests: usize,
    memory: RequestMemory,
    lifecycle: Lifecycle,
}

impl Admission {
    pub(crate) fn new(config: &Config, lifecycle: Lifecycle) -> Self {
        let max_requests = config.max_requests_in_flight.min(Semaphore::MAX_PERMITS);
        let memory = RequestMemory::new(config.max_buffered_bytes);
        Self { permits: Arc::new(Semaphore::new(max_requests)), max_requests, memory, lifecycle }
    }

    /// Counts a request as one that the process waits for.
    fn open(&self) -> Result<RequestGuard, Error> {
        let request = self.lifecycle.request().map_err(|draining| {
            Error::new(Code::ShuttingDown, "the server is shutting down; send the request to another replica")
                .with_cause(&draining)
        })?;
        // Before its body is read for nothing.
        if self.permits.available_permits() == 0 {
            return Err(self.full());
        }
        Ok(request)
    }

    /// Counts a request in whose body is there: one that is still being sent, however slowly, takes no place.
    fn enter(&self, request: RequestGuard, turn: Turn) -> Result<InFlight, Error> {
        let permit =
            Arc::clone(&self.permits).try_acquire_owned().map_err(|cause| self.full().with_cause(&cause))?;
        events::in_flight(1.0);
        Ok(InFlight { _request: request, _permit: permit, _turn: turn })
    }

    fn full(&self) -> Error {
        let message =
            format!("{} requests are in flight, which is the limit; try again later", self.max_requests);
        Error::new(Code::QueueFull, message)
    }
}

/// One request inside. Lives in the response body.
#[derive(Debug)]
struct InFlight {
    _request: RequestGuard,
    _permit: OwnedSemaphorePermit,
    _turn: Turn,
}

impl Guard for InFlight {}

impl Drop for InFlight {
    fn drop(&mut self) {
        events::in_flight(-1.0);
    }
}

/// Lets a request in whose caller has a turn left, reads its body, and counts it in; or refuses it.
pub(crate) async fn admit(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match enter(&shared, &caller, request).await {
        Ok((in_flight, request)) => {
            let response = next.run(request).await;
            response.map(|body| Body::new(Held::new(body, in_flight)))
        }
        Err(error) => Failure(error).into_response(),
    };
    caller.tell_limits(response.headers_mut());
    response
}

async fn enter(shared: &Shared, caller: &Caller, request: Request) -> Result<(InFlight, Request), Error> {
    let guard = shared.admission.open()?;
    let turn = caller.enter()?;
    let (head, body) = request.into_parts();
    let body = body::read_json(&head.headers, body, &shared.config, &shared.admission.memory).await?;
    let in_flight = shared.admission.enter(guard, turn)?;
    let mut request = Request::from_parts(head, Body::empty());
    request.extensions_mut().insert(ReadBody::new(body));
    Ok((in_flight, request))
}
