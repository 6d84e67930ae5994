use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use fused_status::in_our_words;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::{Frame, SizeHint};
use tonic::Status;

use super::headers;

/// An answer in which no status is in tonic's words: neither in its head nor at its end.
pub(super) fn ours(mut response: Response) -> Response {
    rewrite(response.headers_mut());
    response.map(|body| Body::new(Worded(body)))
}

fn rewrite(map: &mut HeaderMap) {
    let Some(error) = Status::from_header_map(map).and_then(|status| in_our_words(&status)) else { return };
    let detail = error.detail().unwrap_or_default().to_owned();
    if error.code().is_fault() {
        tracing::error!(code = error.code().name(), detail, "a call failed outside of its service");
    } else {
        tracing::debug!(code = error.code().name(), detail, "a call was refused outside of its service");
    }
    let mut ours = headers(error);
    // Trailers have none, and a head has its own.
    ours.remove(CONTENT_TYPE);
    map.remove(Status::GRPC_MESSAGE);
    for (name, value) in &ours {
        map.insert(name, value.clone());
    }
}

struct Worded(Body);

impl http_body::Body for Worded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut polled = Pin::new(&mut self.0).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            rewrite(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
