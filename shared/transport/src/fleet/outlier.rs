//! Outlier ejection: a replica that looks healthy and fails requests gets none for a while. Pure: time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

/// So many requests in a row that could not be served eject a replica.
const MAX_FAILURES: u32 = 5;
/// How long the first ejection lasts; each further one twice as long as the last.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest ejection is the first, doubled so often: 32 s.
const MAX_DOUBLINGS: u32 = 5;

/// How a replica has done of late.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlier {
    num_failures: u32,
    /// Since the last request that succeeded.
    num_ejections: u32,
    ejected_until: Option<Instant>,
}

impl Outlier {
    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A request could not be served, and another one may.
    pub(super) fn failed(&mut self, now: Instant) {
        self.num_failures += 1;
        // Once ejected, it is on probation: its first failure ejects it again.
        if self.num_failures >= MAX_FAILURES || self.num_ejections > 0 {
            self.eject(now);
        }
    }

    /// The connection was lost: nobody else should be sent there for the moment.
    pub(super) fn lost(&mut self, now: Instant) {
        self.eject(now);
    }

    fn eject(&mut self, now: Instant) {
        // Requests that were on their way together are one failure.
        if self.is_ejected(now) {
            return;
        }
        let ejection = FIRST_EJECTION * 2_u32.pow(self.num_ejections.min(MAX_DOUBLINGS));
        self.num_ejections = self.num_ejections.saturating_add(1);
        self.num_failures = 0;
        self.ejected_until = now.checked_add(ejection);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_failures_are_forgiven_and_rows_of_them_are_not() {
        let (mut outlier, now) = (Outlier::default(), Instant::now());
        for _ in 0..100 {
            outlier.failed(now);
            outlier.succeeded();
        }
        assert!(!outlier.is_ejected(now));
        (0..MAX_FAILURES).for_each(|_| outlier.failed(now));
        assert!(outlier.is_ejected(now));
        let later = now + FIRST_EJECTION;
        assert!(!outlier.is_ejected(later));
        outlier.failed(later);
        assert!(outlier.is_ejected(later + FIRST_EJECTION), "twice as long, at the first failure");
        assert!(!outlier.is_ejected(later + 2 * FIRST_EJECTION));
    }

    #[test]
    fn many_lost_at_once_are_one_ejection() {
        let (mut outlier, now) = (Outlier::default(), Instant::now());
        (0..1000).for_each(|_| outlier.lost(now));
        assert!(outlier.is_ejected(now));
        assert!(!outlier.is_ejected(now + FIRST_EJECTION));
    }

    proptest! {
        #[test]
        fn whatever_happens_a_replica_comes_back(steps in prop::collection::vec((0..3_u8, 0..5000_u64), 0..200)) {
            let (mut outlier, mut now) = (Outlier::default(), Instant::now());
            for (step, ms) in steps {
                now += Duration::from_millis(ms);
                match step {
                    0 => outlier.failed(now),
                    1 => outlier.lost(now),
                    _ => outlier.succeeded(),
                }
                prop_assert!(step != 2 || !outlier.is_ejected(now));
                prop_assert!(!outlier.is_ejected(now + FIRST_EJECTION * 2_u32.pow(MAX_DOUBLINGS)));
            }
        }
    }
}
