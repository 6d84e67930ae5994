//! What the core says of its progress, for the watchdog to hear.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Tokens of context at which a token takes twice the time of one without any: of all models here some reach that
/// there, and the others later.
const DOUBLING_CONTEXT: f64 = 2048.0;
/// What a step's time and work count for after the next step.
const MEMORY: f64 = 0.98;

/// The core writes what it does, the watchdog reads it. Both hold the lock for as long as it takes to copy a few words.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Beat>);

/// What the core does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beat {
    /// How often it has got something done: landed a step, or come to rest.
    pub(super) count: u64,
    pub(super) doing: Doing,
    /// How long that takes, as far as it can be told.
    pub(super) expected: Duration,
}

/// What the core is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing, before a command comes or the expected time is over.
    #[default]
    Resting,
    /// It takes commands, schedules, maps memory.
    Planning,
    /// Keys and values are copied.
    Copying,
    /// A step is given to the device.
    Launching { num_tokens: usize },
    /// The device computes a step.
    Waiting { num_tokens: usize },
}

impl Pulse {
    /// The core is at something.
    pub(super) fn work(&self, doing: Doing, expected: Duration) {
        self.change(|beat| {
            let has_slept = beat.doing == Doing::Resting;
            Beat { count: beat.count + u64::from(has_slept), doing, expected }
        });
    }

    /// A step has come down.
    pub(super) fn land(&self) {
        self.change(|beat| Beat { count: beat.count + 1, doing: Doing::Planning, expected: Duration::ZERO });
    }

    /// There is nothing to do, for so long at most.
    pub(super) fn rest(&self, wait: Option<Duration>) {
        let expected = wait.unwrap_or(Duration::MAX);
        self.change(|beat| Beat { count: beat.count + 1, doing: Doing::Resting, expected });
    }

    pub(super) fn beat(&self) -> Beat {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(Beat) -> Beat) {
        let mut beat = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *beat = change(*beat);
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resting => f.write_str("has not woken up"),
            Self::Planning => f.write_str("plans a step, or waits for memory to be mapped"),
            Self::Copying => f.write_str("copies keys and values"),
            Self::Launching { num_tokens } => write!(f, "gives the device a step of {num_tokens} tokens"),
            Self::Waiting { num_tokens } => {
                write!(f, "waits for the device, which has a step of {num_tokens} tokens")
            }
        }
    }
}

/// How much work a sequence makes in a step, in tokens without a context: what it reads grows with what it has.
pub(super) fn work(context_len: usize, num_tokens: usize) -> f64 {
    num_tokens as f64 * (1.0 + (context_len + num_tokens) as f64 / DOUBLING_CONTEXT)
}

/// How long a step takes by its work, from the steps until now. Steps in which everybody decodes take longer for their work
/// than those with prompts in them, so that after many of them a prompt's time is told too long, and never much too short.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepTime {
    seconds: f64,
    work: f64,
}

impl StepTime {
    /// Takes in a step.
    pub(super) fn note(&mut self, work: f64, took: Duration) {
        self.seconds = MEMORY * self.seconds + took.as_secs_f64();
        self.work = MEMORY * self.work + work;
    }

    /// How long so much work takes; `None` as long as nothing has been measured.
    pub(super) fn of(&self, work: f64) -> Option<Duration> {
        let seconds = self.seconds * work / self.work;
        (self.work > 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_time_follows_from_its_size() {
        let mut times = StepTime::default();
        assert_eq!(times.of(1.0), None);
        for _ in 0..50 {
            times.note(work(0, 512), Duration::from_secs(4));
            times.note(work(100, 1), Duration::from_secs(1));
        }
        let whole_prompt = times.of(work(0, 100_000)).unwrap().as_secs_f64();
        assert!(whole_prompt > 100_000.0 / 512.0 * 4.0 * 40.0, "attention grows too: {whole_prompt}");
        let chunk = times.of(work(0, 512)).unwrap().as_secs_f64();
        assert!((4.0..6.0).contains(&chunk), "{chunk}");
        // A step that was held up once is forgotten.
        times.note(work(100, 1), Duration::from_secs(1000));
        for _ in 0..500 {
            times.note(work(0, 512), Duration::from_secs(4));
        }
        let chunk = times.of(work(0, 512)).unwrap().as_secs_f64();
        assert!((4.0..5.0).contains(&chunk), "{chunk}");
    }

    #[test]
    fn waking_up_landing_and_coming_to_rest_are_progress_and_the_rest_is_not() {
        let pulse = Pulse::default();
        let count = || pulse.beat().count;
        pulse.work(Doing::Planning, Duration::ZERO);
        assert_eq!(count(), 1, "it has woken up");
        pulse.work(Doing::Launching { num_tokens: 3 }, Duration::from_secs(1));
        pulse.work(Doing::Planning, Duration::ZERO);
        assert_eq!(count(), 1, "nothing has landed");
        pulse.land();
        pulse.rest(None);
        assert_eq!((count(), pulse.beat().expected), (3, Duration::MAX));
    }
}
