use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fused_virtual_memory::{SimulatedMemory, VirtualMemory};
use fused_vocabulary::TokenId;

use super::clock::VirtualClock;
use super::cost::{CostModel, Part};
use super::outcome::StepOutcome;
use super::workload::Workload;
use crate::kv::{self, KvCache, KvCopy};
use crate::runner::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::sampler::SampledToken;

/// What a runner draws behind an output's last token.
pub(super) const STOP_TOKEN: TokenId = TokenId(1);

/// A runner that computes nothing and takes as long as the device would: it moves the clock.
#[derive(Debug)]
pub(super) struct CostModelRunner {
    cost: CostModel,
    clock: VirtualClock,
    driver: Driver,
    copied_bytes: usize,
    /// Tokens of the outputs, by the seed of their sampling.
    num_output: Vec<usize>,
    /// Of the step that was launched.
    outputs: Vec<SequenceOutput>,
    notes: Notes,
}

/// What the runner has seen of the step that has just run.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Mutex<LastStep>>);

#[derive(Debug, Default)]
pub(super) struct LastStep {
    pub(super) step: StepOutcome,
    /// Requests that got a token, by the seed of their sampling.
    pub(super) drew: Vec<u64>,
}

impl CostModelRunner {
    /// What the driver was called until now is no step's.
    pub(super) fn new(
        cost: CostModel,
        clock: VirtualClock,
        kv: &KvCache<SimulatedMemory>,
        workload: &Workload,
    ) -> (Self, Notes) {
        let notes = Notes::default();
        let mut driver = Driver::default();
        driver.since_last(kv);
        let num_output = workload.arrivals().iter().map(|arrival| arrival.num_output).collect();
        let runner = Self {
            cost,
            clock,
            driver,
            copied_bytes: 0,
            num_output,
            outputs: Vec::new(),
            notes: notes.clone(),
        };
        (runner, notes)
    }
}

impl Notes {
    /// What has run since the last time; none if nothing has.
    pub(super) fn take(&self) -> Option<LastStep> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (last.step.took > Duration::ZERO).then(|| std::mem::take(&mut *last))
    }
}

impl Runner for CostModelRunner {
    type Memory = SimulatedMemory;

    fn launch(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<SimulatedMemory>,
    ) -> Result<(), RunnerError> {
        // Refused where something is not mapped, or mapped for reading only, that the step writes.
        let _pinned = kv.pin(sequences.iter().map(SequenceStep::slot_use)).map_err(|error| failed(&error))?;
        let parts = sequences.iter().map(|sequence| Part {
            context_len: sequence.context_len,
            num_tokens: sequence.tokens.len(),
            is_sampled: sequence.sample.is_some(),
        });
        let copied_bytes = std::mem::take(&mut self.copied_bytes);
        let computing = self.cost.step_time(parts).saturating_add(self.cost.copy_time(copied_bytes));
        let (num_driver_calls, blocked) = self.driver.before_step(kv, computing);
        let took = computing.saturating_add(blocked);
        let started = self.clock.elapsed();
        self.clock.pass(took);

        let mut last = self.notes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = kv.stats();
        let num_tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        stats.unused_bytes = stats.unused_bytes.saturating_sub(num_tokens * kv.layout().token_bytes());
        last.step = StepOutcome {
            started,
            took,
            num_running: stats.live_slots,
            kv: stats,
            num_driver_calls,
            blocked,
            copied_bytes,
            ..StepOutcome::default()
        };
        last.drew.clear();
        let outputs = sequences.iter().map(|sequence| {
            let is_decode =
                sequence.tokens.len() == 1 && sequence.sample.is_some_and(|draw| draw.position > 0);
            let counted = if is_decode { &mut last.step.num_decode } else { &mut last.step.num_prefill };
            *counted += sequence.tokens.len();
            let sampled = sequence.sample.map(|draw| {
                last.drew.push(draw.sampling.seed);
                let seed = usize::try_from(draw.sampling.seed).unwrap_or(usize::MAX);
                let num_output = self.num_output.get(seed).map_or(u64::MAX, |num| *num as u64);
                let token = if draw.position < num_output { TokenId(0) } else { STOP_TOKEN };
                SampledToken { token, logprobs: None }
            });
            SequenceOutput { sampled, prompt_logprobs: Vec::new() }
        });
        self.outputs = outputs.collect();
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<SequenceOutput>, RunnerError> {
        Ok(std::mem::take(&mut self.outputs))
    }

    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<SimulatedMemory>) -> Result<(), RunnerError> {
        for copy in copies {
            let _pinned = kv.pin_copy(copy).map_err(|error| failed(&error))?;
            self.copied_bytes = self.copied_bytes.saturating_add(copy.bytes.len());
        }
        Ok(())
    }
}

fn failed(error: &kv::Error) -> RunnerError {
    RunnerError::new::<CostModelRunner>(error)
}

/// What the driver has done until the last step.
#[derive(Debug, Default)]
struct Driver {
    num_calls: usize,
    spent: Duration,
    /// Of `spent`: by the mapper, beside a step.
    spent_ahead: Duration,
    /// Left of the mapper's work when the last step ended.
    backlog: Duration,
}

impl Driver {
    /// Calls, time before the step, and time of the mapper since the last time.
    fn since_last(&mut self, kv: &KvCache<SimulatedMemory>) -> (usize, Duration, Duration) {
        let (num_calls, spent, spent_ahead) =
            (kv.memory().calls().total(), kv.memory().spent(), kv.spent_ahead());
        let new_calls = num_calls - self.num_calls;
        let ahead = spent_ahead.saturating_sub(self.spent_ahead);
        let before = spent.saturating_sub(self.spent).saturating_sub(ahead);
        (self.num_calls, self.spent, self.spent_ahead) = (num_calls, spent, spent_ahead);
        (new_calls, before, ahead)
    }

    /// Calls since the last step, and how long this one has to wait: for what was mapped for itself, and for what is left
    /// of the mapper's earlier work, whether it needs that or not. The mapper's new work is done while the step computes.
    fn before_step(&mut self, kv: &KvCache<SimulatedMemory>, computing: Duration) -> (usize, Duration) {
        let (num_calls, before, ahead) = self.since_last(kv);
        let blocked = self.backlog + before;
        self.backlog = ahead.saturating_sub(computing);
        (num_calls, blocked)
    }
}
