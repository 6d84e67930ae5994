use std::time::{Duration, Instant};

/// What one tenant may take; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) requests_per_minute: Option<u32>,
    /// Prompt and output tokens together.
    pub(super) tokens_per_minute: Option<u32>,
    pub(super) max_requests_in_flight: Option<u32>,
}

/// What was taken of so much a minute, draining evenly: a leaky bucket. Unlike that of a library it takes back what was
/// taken too much, and holds a debt where it was too little: a request's tokens are known when it has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// Takes `amount`, more than a whole minute's as one minute's.
    ///
    /// # Errors
    /// How long it takes until there is room for it.
    pub(super) fn take(&mut self, amount: u64, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let amount = to_f64(amount).min(f64::from(per_minute));
        let excess = self.level(per_minute, now) + amount - f64::from(per_minute);
        if excess > EPSILON {
            return Err(time_of(excess, per_minute));
        }
        self.level += amount;
        Ok(())
    }

    /// Corrects what was taken by what it turned out to be.
    pub(super) fn correct(&mut self, taken: u64, actual: u64, per_minute: u32, now: Instant) {
        let taken = to_f64(taken).min(f64::from(per_minute));
        self.level = (self.level(per_minute, now) - taken + to_f64(actual)).max(0.0);
    }

    /// How much there is still room for, and how long until all of it is free again.
    pub(super) fn room(&mut self, per_minute: u32, now: Instant) -> (u32, Duration) {
        let level = self.level(per_minute, now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the limit"
        )]
        let room = (f64::from(per_minute) - level + EPSILON).max(0.0) as u32;
        (room, time_of(level, per_minute))
    }

    fn level(&mut self, per_minute: u32, now: Instant) -> f64 {
        let drained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(per_minute) / 60.0;
        self.level = (self.level - drained).max(0.0);
        self.at = self.at.max(now);
        self.level
    }
}

/// What rounding may make of a whole number.
const EPSILON: f64 = 1e-6;

#[expect(clippy::cast_precision_loss, reason = "tokens of a request are far fewer than 2^52")]
fn to_f64(amount: u64) -> f64 {
    amount as f64
}

fn time_of(amount: f64, per_minute: u32) -> Duration {
    Duration::try_from_secs_f64(amount * 60.0 / f64::from(per_minute)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_minute_s_worth_at_once_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        for _ in 0..60 {
            bucket.take(1, 60, start).unwrap();
        }
        let wait = bucket.take(1, 60, start).unwrap_err();
        assert_eq!(wait.as_millis(), 1000);
        assert!(bucket.take(1, 60, start + wait / 2).is_err());
        bucket.take(1, 60, start + wait).unwrap();
        assert_eq!(bucket.room(60, start + wait).0, 0);
        assert_eq!(bucket.room(60, start + 2 * wait).0, 1);
    }

    #[test]
    fn what_was_taken_too_much_comes_back_and_too_little_is_a_debt() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        bucket.take(90, 100, start).unwrap();
        assert!(bucket.take(20, 100, start).is_err());
        bucket.correct(90, 10, 100, start);
        bucket.take(20, 100, start).unwrap();
        bucket.correct(20, 190, 100, start);
        // 200 of 100 a minute: room for 20 is in 72 s.
        assert_eq!(bucket.take(20, 100, start).unwrap_err().as_millis(), 72_000);
        // What is over a minute's whole limit is taken as that, or it never would be.
        let much_later = start + Duration::from_secs(120);
        bucket.take(1000, 100, much_later).unwrap();
    }

    proptest! {
        /// Over any time no more than a minute's worth and what has drained meanwhile is let in, and whoever waits as long
        /// as it is told gets in.
        #[test]
        fn never_more_than_the_limit_and_the_wait_is_enough(
            per_minute in 1_u32..1000,
            steps in prop::collection::vec((0_u64..2000, 1_u64..50), 1..200),
        ) {
            let start = Instant::now();
            let (mut bucket, mut now, mut taken) = (Bucket::new(start), start, 0.0);
            for (wait_ms, amount) in steps {
                now += Duration::from_millis(wait_ms);
                match bucket.take(amount, per_minute, now) {
                    Ok(()) => taken += to_f64(amount.min(u64::from(per_minute))),
                    Err(wait) => {
                        let mut later = bucket;
                        let waited = now + wait + Duration::from_micros(1);
                        prop_assert!(later.take(amount, per_minute, waited).is_ok());
                    }
                }
                let drained = now.duration_since(start).as_secs_f64() * f64::from(per_minute) / 60.0;
                prop_assert!(taken <= f64::from(per_minute) + drained + 0.001);
            }
        }
    }
}
