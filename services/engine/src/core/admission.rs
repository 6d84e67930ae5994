//! Which requests are refused because they would wait for too long.

use std::time::Duration;

use fused_status::{Code, Error};

use super::EngineCore;
use crate::Order;
use crate::runner::Runner;
use crate::scheduler::{Newcomer, Pace, Room, SequenceId};

/// Tokens after which a measurement counts a third of what it did.
const MEMORY_TOKENS: f64 = 16_384.0;

/// Steps after which one is forgotten: a second or so.
const STEPS_REMEMBERED: u32 = 64;

/// Waits below it say little: a step or two decide.
const LEAST_FORECAST: Duration = Duration::from_millis(250);
/// Requests after which a wrong forecast counts a third of what it did.
const FORECASTS_REMEMBERED: f64 = 32.0;

/// How fast prompts are computed, from the steps until now: a mean that forgets, in which a step weighs as much as it has
/// tokens, because small ones say nothing about what the machine can do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillRate {
    weighted_tokens_per_s: f64,
    /// Of all steps until now, at most 1.
    weight: f64,
}

impl PrefillRate {
    /// Takes in a step that has computed some of a prompt.
    pub(super) fn note(&mut self, num_tokens: usize, took: Duration) {
        let rate = num_tokens as f64 / took.as_secs_f64().max(1e-9);
        let weight = 1.0 - (-(num_tokens as f64) / MEMORY_TOKENS).exp();
        self.weighted_tokens_per_s += weight * (rate - self.weighted_tokens_per_s);
        self.weight += weight * (1.0 - self.weight);
    }

    /// Seconds that a token takes; none as long as nothing has been measured.
    pub(super) fn s_per_token(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.weight / self.weighted_tokens_per_s }
    }
}

/// How long sequences wait from one token to the next: a mean of the last steps with decodes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepRate {
    s_per_step: f64,
    num_steps: u32,
}

impl StepRate {
    /// Takes in a step in which sequences drew their next token.
    pub(super) fn note(&mut self, took: Duration) {
        self.num_steps = (self.num_steps + 1).min(STEPS_REMEMBERED);
        self.s_per_step += (took.as_secs_f64() - self.s_per_step) / f64::from(self.num_steps);
    }
}

/// How much longer requests have waited of late than was foreseen: a machine that others use too, for one, is not as fast
/// the next second as it was the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForecastRatio(f64);

impl Default for ForecastRatio {
    fn default() -> Self {
        Self(1.0)
    }
}

impl ForecastRatio {
    /// Takes in how long a request has waited, and what was foreseen without this correction.
    pub(super) fn note(&mut self, foreseen: Duration, waited: Duration) {
        if foreseen >= LEAST_FORECAST {
            let ratio = (waited.as_secs_f64() / foreseen.as_secs_f64()).clamp(0.5, 2.0);
            self.0 += (ratio - self.0) / FORECASTS_REMEMBERED;
        }
    }

    fn correct(self, foreseen: Duration) -> Duration {
        Duration::try_from_secs_f64(foreseen.as_secs_f64() * self.0).unwrap_or(Duration::MAX)
    }
}

impl<R: Runner> EngineCore<R> {
    /// Refuses a request that would wait for longer than it may, whatever its own length: one whose prompt alone takes longer
    /// is not served sooner by another try, and neither is one that waits for its own request's other prompts.
    pub(super) fn check_wait(&mut self, number: u64) -> Result<(), Error> {
        let (Some(max_wait), Some(request)) = (self.max_wait, self.requests.get(&number)) else {
            return Ok(());
        };
        let Some(id) = request.ids().next().filter(|id| self.scheduler.slot(*id).is_none()) else {
            return Ok(());
        };
        let num_tokens = request.prompt_len();
        let num_uncached = self.scheduler.num_tokens_to_prefill_of(id);
        let newcomer = Newcomer { id: Some(id), num_tokens, num_uncached };
        let group = request.request.group_id.as_deref();
        let is_own = |id: SequenceId| {
            let other = || self.requests.get(&id.request).and_then(|other| other.request.group_id.as_deref());
            id.request == number || group.is_some_and(|group| other() == Some(group))
        };
        let foreseen = self.scheduler.wait(newcomer, self.pace(), self.room(), is_own);
        if let Some(request) = self.requests.get_mut(&number) {
            request.foreseen_wait = Some(foreseen);
        }
        check(self.forecast_ratio.correct(foreseen), Some(max_wait))
    }

