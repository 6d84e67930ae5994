//! Notices that the core's thread hangs: in the device, in the driver, in the mapper, wherever.
//!
//! It runs beside the core and trusts nothing but what that has last said of itself ([`Pulse`]). A core with work that gets
//! nothing done for the time that is set, or for many times what its step should take, is given up: everybody is told, by
//! way of [`Failure`], without the core.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::door::Command;
use super::failure::Failure;
use super::pulse::{Beat, Doing, Pulse};
use crate::events;

/// How many times as long as expected a step may take.
const PATIENCE: u32 = 10;
/// How often it looks, in the time that is set.
const LOOKS: u32 = 10;
const MAX_INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// What the watchdog has seen. Time is what it is told has passed.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    /// The last progress, and whether the core slept since although it had been called.
    seen: (u64, bool),
    /// How long it has seen no other.
    waited: Duration,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self { limit, seen: (0, false), waited: Duration::ZERO }
    }

    /// Looks, some time after it looked last. Says why, if the core is to be given up.
    fn look(&mut self, beat: Beat, has_commands: bool, passed: Duration) -> Option<String> {
        let is_called = beat.doing == Doing::Resting && has_commands;
        let seen = (beat.count, is_called);
        self.waited = if seen == self.seen { self.waited.saturating_add(passed) } else { Duration::ZERO };
        self.seen = seen;
        let patience = match beat.doing {
            Doing::Resting if is_called => self.limit,
            Doing::Resting => self.limit.saturating_add(beat.expected),
            _ => self.limit.max(beat.expected.saturating_mul(PATIENCE)),
        };
        (self.waited > patience).then(|| {
            let seconds = self.waited.as_secs_f64();
            format!("the core has made no progress for {seconds:.1} s: it {}", beat.doing)
        })
    }
}

/// Watches a core until it is lost. `commands`: what has been sent to it and not been taken.
pub(super) async fn watch(
    limit: Duration,
    pulse: Arc<Pulse>,
    commands: mpsc::Sender<Command>,
    failure: Failure,
) {
    let every = (limit / LOOKS).clamp(MIN_INTERVAL, MAX_INTERVAL);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::new(limit);
    let mut last = Instant::now();
    while failure.reason().is_none() {
        ticks.tick().await;
        // A process that was stopped, or a machine that slept, has not been hanging all that time.
        let passed = last.elapsed().min(2 * every);
        last = Instant::now();
        let has_commands = commands.capacity() < commands.max_capacity();
        if let Some(reason) = watch.look(pulse.beat(), has_commands, passed)
            && failure.tell(reason.clone())
        {
            events::failed(&reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    /// How many seconds of the same the watchdog bears; `None` where it bears an hour.
    fn borne(watch: &mut Watch, beat: Beat, has_commands: bool) -> Option<usize> {
        (0..3600).find(|_| watch.look(beat, has_commands, SECOND).is_some())
    }

    fn beat(count: u64, doing: Doing, expected: Duration) -> Beat {
        Beat { count, doing, expected }
    }

    #[test]
    fn a_core_that_rests_may_do_so_and_must_wake_up_when_it_is_called() {
        let mut watch = Watch::new(LIMIT);
        let resting = beat(7, Doing::Resting, Duration::MAX);
        assert_eq!(borne(&mut watch, resting, false), None);
        assert_eq!(borne(&mut watch, resting, true), Some(31), "counted from the call, not from the rest");
        // A deadline for which nobody is woken is missed.
        let timed = beat(8, Doing::Resting, 100 * SECOND);
        assert_eq!(borne(&mut watch, timed, false), Some(131));
    }

    #[test]
    fn a_step_may_take_what_the_setting_allows_or_many_times_what_it_should() {
        let waiting = Doing::Waiting { num_tokens: 512 };
        let borne_of = |expected| borne(&mut Watch::new(LIMIT), beat(1, waiting, expected), false);
        assert_eq!(borne_of(Duration::ZERO), Some(31));
        assert_eq!(borne_of(2 * SECOND), Some(31));
        assert_eq!(borne_of(100 * SECOND), Some(1001));
        assert_eq!(borne_of(Duration::MAX), None);
    }

    #[test]
    fn every_kind_of_work_is_watched_and_named() {
        for (doing, word) in [
            (Doing::Planning, "mapped"),
            (Doing::Copying, "copies"),
            (Doing::Launching { num_tokens: 5 }, "5 tokens"),
            (Doing::Waiting { num_tokens: 6 }, "6 tokens"),
        ] {
            let mut watch = Watch::new(LIMIT);
            let reasons = (0..40).filter_map(|_| watch.look(beat(3, doing, Duration::ZERO), true, SECOND));
            let reason = reasons.last().unwrap();
            assert!(reason.contains(word) && reason.contains("no progress for"), "{reason}");
        }
    }

    #[test]
    fn progress_however_slow_is_progress() {
        let mut watch = Watch::new(LIMIT);
        for second in 0..3600 {
            let beat = beat(second / 30, Doing::Waiting { num_tokens: 1 }, Duration::ZERO);
            assert_eq!(watch.look(beat, true, SECOND), None);
        }
    }
}
