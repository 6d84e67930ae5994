use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use fused_status::{Code, Error};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tower::BoxError;

use crate::serve::ConnectionBytes;

/// Bytes of messages whose call has not ended yet, of one connection.
pub(super) const MAX_CONNECTION_BYTES: usize = 64 << 20;
/// The same of all connections of a port.
pub(super) const MAX_ALL_BYTES: usize = 128 << 20;
/// How long a server that waits for a message, or for the end of a call's messages, does so.
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Compressed or not, and the length in four bytes.
const HEADER_BYTES: usize = 5;

/// Bytes of unfinished messages of a port.
#[derive(Debug, Default)]
pub(super) struct AllBytes(AtomicUsize);

/// A call's messages on their way in. tonic keeps a message until its last byte is there, for as long as that takes.
pub(super) struct Messages {
    body: Body,
    boundary: Boundary,
    held: Held,
    /// Runs while a message is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Where in a message the body is.
#[derive(Debug, Default)]
pub(super) struct Boundary {
    header: [u8; HEADER_BYTES],
    num_header: usize,
    /// Of the message, once its header is there.
    num_left: usize,
}

/// The bytes of one call's last message, counted until the next one begins or the call's messages end.
struct Held {
    num_bytes: usize,
    connection: ConnectionBytes,
    all: Arc<AllBytes>,
}

impl Messages {
    pub(super) fn new(body: Body, connection: ConnectionBytes, all: Arc<AllBytes>) -> Self {
        let held = Held { num_bytes: 0, connection, all };
        Self { body, boundary: Boundary::default(), held, deadline: None }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Error> {
        match self.boundary.pass(data) {
            Some(num_after) => {
                self.deadline = None;
                if num_after > 0 {
                    self.held.release();
                    return self.held.add(num_after);
                }
                self.held.add(data.len())
            }
            None => self.held.add(data.len()),
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let begin = || Box::pin(tokio::time::sleep_until(Instant::now() + MESSAGE_TIMEOUT));
        let deadline = self.deadline.get_or_insert_with(begin);
        std::task::ready!(deadline.as_mut().poll(cx));
        let message = format!(
            "the call's message, or the end of its messages, did not arrive within {} s; send it whole",
            MESSAGE_TIMEOUT.as_secs()
        );
        Poll::Ready(Error::new(Code::DeadlineExceeded, message))
    }
}

impl Boundary {
    /// Goes over bytes. Returns how many of them come after the last message that ends in them; none: none ends.
    pub(super) fn pass(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut after = None;
        while !data.is_empty() {
            if self.num_header < HEADER_BYTES {
                let (header, rest) = data.split_at(data.len().min(HEADER_BYTES - self.num_header));
                self.header[self.num_header..self.num_header + header.len()].copy_from_slice(header);
                self.num_header += header.len();
                data = rest;
                if self.num_header < HEADER_BYTES {
                    break;
                }
                let [_, length @ ..] = self.header;
                self.num_left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            }
            let taken = data.len().min(self.num_left);
            self.num_left -= taken;
            data = &data[taken..];
            if self.num_left > 0 {
                break;
            }
            self.num_header = 0;
            after = Some(data.len());
        }
        after
    }
}

impl Held {
    fn add(&mut self, num_bytes: usize) -> Result<(), Error> {
        self.num_bytes += num_bytes;
        let connection = self.connection.0.fetch_add(num_bytes, Ordering::Relaxed) + num_bytes;
        let all = self.all.0.fetch_add(num_bytes, Ordering::Relaxed) + num_bytes;
        let full = |what: &str, most: usize| {
            let message =
                format!("{what} holds {} MiB of unfinished messages already; try again later", most >> 20);
            Err(Error::new(Code::QueueFull, message))
        };
        if connection > MAX_CONNECTION_BYTES {
            full("this connection", MAX_CONNECTION_BYTES)
        } else if all > MAX_ALL_BYTES {
            full("the server", MAX_ALL_BYTES)
        } else {
            Ok(())
        }
    }

    fn release(&mut self) {
        self.connection.0.fetch_sub(self.num_bytes, Ordering::Relaxed);
        self.all.0.fetch_sub(self.num_bytes, Ordering::Relaxed);
        self.num_bytes = 0;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let refused = |error: Error| Poll::Ready(Some(Err(Status::from(error).into())));
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => match self.poll_deadline(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(late) => refused(late),
            },
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map_or(Ok(()), |data| self.take(data)) {
                Ok(()) => Poll::Ready(Some(Ok(frame))),
                Err(full) => refused(full),
            },
            Poll::Ready(end) => {
                self.held.release();
                Poll::Ready(end.map(|failed| failed.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
