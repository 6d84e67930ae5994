use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use fused_lifecycle::Lifecycle;
use fused_status::Error;
use http_body::{Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{BoxError, ServiceExt};

use crate::Channel;

/// A channel to a service of this process. Its messages are those of a socket, and there is no connection: nothing that
/// one caller does to its own call can end another's.
#[must_use]
pub fn in_process(routes: Routes, lifecycle: &Lifecycle) -> Channel {
    Channel::in_process(routes.prepare(), lifecycle.clone())
}

/// The service panicked.
#[derive(Debug, thiserror::Error)]
#[error("the service panicked in this call")]
struct Panicked;

/// Calls a service in a task of its own, as a server would, so that its panic is this call's and the caller's span is
/// not its parent. Dropping the future ends the task.
pub(crate) fn call(
    routes: Routes,
    lifecycle: &Lifecycle,
    request: http::Request<Body>,
) -> impl Future<Output = Result<http::Response<Body>, BoxError>> + Send + use<> {
    let called = AbortOnDropHandle::new(lifecycle.spawn("in-process call", routes.oneshot(request)));
    async move {
        match called.await {
            Ok(Ok(answer)) => Ok(answer.map(|body| Body::new(Guarded(body)))),
            Ok(Err(never)) => match never {},
            Err(_) => Err(panicked().into()),
        }
    }
}

fn panicked() -> Status {
    Error::internal(&Panicked).into()
}

/// A response body whose panic is an error.
struct Guarded(Body);

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = Pin::new(&mut self.0);
        // What panicked is not polled again: an error ends the body.
        catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx)))
            .unwrap_or_else(|_| Poll::Ready(Some(Err(panicked()))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
