//! Server-sent events: `data: {json}`, a blank line, at the end `data: [DONE]`. An error inside a stream is an event too,
//! and the end follows it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use fused_proto::text::v1::generate_response::Message;
use fused_status::Error;
use futures_util::{Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use tokio::time::Sleep;
use tracing::Span;

use crate::error::Fault;
use crate::events;
use crate::generation::{Answer, Generation};
use crate::identity::RequestContext;

/// Answers put into one write where they are there already: under load one write carries several tokens.
const MAX_ANSWERS_PER_WRITE: usize = 32;

/// How one route tells answers as events.
pub(crate) trait Chunks: Send + Unpin + 'static {
    /// Writes the events of one answer; none where it has nothing to say.
    fn answer(&mut self, answer: Answer, events: &mut Events) -> Result<(), Error>;

    /// Writes what follows the last answer.
    fn end(&mut self, events: &mut Events) -> Result<(), Error>;
}

/// Events on their way out.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: BytesMut,
}

impl Events {
    /// An event with this value.
    pub(crate) fn push(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let start = self.buffer.len();
        self.buffer.put_slice(b"data: ");
        // JSON has no line break of its own, and escapes those in strings.
        if let Err(error) = serde_json::to_writer((&mut self.buffer).writer(), value) {
            self.buffer.truncate(start);
            return Err(Fault::from(error).into());
        }
        self.buffer.put_slice(b"\n\n");
        Ok(())
    }

    fn error(&mut self, error: &Error) {
        events::failed(error);
        self.buffer.put_slice(format!("data: {}\n\n", error.openai_body()).as_bytes());
        self.done();
    }

    fn done(&mut self) {
        self.buffer.put_slice(b"data: [DONE]\n\n");
    }

    fn take(&mut self) -> Option<Bytes> {
        (!self.buffer.is_empty()).then(|| self.buffer.split().freeze())
    }
}

/// The response that streams a generation. The calls behind it live in its body and end with it.
pub(crate) fn respond(
    generation: Generation,
    chunks: impl Chunks,
    keep_alive_interval: Duration,
    context: RequestContext,
) -> Response {
    let stream = EventStream {
        answers: generation,
        chunks,
        events: Events::default(),
        silence: Box::pin(tokio::time::sleep(keep_alive_interval)),
        keep_alive_interval,
        first_text: Some(context),
        span: Span::current(),
        has_ended: false,
    };
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Running calls that can be told to end.
trait Answers: Stream<Item = Result<Answer, Error>> + Send + Unpin + 'static {
    fn cancel(&mut self);
}

impl Answers for Generation {
    fn cancel(&mut self) {
        Self::cancel(self);
    }
}

struct EventStream<A, C> {
    answers: A,
    chunks: C,
    events: Events,
    silence: Pin<Box<Sleep>>,
    keep_alive_interval: Duration,
    /// Until the first piece of text.
    first_text: Option<RequestContext>,
    span: Span,
    has_ended: bool,
}

impl<A: Answers, C: Chunks> Stream for EventStream<A, C> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let written = this.write_ready(cx);
        if let Some(bytes) = this.events.take() {
            this.await_silence();
            return Poll::Ready(Some(Ok(bytes)));
        }
        if written.is_ready() {
            // Many answers with nothing to say: let others run before the next ones.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.silence.as_mut().poll(cx).is_ready() {
            this.await_silence();
            return Poll::Ready(Some(Ok(Bytes::from_static(b": keep-alive\n\n"))));
        }
        Poll::Pending
    }
}

