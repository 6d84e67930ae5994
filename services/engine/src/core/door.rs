use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use fused_status::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::admission;
use super::failure::{Failure, engine_lost};
use super::stream::{EventReceiver, EventSender, StreamConfig, stream};
use crate::kv::KvStats;
use crate::request::{RequestId, ValidGenerateRequest, ValidPromptChunk};

/// What the core is told between two steps.
#[derive(Debug)]
pub(super) enum Command {
    Start(Box<Arrival>),
    Prompt {
        request: u64,
        chunk: ValidPromptChunk,
    },
    /// The client needs no more of one sequence.
    Finish {
        request: u64,
        sequence_idx: u32,
    },
    Abort {
        id: RequestId,
        reply: oneshot::Sender<Aborted>,
    },
}

/// A request as it comes to the core.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) request: ValidGenerateRequest,
    pub(super) events: EventSender,
    pub(super) arrived: Instant,
    /// A place in the queue; given back when the request is scheduled with its whole prompt.
    pub(super) place: OwnedSemaphorePermit,
}

/// What an abort freed; nothing where there was no such request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aborted {
    pub(crate) num_sequences: usize,
    pub(crate) kv_bytes: usize,
}

/// How busy the core is, as of its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) num_running: usize,
    pub(crate) num_waiting: usize,
    pub(crate) num_tokens_to_prefill: usize,
    /// How long a request that comes now would wait if its prompt were short.
    pub(crate) least_wait: Duration,
    pub(crate) kv: KvStats,
    pub(crate) totals: Totals,
}

/// What the core has done since it started, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) prompt: u64,
    /// Of prompts, what was computed before.
    pub(crate) cached: u64,
    pub(crate) generated: u64,
}

/// Wakes the core's thread. A ring while it is awake is not lost: it looks around once more before it sleeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Bell(Arc<Ringing>);

#[derive(Debug, Default)]
struct Ringing {
    thread: OnceLock<Thread>,
    /// Requests whose client has gone since the core looked last; each leaves once.
    left: Mutex<Vec<u64>>,
}

impl Bell {
    /// From now on it wakes the calling thread.
    pub(super) fn answer(&self) {
        // Set once: there is one core.
        let _ = self.0.thread.set(std::thread::current());
    }

    /// Before anybody answers there is no need: whoever starts looks at what is there.
    pub(super) fn ring(&self) {
        if let Some(thread) = self.0.thread.get() {
            thread.unpark();
        }
    }

    /// Says that a request's client has gone, or has heard all there was, and rings.
    pub(super) fn leave(&self, request: u64) {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.ring();
    }

    /// Who has left since the last time.
    pub(super) fn take_left(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.left.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The way to the core, for everybody else in the process.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) bell: Bell,
    /// Places in the queue of waiting requests.
    pub(super) queue: Arc<Semaphore>,
    pub(super) next_number: Arc<AtomicU64>,
    pub(super) stream_buffer: usize,
    /// A request is refused where prompts wait for longer.
    pub(super) max_wait: Option<Duration>,
    pub(super) load: watch::Receiver<Load>,
    pub(super) failure: Failure,
}

/// An admitted request: to be given its prompt and listened to.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) number: u64,
    pub(crate) events: EventReceiver,
}

impl Door {
    /// Lets a request in, as yet without a prompt.
    ///
    /// # Errors
    /// The queue is full, prompts wait too long already, or the core has ended or is lost.
    pub(crate) fn start(&self, request: ValidGenerateRequest, arrived: Instant) -> Result<Admitted> {
        self.check()?;
        // Of several prompts that belong together none waits for the others: what they wait for is known when they are.
        if request.group_id.is_none() {
            admission::check(self.load().least_wait, self.max_wait)?;
        }
        let place = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| queue_full())?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = stream(StreamConfig {
            number,
            num_sequences: request.num_sequences as usize,
            buffer: self.stream_buffer,
            bell: self.bell.clone(),
            engine: self.failure.clone(),
        });
        let arrival = Arrival { number, request, events: sender, arrived, place };
        self.commands.try_send(Command::Start(Box::new(arrival))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => queue_full(),
            mpsc::error::TrySendError::Closed(_) => engine_ended(),
        })?;
        self.bell.ring();
        Ok(Admitted { number, events })
    }

    /// Hands on a part of a request's prompt. Waits while the core is busy with what it has been told before.
    ///
    /// # Errors
    /// The core has ended.
    pub(crate) async fn prompt(&self, request: u64, chunk: ValidPromptChunk) -> Result<()> {
        self.tell(Command::Prompt { request, chunk }).await
    }

    /// Hands on a part of a request's prompt, for those who step the core themselves and cannot wait for it.
    ///
    /// # Errors
    /// The core has ended, or has not taken what it has been told before.
    pub(crate) fn try_prompt(&self, request: u64, chunk: ValidPromptChunk) -> Result<()> {
        self.commands.try_send(Command::Prompt { request, chunk }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => queue_full(),
            mpsc::error::TrySendError::Closed(_) => engine_ended(),
        })
    }

    /// Ends one sequence of a request as it is. Returns whether the core will hear of it: it is busy with what it has been
    /// told before, otherwise, and this is to be said again.
    pub(crate) fn finish_sequence(&self, request: u64, sequence_idx: u32) -> bool {
        let told = self.commands.try_send(Command::Finish { request, sequence_idx });
        self.bell.ring();
        !matches!(told, Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Whether the core is there to do anything.
    ///
    /// # Errors
    /// It is lost.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.reason().map_or(Ok(()), |_| Err(engine_lost()))
    }

    /// Whether the core is lost, and why.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Ends a request. `None` if it is neither waiting nor running.
    ///
    /// # Errors
    /// The core has ended.
    pub(crate) async fn abort(&self, id: RequestId) -> Result<Option<Aborted>> {
        let (reply, aborted) = oneshot::channel();
        self.tell(Command::Abort { id, reply }).await?;
        tokio::select! {
            biased;
            // Dropped without an answer where there is no such request, and where the core ends now.
            aborted = aborted => Ok(aborted.ok()),
            () = self.failure.told() => Err(engine_lost()),
        }
    }

    /// How busy the core is.
    pub(crate) fn load(&self) -> Load {
        *self.load.borrow()
    }

    /// Waits until the core says so of its load.
    #[cfg(test)]
    pub(crate) async fn load_becomes(&self, is_so: impl FnMut(&Load) -> bool) -> Load {
        *self.load.clone().wait_for(is_so).await.unwrap()
    }

    async fn tell(&self, command: Command) -> Result<()> {
        let room = tokio::select! {
            biased;
            room = self.commands.reserve() => room.map_err(|_| engine_ended())?,
            () = self.failure.told() => return Err(engine_lost()),
        };
        room.send(command);
        self.bell.ring();
        Ok(())
    }
}

fn queue_full() -> Error {
    Error::new(Code::QueueFull, "too many requests are waiting; try again later")
}

/// What everybody is told who talks to a core that is no more.
pub(crate) fn engine_ended() -> Error {
    Error::new(Code::Unavailable, "the engine has stopped; try again")
}
