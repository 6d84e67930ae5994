use fused_engine::simulation::StepOutcome;
use serde::Serialize;

use crate::bench::summary::{Latencies, Summary};

/// Points of a time series, at most.
const NUM_SPANS: usize = 300;
/// Shares of a distribution's points, in hundredths; its tail is finer.
const TAIL: [f64; 6] = [0.991, 0.993, 0.995, 0.997, 0.999, 1.0];

/// Latencies as points `(share, seconds)`: so large a share takes no longer.
#[derive(Serialize)]
pub(super) struct Distributions {
    pub(super) scheduling_delay: Vec<(f64, f64)>,
    pub(super) time_to_first_token: Vec<(f64, f64)>,
    pub(super) inter_token_latency: Vec<(f64, f64)>,
    pub(super) end_to_end: Vec<(f64, f64)>,
}

/// Steps over time: means of all that began in equal spans, and nothing of spans in which none did.
#[derive(Default, Serialize)]
pub(super) struct Series {
    pub(super) at_s: Vec<f64>,
    pub(super) num_running: Vec<f64>,
    pub(super) num_waiting: Vec<f64>,
    pub(super) num_prefill: Vec<f64>,
    pub(super) num_decode: Vec<f64>,
    pub(super) mapped_bytes: Vec<f64>,
    pub(super) unused_bytes: Vec<f64>,
    pub(super) parked_bytes: Vec<f64>,
    pub(super) free_bytes: Vec<f64>,
    pub(super) num_driver_calls: Vec<f64>,
    pub(super) step_s: Vec<f64>,
}

impl Distributions {
    pub(super) fn new(summary: &Summary) -> Self {
        Self {
            scheduling_delay: points(&summary.scheduling_delay),
            time_to_first_token: points(&summary.time_to_first_token),
            inter_token_latency: points(&summary.inter_token_latency),
            end_to_end: points(&summary.end_to_end),
        }
    }
}

fn points(latencies: &Latencies) -> Vec<(f64, f64)> {
    let shares = (0..100).map(|percent| f64::from(percent) / 100.0).chain(TAIL);
    shares.filter_map(|share| Some((share, latencies.quantile_s(share)?))).collect()
}

impl Series {
    pub(super) fn new(steps: &[StepOutcome]) -> Self {
        let Some(last) = steps.last() else { return Self::default() };
        let span_s = (last.started.as_secs_f64() / NUM_SPANS as f64).max(1e-9);
        let span = |step: &StepOutcome| (step.started.as_secs_f64() / span_s) as usize;
        let mut series = Self::default();
        for steps in steps.chunk_by(|one, next| span(one) == span(next)) {
            series.push(steps);
        }
        series
    }

    fn push(&mut self, steps: &[StepOutcome]) {
        let mean = |of: fn(&StepOutcome) -> f64| steps.iter().map(of).sum::<f64>() / steps.len() as f64;
        self.at_s.push(steps[0].started.as_secs_f64());
        self.num_running.push(mean(|step| step.num_running as f64));
        self.num_waiting.push(mean(|step| step.num_waiting as f64));
        self.num_prefill.push(mean(|step| step.num_prefill as f64));
        self.num_decode.push(mean(|step| step.num_decode as f64));
        self.mapped_bytes.push(mean(|step| step.kv.mapped_bytes as f64));
        self.unused_bytes.push(mean(|step| step.kv.unused_bytes as f64));
        self.parked_bytes.push(mean(|step| step.kv.parked_bytes as f64));
        self.free_bytes.push(mean(|step| step.kv.free_bytes as f64));
        self.num_driver_calls.push(mean(|step| step.num_driver_calls as f64));
        self.step_s.push(mean(|step| step.took.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_long_run_has_few_points_and_its_means() {
        let step = |ms: u64| StepOutcome {
            started: Duration::from_millis(ms),
            num_running: (ms % 2) as usize * 10,
            ..StepOutcome::default()
        };
        let steps: Vec<_> = (0..3000).map(step).collect();
        let series = Series::new(&steps);
        assert!((NUM_SPANS..=NUM_SPANS + 1).contains(&series.at_s.len()), "{}", series.at_s.len());
        assert!(series.num_running[..NUM_SPANS].iter().all(|mean| (mean - 5.0).abs() < 1.0));
        assert_eq!(Series::new(&[step(0)]).num_running, [0.0]);
    }
}
