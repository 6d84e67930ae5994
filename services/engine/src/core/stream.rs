use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use fused_status::Error;
use fused_vocabulary::TokenId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::door::Bell;
use crate::sampler::{SampledToken, TokenLogprobs};

/// What a request's stream carries, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// Once, before the first token. `num_cached` of the tokens were computed by other requests.
    Prompt { num_tokens: usize, num_cached: usize, logprobs: Option<PromptLogprobs> },
    /// A drawn token of one sequence.
    Token { sequence_idx: u32, token: SampledToken },
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
    /// Apart from the events, because it must get through when their buffer is full.
    failure: Arc<OnceLock<Error>>,
}

/// The client's end. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    // Dropped first: the core must see that it is closed when the bell rings.
    events: mpsc::Receiver<Event>,
    failure: Arc<OnceLock<Error>>,
    _cancel: RingOnDrop,
}

#[derive(Debug)]
struct RingOnDrop(Bell);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// A stream that buffers at most `buffer` events.
pub(super) fn stream(buffer: usize, bell: Bell) -> (EventSender, EventReceiver) {
    let (sender, events) = mpsc::channel(buffer);
    let failure = Arc::new(OnceLock::new());
    let receiver = EventReceiver { events, failure: Arc::clone(&failure), _cancel: RingOnDrop(bell) };
    (EventSender { events: sender, failure }, receiver)
}

impl EventSender {
    pub(super) fn send(&self, event: Event) -> Result<(), NotSent> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => NotSent::Full,
            TrySendError::Closed(_) => NotSent::Gone,
        })
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
        self.events.poll_recv_many(cx, events, limit)
    }

    /// The next event; `None` when the stream has ended.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Why the stream has ended before its sequences had.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().cloned()
    }
}
