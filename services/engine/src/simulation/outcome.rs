use std::time::Duration;

use fused_status::Error;

use crate::kv::KvStats;

/// Everything that happened.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// One for each arrival, in order of arrival.
    pub requests: Vec<RequestOutcome>,
    /// In order of time.
    pub steps: Vec<StepOutcome>,
}

/// What became of a request. Times are from the start of the simulation.
#[derive(Clone, Debug)]
pub struct RequestOutcome {
    /// When it came.
    pub arrived: Duration,
    /// Tokens of its prompt.
    pub num_prompt: usize,
    /// Tokens of its prompt that were there already, computed for another request.
    pub num_cached: usize,
    /// When it was first in a batch.
    pub first_scheduled: Option<Duration>,
    /// When its first token came.
    pub first_token: Option<Duration>,
    /// Between its tokens, in microseconds: one less than there are tokens.
    pub inter_token_us: Vec<u32>,
    /// When its last token came.
    pub ended: Option<Duration>,
    /// How often it had to give way.
    pub num_preemptions: u32,
    /// Why it got no answer, or not all of one.
    pub error: Option<Error>,
}

/// What one step was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepOutcome {
    /// When it began, from the start of the simulation.
    pub started: Duration,
    /// How long it took, driver calls included.
    pub took: Duration,
    /// Tokens computed of prompts, and of whatever was lost to preemption.
    pub num_prefill: usize,
    /// Tokens computed of running decodes, one each.
    pub num_decode: usize,
    /// Sequences that had a slot.
    pub num_running: usize,
    /// Sequences that waited for one when it ended.
    pub num_waiting: usize,
    /// Memory while it ran; its own tokens are not unused.
    pub kv: KvStats,
    /// Calls of the virtual-memory driver since the last step, the mapper's included.
    pub num_driver_calls: usize,
    /// How long it waited for them: those that had to be done before it, and what the mapper did not get done while the
    /// step before it ran.
    pub blocked: Duration,
    /// Bytes of keys and values that were copied before it.
    pub copied_bytes: usize,
}

impl Outcome {
    /// From the start to the last token of anybody.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.requests.iter().filter_map(|request| request.ended).max().unwrap_or_default()
    }
}

impl RequestOutcome {
    /// Tokens it got.
    #[must_use]
    pub fn num_output(&self) -> usize {
        self.first_token.map_or(0, |_| self.inter_token_us.len() + 1)
    }

    /// From arrival to its first batch.
    #[must_use]
    pub fn scheduling_delay(&self) -> Option<Duration> {
        Some(self.first_scheduled?.saturating_sub(self.arrived))
    }

    /// From arrival to its first token.
    #[must_use]
    pub fn time_to_first_token(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_sub(self.arrived))
    }

    /// From arrival to its last token.
    #[must_use]
    pub fn end_to_end(&self) -> Option<Duration> {
        Some(self.ended?.saturating_sub(self.arrived))
    }

    /// The mean between its tokens; none where it has but one.
    #[must_use]
    pub fn time_per_output_token(&self) -> Option<Duration> {
        let num_gaps = u32::try_from(self.inter_token_us.len()).ok().filter(|num| *num > 0)?;
        Some(self.ended?.saturating_sub(self.first_token?) / num_gaps)
    }
}

impl StepOutcome {
    /// The share of the memory that running sequences hold in which there is no token; 0 where they hold none.
    #[must_use]
    pub fn waste(&self) -> f64 {
        let KvStats { mapped_bytes, unused_bytes, .. } = self.kv;
        if mapped_bytes == 0 { 0.0 } else { unused_bytes as f64 / mapped_bytes as f64 }
    }
}
