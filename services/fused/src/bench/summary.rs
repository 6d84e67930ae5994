use fused_engine::simulation::StepOutcome;
use serde::Serialize;

use super::run::{Request, Run};

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    pub(super) name: String,
    pub(super) num_requests: usize,
    /// Refused at the door, or ended with an error.
    pub(super) num_failed: usize,
    /// From the start to the last token.
    pub(super) duration_s: f64,
    pub(super) requests_per_s: f64,
    pub(super) output_tokens_per_s: f64,
    /// Prompt tokens included.
    pub(super) tokens_per_s: f64,
    /// Arrival to first batch.
    pub(super) scheduling_delay: Latencies,
    /// Arrival to first token (TTFT).
    pub(super) time_to_first_token: Latencies,
    /// Between any two tokens of a request (ITL, also TBT).
    pub(super) inter_token_latency: Latencies,
    /// The mean of a request's (TPOT).
    pub(super) time_per_output_token: Latencies,
    /// Arrival to last token.
    pub(super) end_to_end: Latencies,
    /// The same for each output token.
    pub(super) end_to_end_per_token: Latencies,
    pub(super) num_preemptions: u64,
    /// Share of prompt tokens that another request had computed already.
    pub(super) cached_share: f64,
    /// None of a server, which does not say.
    pub(super) engine: Option<Engine>,
}

/// What only the engine knows.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Engine {
    pub(super) num_steps: usize,
    pub(super) step_time: Latencies,
    /// Tokens of a step.
    pub(super) mean_tokens: f64,
    pub(super) mean_decodes: f64,
    pub(super) mean_running: f64,
    pub(super) max_running: usize,
    pub(super) max_waiting: usize,
    /// Of the mapped bytes of running sequences, those that hold no token: all steps together, weighted by their time.
    pub(super) waste_mean: f64,
    /// Over steps in which at least a twentieth of the pool was mapped, since one short sequence alone wastes most of a
    /// page; none where there were none.
    pub(super) waste_max: Option<f64>,
    pub(super) mapped_share_mean: f64,
    pub(super) mapped_share_max: f64,
    pub(super) driver_calls_per_step: f64,
    /// The same in the second half of the steps, when memory has been mapped once.
    pub(super) driver_calls_per_step_late: f64,
    /// Seconds in which steps waited for the driver, in all.
    pub(super) blocked_s: f64,
    pub(super) blocked_max_s: f64,
    pub(super) num_blocked_steps: usize,
}

/// Latencies in seconds, sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    sorted_s: Vec<f32>,
    mean_s: f64,
}

/// What is said of latencies in JSON.
#[derive(Serialize)]
struct Quantiles {
    num: usize,
    mean_s: f64,
    p50_s: f64,
    p90_s: f64,
    p99_s: f64,
    max_s: f64,
}

impl Summary {
    pub(super) fn new(run: &Run) -> Self {
        let duration_s = run.duration_s();
        let per_s = |num: usize| if duration_s > 0.0 { num as f64 / duration_s } else { 0.0 };
        let of = |latency: fn(&Request) -> Option<f64>| {
            Latencies::new(run.requests.iter().filter_map(latency).map(|s| s as f32).collect())
        };
        let gaps_us = run.requests.iter().flat_map(|request| &request.inter_token_us);
        let sum = |num: fn(&Request) -> usize| run.requests.iter().map(num).sum::<usize>();
        let num_prompt = sum(|request| if request.first_token_s.is_some() { request.num_prompt } else { 0 });
        let num_output = sum(|request| request.num_output);
        let num_failed = run.requests.iter().filter(|request| request.error.is_some()).count();
        Self {
            name: run.name.clone(),
            num_requests: run.requests.len(),
            num_failed,
            duration_s,
            requests_per_s: per_s(run.requests.len() - num_failed),
            output_tokens_per_s: per_s(num_output),
            tokens_per_s: per_s(num_prompt + num_output),
            scheduling_delay: of(Request::scheduling_delay_s),
            time_to_first_token: of(Request::time_to_first_token_s),
            inter_token_latency: Latencies::new(gaps_us.map(|us| *us as f32 * 1e-6).collect()),
            time_per_output_token: of(Request::time_per_output_token_s),
            end_to_end: of(Request::end_to_end_s),
            end_to_end_per_token: of(|request| Some(request.end_to_end_s()? / request.num_output as f64)),
            num_preemptions: run.requests.iter().map(|request| u64::from(request.num_preemptions)).sum(),
            cached_share: sum(|request| request.num_cached) as f64 / num_prompt.max(1) as f64,
            engine: (!run.steps.is_empty()).then(|| Engine::new(&run.steps)),
        }
    }
}

