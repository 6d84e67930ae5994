use std::time::Duration;

use fused_status::{Code, Error};

/// Tokens after which a measurement counts a third of what it did.
const MEMORY_TOKENS: f64 = 16_384.0;

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

    /// How long so many tokens take; no time as long as nothing has been measured.
    pub(super) fn time(&self, num_tokens: usize) -> Duration {
        if self.weight == 0.0 {
            return Duration::ZERO;
        }
        let tokens_per_s = self.weighted_tokens_per_s / self.weight;
        Duration::try_from_secs_f64(num_tokens as f64 / tokens_per_s).unwrap_or(Duration::MAX)
    }
}

/// Refuses where the prompts that wait already take longer than `target`, whatever the new one's length: it would not be
/// answered in time, and those before it are not helped by its waiting.
pub(super) fn check(wait: Duration, target: Option<Duration>) -> Result<(), Error> {
    match target {
        Some(target) if wait > target => {
            let message = format!(
                "the prompts that wait already take about {:.0} s, more than target_time_to_first_token_s, which is {}; \
                 try again later",
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
        assert_eq!(rate.time(1_000_000), Duration::ZERO, "nothing is known as yet");
        rate.note(2, Duration::from_millis(4));
        rate.note(512, Duration::from_millis(50));
        let time = rate.time(10_240).as_secs_f64();
        assert!(
            (0.99..1.1).contains(&time),
            "the first step, a small one, counts no more than another: {time}"
        );
        for _ in 0..100 {
            rate.note(512, Duration::from_millis(50));
            rate.note(2, Duration::from_millis(4));
        }
        let time = rate.time(10_240).as_secs_f64();
        assert!((0.99..1.1).contains(&time), "{time}");
        for _ in 0..400 {
            rate.note(512, Duration::from_millis(100));
        }
        let time = rate.time(10_240).as_secs_f64();
        assert!((1.9..2.01).contains(&time), "{time}");
    }

    #[test]
    fn who_would_wait_too_long_is_told_when_to_come_back() {
        let second = Duration::from_secs(1);
        assert!(check(second, None).is_ok() && check(second, Some(second)).is_ok());
        let error = check(3 * second, Some(second)).unwrap_err();
        assert_eq!((error.code(), error.retry_after_s()), (Code::QueueFull, Some(2)));
        assert!(error.message().contains("take about 3 s"), "{}", error.message());
    }
}
