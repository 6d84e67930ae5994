use std::time::Duration;

use fused_engine::simulation::{Outcome, RequestOutcome, StepOutcome};
use serde::Serialize;

/// What became of a workload under one policy, or on a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// The policy's name, or `server`.
    pub(super) name: String,
    /// In order of arrival.
    pub(super) requests: Vec<Request>,
    /// Empty for a server, which does not say.
    pub(super) steps: Vec<StepOutcome>,
}

/// What became of one request. Times are in seconds from the start.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Request {
    pub(super) arrived_s: f64,
    pub(super) num_prompt: usize,
    pub(super) num_output: usize,
    pub(super) num_cached: usize,
    /// None for a server, which does not say.
    pub(super) first_scheduled_s: Option<f64>,
    pub(super) first_token_s: Option<f64>,
    pub(super) ended_s: Option<f64>,
    pub(super) num_preemptions: u32,
    pub(super) error: Option<String>,
    /// One less than there are tokens.
    #[serde(skip)]
    pub(super) inter_token_us: Vec<u32>,
}

impl Run {
    pub(super) fn of_simulation(name: &str, outcome: Outcome) -> Self {
        Self {
            name: name.to_owned(),
            requests: outcome.requests.into_iter().map(Request::from).collect(),
            steps: outcome.steps,
        }
    }

    /// From the start to the last token of anybody.
    pub(super) fn duration_s(&self) -> f64 {
        self.requests.iter().filter_map(|request| request.ended_s).fold(0.0, f64::max)
    }
}

impl From<RequestOutcome> for Request {
    fn from(outcome: RequestOutcome) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Self {
            arrived_s: outcome.arrived.as_secs_f64(),
            num_prompt: outcome.num_prompt,
            num_output: outcome.num_output(),
            num_cached: outcome.num_cached,
            first_scheduled_s: seconds(outcome.first_scheduled),
            first_token_s: seconds(outcome.first_token),
            ended_s: seconds(outcome.ended),
            num_preemptions: outcome.num_preemptions,
            error: outcome.error.map(|error| format!("{}: {}", error.code().name(), error.message())),
            inter_token_us: outcome.inter_token_us,
        }
    }
}

impl Request {
    /// From arrival to its first batch.
    pub(super) fn scheduling_delay_s(&self) -> Option<f64> {
        Some(self.first_scheduled_s? - self.arrived_s)
    }

    /// From arrival to its first token.
    pub(super) fn time_to_first_token_s(&self) -> Option<f64> {
        Some(self.first_token_s? - self.arrived_s)
    }

    /// From arrival to its last token.
    pub(super) fn end_to_end_s(&self) -> Option<f64> {
        Some(self.ended_s? - self.arrived_s)
    }

    /// The mean between its tokens; none where it has but one.
    pub(super) fn time_per_output_token_s(&self) -> Option<f64> {
        let num_gaps = self.inter_token_us.len();
        (num_gaps > 0).then_some((self.ended_s? - self.first_token_s?) / num_gaps as f64)
    }
}