impl<A: Answers, C: Chunks> EventStream<A, C> {
    /// Writes the answers that are there. Pending: the next one will wake the task.
    fn write_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..MAX_ANSWERS_PER_WRITE {
            let written = match self.answers.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(answer))) => {
                    self.note_first_text(&answer);
                    self.chunks.answer(answer, &mut self.events)
                }
                Poll::Ready(Some(Err(error))) => Err(error),
                Poll::Ready(None) => {
                    self.has_ended = true;
                    self.chunks.end(&mut self.events).map(|()| self.events.done())
                }
            };
            if let Err(error) = written {
                self.has_ended = true;
                // Entered for what is logged, not for every write: tokens have no span.
                self.span.in_scope(|| self.events.error(&error));
                self.answers.cancel();
            }
            if self.has_ended {
                break;
            }
        }
        Poll::Ready(())
    }

    fn note_first_text(&mut self, answer: &Answer) {
        if matches!(answer.message, Message::Text(_))
            && let Some(context) = self.first_text.take()
        {
            let after = context.started.elapsed();
            context.served.tell_first_text(after);
            events::first_chunk(&context.endpoint, after);
        }
    }

    fn await_silence(&mut self) {
        self.silence.as_mut().reset(tokio::time::Instant::now() + self.keep_alive_interval);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use fused_proto::text::v1::{FinishInfo, TextIncrement};
    use fused_status::Code;
    use tokio::sync::mpsc;
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber, info_span};

    use super::*;

    struct Scripted {
        answers: mpsc::Receiver<Result<Answer, Error>>,
        was_cancelled: Arc<AtomicBool>,
    }

    impl Stream for Scripted {
        type Item = Result<Answer, Error>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.answers.poll_recv(cx)
        }
    }

    impl Answers for Scripted {
        fn cancel(&mut self) {
            self.was_cancelled.store(true, Ordering::Release);
        }
    }

    struct Plain;

    impl Chunks for Plain {
        fn answer(&mut self, answer: Answer, events: &mut Events) -> Result<(), Error> {
            match answer.message {
                Message::Text(increment) => events.push(&increment.text),
                _ => Ok(()),
            }
        }

        fn end(&mut self, events: &mut Events) -> Result<(), Error> {
            events.push(&"end")
        }
    }

    struct Rig {
        sender: mpsc::Sender<Result<Answer, Error>>,
        stream: EventStream<Scripted, Plain>,
        was_cancelled: Arc<AtomicBool>,
    }

    fn rig() -> Rig {
        let (sender, answers) = mpsc::channel(256);
        let was_cancelled = Arc::new(AtomicBool::new(false));
        let stream = EventStream {
            answers: Scripted { answers, was_cancelled: Arc::clone(&was_cancelled) },
            chunks: Plain,
            events: Events::default(),
            silence: Box::pin(tokio::time::sleep(Duration::from_secs(15))),
            keep_alive_interval: Duration::from_secs(15),
            first_text: None,
            span: Span::none(),
            has_ended: false,
        };
        Rig { sender, stream, was_cancelled }
    }

    fn text(text: &str) -> Result<Answer, Error> {
        let increment = TextIncrement { text: Some(text.to_owned()), ..TextIncrement::default() };
        Ok(Answer { prompt_idx: 0, message: Message::Text(increment) })
    }

    async fn next(rig: &mut Rig) -> Option<String> {
        let bytes = rig.stream.next().await?.unwrap();
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_goes_out_in_one_write_and_done_ends_it() {
        let mut rig = rig();
        rig.sender.send(text("a\nb")).await.unwrap();
        rig.sender.send(text("c")).await.unwrap();
        assert_eq!(next(&mut rig).await.unwrap(), "data: \"a\\nb\"\n\ndata: \"c\"\n\n");
        rig.sender = mpsc::channel(1).0;
        assert_eq!(next(&mut rig).await.unwrap(), "data: \"end\"\n\ndata: [DONE]\n\n");
        assert_eq!(next(&mut rig).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_the_last_event_but_done_and_cancels_the_calls() {
        let mut rig = rig();
        rig.sender.send(text("a")).await.unwrap();
        rig.sender.send(Err(Error::new(Code::SlowReader, "too slow"))).await.unwrap();
        rig.sender.send(text("never")).await.unwrap();
        let written = next(&mut rig).await.unwrap();
        let (first, rest) = written.split_once("\n\n").unwrap();
        assert_eq!(first, "data: \"a\"");
        assert!(rest.starts_with("data: {\"error\":{"), "{rest}");
        assert!(rest.ends_with("}}\n\ndata: [DONE]\n\n"), "{rest}");
        assert!(rig.was_cancelled.load(Ordering::Acquire));
        assert_eq!(next(&mut rig).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_comments_at_a_fixed_pace() {
        let mut rig = rig();
        let start = tokio::time::Instant::now();
        for times in 1..=3 {
            assert_eq!(next(&mut rig).await.unwrap(), ": keep-alive\n\n");
            assert_eq!(start.elapsed().as_secs(), 15 * times);
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        rig.sender.send(text("a")).await.unwrap();
        assert_eq!(next(&mut rig).await.unwrap(), "data: \"a\"\n\n");
        next(&mut rig).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 45 + 10 + 15);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_without_events_do_not_stop_the_stream() {
        let mut rig = rig();
        for _ in 0..2 * MAX_ANSWERS_PER_WRITE {
            let message = Message::Finish(FinishInfo::default());
            rig.sender.send(Ok(Answer { prompt_idx: 0, message })).await.unwrap();
        }
        rig.sender.send(text("a")).await.unwrap();
        assert_eq!(next(&mut rig).await.unwrap(), "data: \"a\"\n\n");
    }

    /// Counts what is done to spans.
    #[derive(Clone, Default)]
    struct Touches {
        num_entered: Arc<AtomicUsize>,
        num_cloned: Arc<AtomicUsize>,
    }

    impl Touches {
        fn counts(&self) -> (usize, usize) {
            (self.num_entered.load(Ordering::Acquire), self.num_cloned.load(Ordering::Acquire))
        }
    }

    impl Subscriber for Touches {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {}

        fn enter(&self, _: &Id) {
            self.num_entered.fetch_add(1, Ordering::AcqRel);
        }

        fn exit(&self, _: &Id) {}

        fn clone_span(&self, id: &Id) -> Id {
            self.num_cloned.fetch_add(1, Ordering::AcqRel);
            id.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_span_is_entered_for_an_error_and_not_for_a_token() {
        let touches = Touches::default();
        let _default = tracing::subscriber::set_default(touches.clone());
        let mut rig = rig();
        rig.stream.span = info_span!("request");
        for _ in 0..3 {
            rig.sender.send(text("a")).await.unwrap();
            next(&mut rig).await.unwrap();
        }
        assert_eq!(touches.counts(), (0, 0));
        rig.sender.send(Err(Error::new(Code::SlowReader, "too slow"))).await.unwrap();
        next(&mut rig).await.unwrap();
        assert_eq!(touches.counts(), (1, 0));
    }
}