impl Engine {
    fn new(steps: &[StepOutcome]) -> Self {
        let num = steps.len().max(1) as f64;
        let sum = |of: fn(&StepOutcome) -> usize| steps.iter().map(of).sum::<usize>();
        let mean = |of: fn(&StepOutcome) -> usize| sum(of) as f64 / num;
        let max = |of: fn(&StepOutcome) -> usize| steps.iter().map(of).max().unwrap_or(0);
        let time_s: f64 = steps.iter().map(|step| step.took.as_secs_f64()).sum();
        let over_time = |of: fn(&StepOutcome) -> f64| {
            steps.iter().map(|step| of(step) * step.took.as_secs_f64()).sum::<f64>() / time_s.max(1e-9)
        };
        let mapped_share =
            |step: &StepOutcome| step.kv.mapped_bytes as f64 / step.kv.total_bytes.max(1) as f64;
        let full = steps.iter().filter(|step| mapped_share(step) >= 0.05);
        let late = &steps[steps.len() / 2..];
        let late_calls: usize = late.iter().map(|step| step.num_driver_calls).sum();
        let mapped = over_time(|step| step.kv.mapped_bytes as f64);
        let unused = over_time(|step| step.kv.unused_bytes as f64);
        let blocked_s = |step: &StepOutcome| step.blocked.as_secs_f64();
        Self {
            num_steps: steps.len(),
            step_time: Latencies::new(steps.iter().map(|step| step.took.as_secs_f32()).collect()),
            mean_tokens: mean(|step| step.num_prefill + step.num_decode),
            mean_decodes: mean(|step| step.num_decode),
            mean_running: mean(|step| step.num_running),
            max_running: max(|step| step.num_running),
            max_waiting: max(|step| step.num_waiting),
            waste_mean: if mapped > 0.0 { unused / mapped } else { 0.0 },
            waste_max: full.map(StepOutcome::waste).reduce(f64::max),
            mapped_share_mean: over_time(|step| {
                step.kv.mapped_bytes as f64 / step.kv.total_bytes.max(1) as f64
            }),
            mapped_share_max: steps.iter().map(mapped_share).fold(0.0, f64::max),
            driver_calls_per_step: mean(|step| step.num_driver_calls),
            driver_calls_per_step_late: late_calls as f64 / late.len().max(1) as f64,
            blocked_s: steps.iter().map(blocked_s).sum(),
            blocked_max_s: steps.iter().map(blocked_s).fold(0.0, f64::max),
            num_blocked_steps: steps.iter().filter(|step| !step.blocked.is_zero()).count(),
        }
    }
}

impl Latencies {
    fn new(mut seconds: Vec<f32>) -> Self {
        seconds.sort_unstable_by(f32::total_cmp);
        let sum_s: f64 = seconds.iter().map(|s| f64::from(*s)).sum();
        Self { mean_s: sum_s / seconds.len().max(1) as f64, sorted_s: seconds }
    }

    /// The smallest that so large a share is not above; none of none.
    pub(super) fn quantile_s(&self, share: f64) -> Option<f64> {
        let rank = (share * self.sorted_s.len() as f64 - 1e-9).ceil().max(1.0) as usize;
        self.sorted_s.get(rank - 1).map(|s| f64::from(*s))
    }

    pub(super) fn mean_s(&self) -> Option<f64> {
        (!self.sorted_s.is_empty()).then_some(self.mean_s)
    }
}

impl Serialize for Latencies {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let quantile_s = |share| self.quantile_s(share);
        let quantiles = (|| {
            Some(Quantiles {
                num: self.sorted_s.len(),
                mean_s: self.mean_s()?,
                p50_s: quantile_s(0.5)?,
                p90_s: quantile_s(0.9)?,
                p99_s: quantile_s(0.99)?,
                max_s: quantile_s(1.0)?,
            })
        })();
        quantiles.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let latencies = Latencies::new((1..=100).rev().map(|s| s as f32).collect());
        let quantiles =
            [0.001, 0.01, 0.5, 0.901, 0.99, 1.0].map(|share| latencies.quantile_s(share).unwrap());
        assert_eq!(quantiles, [1.0, 1.0, 50.0, 91.0, 99.0, 100.0]);
        assert_eq!(latencies.mean_s(), Some(50.5));
        assert_eq!(Latencies::default().quantile_s(0.5), None);
        assert_eq!(serde_json::to_value(Latencies::default()).unwrap(), serde_json::Value::Null);
    }

    #[test]
    fn figures_are_those_of_the_requests() {
        let request = |arrived_s, first_s, gaps: &[u32]| Request {
            arrived_s,
            num_prompt: 10,
            num_output: gaps.len() + 1,
            num_cached: 4,
            first_scheduled_s: Some(arrived_s + 0.5),
            first_token_s: Some(first_s),
            ended_s: Some(first_s + gaps.iter().sum::<u32>() as f64 * 1e-6),
            inter_token_us: gaps.to_vec(),
            ..Request::default()
        };
        let refused = Request { num_prompt: 99, error: Some("queue_full".to_owned()), ..Request::default() };
        let run = Run {
            name: "one".to_owned(),
            requests: vec![
                request(0.0, 1.0, &[500_000, 1_500_000]),
                request(1.0, 3.0, &[1_000_000]),
                refused,
            ],
            steps: Vec::new(),
        };
        let summary = Summary::new(&run);
        assert_eq!((summary.num_requests, summary.num_failed, summary.duration_s), (3, 1, 4.0));
        assert_eq!(
            (summary.output_tokens_per_s, summary.tokens_per_s, summary.requests_per_s),
            (1.25, 6.25, 0.5)
        );
        assert_eq!(summary.cached_share, 0.4);
        assert_eq!(summary.time_to_first_token.quantile_s(1.0), Some(2.0));
        assert_eq!(summary.inter_token_latency.quantile_s(0.5), Some(1.0));
        assert_eq!(summary.time_per_output_token.mean_s(), Some(1.0));
        assert_eq!(summary.end_to_end_per_token.quantile_s(1.0), Some(1.5));
        assert!(summary.engine.is_none());
    }
}
