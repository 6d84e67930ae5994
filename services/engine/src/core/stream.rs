use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use fused_status::Error;
use fused_vocabulary::TokenId;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::door::Bell;
use super::failure::{Failure, engine_lost};
use crate::sampler::{SampledToken, TokenLogprobs};

/// What a request's stream carries, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// Once, before the first token. `num_cached` of the tokens were computed by other requests.
    Prompt { num_tokens: usize, num_cached: usize, logprobs: Option<PromptLogprobs> },
    /// A drawn token of one sequence. `ends`: it is an end or stop token, and the sequence's last.
    Token { sequence_idx: u32, token: SampledToken, ends: bool },
    /// Once a sequence, its last.
    Finish(Finish),
}

/// Log-probabilities of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PromptLogprobs {
    /// The first token, which nothing predicts.
    pub(crate) first: TokenId,
    /// One for each token after it.
    pub(crate) rest: Vec<TokenLogprobs>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finish {
    pub(crate) sequence_idx: u32,
    pub(crate) reason: FinishReason,
    /// Drawn tokens, the ending one included.
    pub(crate) num_tokens: usize,
    pub(crate) timings: Timings,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishReason {
    Eos(TokenId),
    StopToken(TokenId),
    /// The client had enough of this one.
    Enough,
    Length,
    Aborted,
}

/// Where a sequence's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timings {
    /// Arrival to first scheduled.
    pub(crate) queue: Duration,
    /// First scheduled to first token.
    pub(crate) prefill: Duration,
    /// First to last token.
    pub(crate) decode: Duration,
    pub(crate) num_preemptions: u32,
}

/// Why an event did not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The client does not read, and the buffer is full.
    Full,
    /// The client has gone.
    Gone,
}

/// The core's end of a request's stream. Never waits.
#[derive(Debug)]
pub(crate) struct EventSender {
    events: mpsc::Sender<Event>,
    /// A place for the end of each sequence, which must get through when the buffer is full.
    ends: Vec<mpsc::OwnedPermit<Event>>,
    /// Apart from the events, for the same reason.
    failure: Arc<OnceLock<Error>>,
}

/// The client's end. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    // Dropped first: the core must see that it is closed when the bell rings.
    events: mpsc::Receiver<Event>,
    failure: Arc<OnceLock<Error>>,
    engine: Failure,
    /// Completes when the engine is lost, of which its thread may tell nobody any more.
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _cancel: RingOnDrop,
}

#[derive(Debug)]
struct RingOnDrop {
    bell: Bell,
    number: u64,
}

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.bell.leave(self.number);
    }
}

/// What a stream is made for.
pub(super) struct StreamConfig {
    /// The request's number.
    pub(super) number: u64,
    pub(super) num_sequences: usize,
    /// Events a sequence that are buffered at most, and one for its end.
    pub(super) buffer: usize,
    pub(super) bell: Bell,
    pub(super) engine: Failure,
}

/// The two ends of a stream.
pub(super) fn stream(config: StreamConfig) -> (EventSender, EventReceiver) {
    let StreamConfig { number, num_sequences, buffer, bell, engine } = config;
    let capacity = buffer.saturating_add(1).saturating_mul(num_sequences).min(Semaphore::MAX_PERMITS);
    let (sender, events) = mpsc::channel(capacity);
    // They are there: nobody has sent anything.
    let ends = (0..num_sequences).filter_map(|_| sender.clone().try_reserve_owned().ok()).collect();
    let failure = Arc::new(OnceLock::new());
    let receiver = EventReceiver {
        events,
        failure: Arc::clone(&failure),
        lost: Box::pin(engine.told()),
        engine,
        _cancel: RingOnDrop { bell, number },
    };
    (EventSender { events: sender, ends, failure }, receiver)
}

impl EventSender {
    pub(super) fn send(&self, event: Event) -> Result<(), NotSent> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => NotSent::Full,
            TrySendError::Closed(_) => NotSent::Gone,
        })
    }

    /// Says that a sequence has ended, each of them once; behind the events that are in the buffer, be it full.
    pub(super) fn finish(&mut self, finish: Finish) {
        if let Some(place) = self.ends.pop() {
            place.send(Event::Finish(finish));
        }
    }

    /// Ends the stream with an error, after the events that are in its buffer.
    pub(super) fn fail(self, error: Error) {
        // Set once: the sender is gone then.
        let _ = self.failure.set(error);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }
}

impl EventReceiver {
    /// Takes up to `limit` events that are there, at least one; 0 when the stream has ended.
    pub(crate) fn poll_recv_many(
        &mut self,
        cx: &mut Context<'_>,
        events: &mut Vec<Event>,
        limit: usize,
    ) -> Poll<usize> {
        match self.events.poll_recv_many(cx, events, limit) {
            Poll::Pending => self.lost.as_mut().poll(cx).map(|()| 0),
            taken => taken,
        }
    }

    /// The next event; `None` when the stream has ended.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        poll_fn(|cx| match self.events.poll_recv(cx) {
            Poll::Pending => self.lost.as_mut().poll(cx).map(|()| None),
            taken => taken,
        })
        .await
    }

    /// Why the stream has ended before its sequences had.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().cloned().or_else(|| self.engine.reason().map(|_| engine_lost()))
    }
}
