use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fused_proto::common::v1::{SamplingParams, StoppingParams};
use fused_proto::engine::v1::{GenerateOpening, PromptChunk};
use fused_status::{Code, Error, Result};

use super::SimulationConfig;
use super::clock::VirtualClock;
use super::outcome::RequestOutcome;
use super::runner::STOP_TOKEN;
use super::workload::{Arrival, Workload};
use crate::ModelInfo;
use crate::core::{Admitted, Door, Event, EventReceiver};
use crate::request::{Limits, PromptReader, ValidGenerateRequest};

/// Events taken at once. A client listens after every token, so that there are never more than a few.
const EVENTS_AT_ONCE: usize = 8;

/// All who ask, and what they have heard.
pub(super) struct Clients<'a> {
    workload: &'a Workload,
    model: &'a ModelInfo,
    seed: u64,
    max_tokens: Option<usize>,
    outcomes: Vec<RequestOutcome>,
    /// One for each that has arrived; none once it has ended.
    listening: Vec<Option<EventReceiver>>,
    last_token: Vec<Duration>,
    events: Vec<Event>,
}

impl<'a> Clients<'a> {
    pub(super) fn new(workload: &'a Workload, model: &'a ModelInfo, config: &SimulationConfig) -> Self {
        let num = workload.arrivals().len();
        Self {
            workload,
            model,
            seed: config.seed,
            max_tokens: config.max_tokens,
            outcomes: Vec::with_capacity(num),
            listening: Vec::with_capacity(num),
            last_token: Vec::with_capacity(num),
            events: Vec::with_capacity(EVENTS_AT_ONCE),
        }
    }

    /// When the next one comes, if one does.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.workload.arrivals().get(self.outcomes.len()).map(|arrival| arrival.at)
    }

    /// Lets the next one ask.
    pub(super) fn arrive(&mut self, door: &Door, clock: &VirtualClock) {
        let Some(arrival) = self.workload.arrivals().get(self.outcomes.len()) else { return };
        let (events, error) = match self.ask(arrival, door, clock) {
            Ok(events) => (Some(events), None),
            Err(error) => (None, Some(error)),
        };
        self.listening.push(events);
        self.last_token.push(Duration::ZERO);
        self.outcomes.push(RequestOutcome {
            arrived: arrival.at,
            num_prompt: arrival.prompt.num_tokens,
            num_cached: 0,
            first_scheduled: None,
            first_token: None,
            inter_token_us: Vec::new(),
            ended: None,
            num_preemptions: 0,
            error,
        });
    }

    fn ask(&self, arrival: &Arrival, door: &Door, clock: &VirtualClock) -> Result<EventReceiver> {
        let idx = self.outcomes.len() as u64;
        let limits = Limits { model: self.model };
        let request = ValidGenerateRequest::new(self.opening(arrival, idx), limits)?;
        let mut prompt = PromptReader::new(&request, limits);
        let token_ids = arrival.prompt.tokens(self.seed, idx, self.model.vocab_size);
        let chunk = prompt.read(PromptChunk { token_ids, last: Some(true) })?;
        let Admitted { number, events } = door.start(request, clock.at(arrival.at))?;
        door.try_prompt(number, chunk)?;
        Ok(events)
    }

    fn opening(&self, arrival: &Arrival, idx: u64) -> GenerateOpening {
        let most = self.model.max_model_len.saturating_sub(arrival.prompt.num_tokens);
        let allowed = self.max_tokens.map(|max_tokens| max_tokens.min(most).max(arrival.num_output));
        let max_tokens = allowed.unwrap_or(arrival.num_output);
        GenerateOpening {
            request_id: Some(idx.to_string()),
            vocabulary_fingerprint: Some(self.model.vocabulary_fingerprint.clone()),
            // The runner tells by the seed who has got a token.
            sampling: Some(SamplingParams { seed: Some(idx.cast_signed()), ..SamplingParams::default() }),
            stopping: Some(StoppingParams {
                max_tokens: Some(u32::try_from(max_tokens).unwrap_or(u32::MAX)),
                ignore_eos: Some(true),
                stop_token_ids: vec![STOP_TOKEN.0],
                ..StoppingParams::default()
            }),
            priority: Some(arrival.priority),
            ..GenerateOpening::default()
        }
    }

    /// Takes what one of them has been sent, at this time.
    pub(super) fn listen(&mut self, idx: u64, now: Duration) {
        let Ok(idx) = usize::try_from(idx) else { return };
        let Some(slot) = self.listening.get_mut(idx) else { return };
        let (outcome, last_token) = (&mut self.outcomes[idx], &mut self.last_token[idx]);
        let mut context = Context::from_waker(Waker::noop());
        while let Some(receiver) = slot {
            match receiver.poll_recv_many(&mut context, &mut self.events, EVENTS_AT_ONCE) {
                Poll::Pending => return,
                Poll::Ready(0) => {
                    // It has ended as it should where a finish came before.
                    outcome.error = receiver.failure();
                    *slot = None;
                }
                Poll::Ready(_) => {}
            }
            for event in self.events.drain(..) {
                match event {
                    Event::Prompt { num_cached, .. } => outcome.num_cached = num_cached,
                    Event::Token { .. } => {
                        if outcome.first_token.is_none() {
                            outcome.first_token = Some(now);
                            let num_output = self.workload.arrivals()[idx].num_output;
                            outcome.inter_token_us.reserve_exact(num_output.saturating_sub(1));
                        } else {
                            let us = now.saturating_sub(*last_token).as_micros();
                            outcome.inter_token_us.push(u32::try_from(us).unwrap_or(u32::MAX));
                        }
                        *last_token = now;
                    }
                    Event::Finish(finish) => {
                        outcome.first_scheduled = Some(outcome.arrived + finish.timings.queue);
                        outcome.num_preemptions = finish.timings.num_preemptions;
                        outcome.ended = Some(now);
                    }
                }
            }
        }
    }

    /// What became of everybody; whoever is still listening has been forgotten by the engine.
    pub(super) fn into_outcomes(mut self, now: Duration) -> Vec<RequestOutcome> {
        for idx in 0..self.listening.len() as u64 {
            self.listen(idx, now);
        }
        for (outcome, listening) in self.outcomes.iter_mut().zip(&self.listening) {
            if listening.is_some() {
                outcome.error = Some(Error::new(Code::Internal, "the engine has forgotten the request"));
            }
        }
        self.outcomes
    }
}