    /// How long a request that comes now would wait if it had the shortest of prompts: where priorities decide about that, it
    /// is not known before its own is.
    pub(super) fn least_wait(&self) -> Duration {
        let is_free =
            self.scheduler.num_waiting() == 0 && self.scheduler.num_running() < self.room().num_sequences;
        if self.max_wait.is_none() || is_free || self.order != Order::Fcfs {
            return Duration::ZERO;
        }
        let newcomer = Newcomer { id: None, num_tokens: 1, num_uncached: 0 };
        self.forecast_ratio.correct(self.scheduler.wait(newcomer, self.pace(), self.room(), |_| false))
    }

    fn pace(&self) -> Pace {
        Pace { s_per_step: self.step_rate.s_per_step, s_per_prefill_token: self.prefill_rate.s_per_token() }
    }

    fn room(&self) -> Room {
        let token_bytes = self.kv.layout().token_bytes().max(1);
        let stats = self.kv.stats();
        Room {
            num_sequences: self.kv.size().num_sequences,
            free_tokens: stats.total_bytes.saturating_sub(stats.mapped_bytes) / token_bytes,
            used_tokens: stats.mapped_bytes / token_bytes,
        }
    }
}

/// Refuses where the wait is over `target`: the request would not be answered in time, and those before it are not helped
/// by its waiting.
pub(super) fn check(wait: Duration, target: Option<Duration>) -> Result<(), Error> {
    match target {
        Some(target) if wait > target => {
            let message = format!(
                "the request would wait for about {:.0} s, more than target_time_to_first_token_s, which is {}; try again \
                 later",
                wait.as_secs_f64().ceil(),
                target.as_secs_f64()
            );
            Err(Error::new(Code::QueueFull, message).with_retry_after(wait - target))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_steps_say_how_fast_the_machine_is() {
        let mut rate = PrefillRate::default();
        assert_eq!(rate.s_per_token(), 0.0, "nothing is known as yet");
        rate.note(2, Duration::from_millis(4));
        rate.note(512, Duration::from_millis(50));
        let time = 10_240.0 * rate.s_per_token();
        assert!(
            (0.99..1.1).contains(&time),
            "the first step, a small one, counts no more than another: {time}"
        );
        for _ in 0..100 {
            rate.note(512, Duration::from_millis(50));
            rate.note(2, Duration::from_millis(4));
        }
        let time = 10_240.0 * rate.s_per_token();
        assert!((0.99..1.1).contains(&time), "{time}");
        for _ in 0..400 {
            rate.note(512, Duration::from_millis(100));
        }
        let time = 10_240.0 * rate.s_per_token();
        assert!((1.9..2.01).contains(&time), "{time}");
    }

    #[test]
    fn forecasts_that_were_too_short_are_corrected() {
        let mut ratio = ForecastRatio::default();
        let second = Duration::from_secs(1);
        ratio.note(Duration::from_millis(1), second);
        assert_eq!(ratio.correct(second), second, "too short to say anything");
        (0..300).for_each(|_| ratio.note(2 * second, 3 * second));
        let corrected = ratio.correct(10 * second).as_secs_f64();
        assert!((14.9..15.1).contains(&corrected), "{corrected}");
        (0..300).for_each(|_| ratio.note(second, 1000 * second));
        assert!(ratio.correct(second) <= 2 * second, "in bounds");
        assert_eq!(ratio.correct(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn who_would_wait_too_long_is_told_when_to_come_back() {
        let second = Duration::from_secs(1);
        assert!(check(second, None).is_ok() && check(second, Some(second)).is_ok());
        let error = check(3 * second, Some(second)).unwrap_err();
        assert_eq!((error.code(), error.retry_after_s()), (Code::QueueFull, Some(2)));
        assert!(error.message().contains("for about 3 s"), "{}", error.message());
    }
}
