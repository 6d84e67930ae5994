//! One log line every few seconds in which there was work: what the engine does, without a request's text.

use std::time::{Duration, Instant};

use fused_lifecycle::Lifecycle;

use crate::core::{Door, Totals};
use crate::events;

const INTERVAL: Duration = Duration::from_secs(10);

/// Logs the throughput until the process stops.
pub(crate) fn start_log(door: &Door, lifecycle: &Lifecycle) {
    let stopped = lifecycle.stopped();
    let door = door.clone();
    let log = async move {
        let mut interval = tokio::time::interval(INTERVAL);
        let (mut before, mut since) = (Totals::default(), Instant::now());
        loop {
            interval.tick().await;
            let load = door.load();
            if load.totals != before {
                events::throughput(since.elapsed(), &before, &load);
            }
            (before, since) = (load.totals, Instant::now());
        }
    };
    lifecycle.spawn("throughput log", async move {
        tokio::select! {
            never = log => never,
            () = stopped => {}
        }
    });
}
