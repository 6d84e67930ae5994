use std::collections::VecDeque;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fused_proto::common::v1 as common;
use fused_proto::engine::v1::finish_info::Matched;
use fused_proto::engine::v1::generate_response::Message;
use fused_proto::engine::v1::{FinishInfo, GenerateResponse, GetLoadResponse, PromptInfo, TokenIncrement};
use fused_status::{Error, Result};

use crate::ModelInfo;
use crate::core::{Event, EventReceiver, Finish, FinishReason, Load, PromptLogprobs, engine_ended};
use crate::sampler::{SampledToken, TokenLogprobs};

/// Events taken at once. What has gathered while the client was slow goes out as one message a sequence.
const MAX_EVENTS_AT_ONCE: usize = 256;

/// Turns a request's events into answers.
#[derive(Debug)]
pub(super) struct ReplyStream {
    events: EventReceiver,
    taken: Vec<Event>,
    ready: VecDeque<GenerateResponse>,
    /// By sequence: where in `ready` the tokens that were taken last are.
    increments: Vec<Option<usize>>,
    fingerprint: String,
    num_unfinished: u32,
    num_tokens: usize,
    told_prompt: bool,
    /// How it has ended, for the trace; `None` while it has not.
    outcome: Option<&'static str>,
}

impl ReplyStream {
    /// `early`: an event that was taken already.
    pub(super) fn new(
        events: EventReceiver,
        early: Option<Event>,
        num_sequences: u32,
        fingerprint: String,
    ) -> Self {
        let mut stream = Self {
            events,
            taken: early.into_iter().collect(),
            ready: VecDeque::new(),
            increments: vec![None; num_sequences as usize],
            fingerprint,
            num_unfinished: num_sequences,
            num_tokens: 0,
            told_prompt: false,
            outcome: None,
        };
        stream.turn_taken();
        stream
    }

    /// Whether the answer for the prompt is out, which comes before any other.
    pub(super) fn told_prompt(&self) -> bool {
        self.told_prompt
    }

    pub(super) fn num_sequences(&self) -> u32 {
        count(self.increments.len())
    }

    /// Tokens until now, in all sequences.
    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// How the stream has ended; `cancelled` before that, because it is asked when the stream goes.
    pub(super) fn outcome(&self) -> &'static str {
        self.outcome.unwrap_or("cancelled")
    }

    /// Ends the stream for what the client has done, with what it is told.
    pub(super) fn refuse(&mut self, error: Error) -> Error {
        self.ready.clear();
        self.outcome = Some(error.code().name());
        error
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenerateResponse>>> {
        loop {
            if let Some(reply) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(reply)));
            }
            if self.outcome.is_some() {
                return Poll::Ready(None);
            }
            if ready!(self.events.poll_recv_many(cx, &mut self.taken, MAX_EVENTS_AT_ONCE)) == 0 {
                return Poll::Ready(self.end().map(Err));
            }
            self.turn_taken();
        }
    }

    /// Notes the outcome when no more events come.
    fn end(&mut self) -> Option<Error> {
        let error = match self.events.failure() {
            Some(error) => Some(error),
            None => (self.num_unfinished > 0).then(engine_ended),
        };
        self.outcome = Some(error.as_ref().map_or("finished", |error| error.code().name()));
        error
    }

    /// One answer for the prompt, one for all new tokens of a sequence, one for its end, each in its place.
    fn turn_taken(&mut self) {
        self.increments.fill(None);
        let mut taken = std::mem::take(&mut self.taken);
        for event in taken.drain(..) {
            match event {
                Event::Prompt { num_tokens, num_cached, logprobs } => {
                    self.told_prompt = true;
                    self.answer(Message::PromptInfo(prompt_info(num_tokens, num_cached, logprobs)));
                }
                Event::Token { sequence_idx, token, ends } => self.take_token(sequence_idx, token, ends),
                Event::Finish(finish) => {
                    self.num_unfinished = self.num_unfinished.saturating_sub(1);
                    self.answer(Message::Finish(finish_info(&finish, &self.fingerprint)));
                }
            }
        }
        self.taken = taken;
    }

    fn take_token(&mut self, sequence_idx: u32, token: SampledToken, ends: bool) {
        self.num_tokens += 1;
        let begun = self.increments.get(sequence_idx as usize).copied().flatten();
        let message = begun.and_then(|place| self.ready.get_mut(place)?.message.as_mut());
        if let Some(Message::Tokens(tokens)) = message {
            return append(tokens, token, ends);
        }
        if let Some(increment) = self.increments.get_mut(sequence_idx as usize) {
            *increment = Some(self.ready.len());
        }
        let mut tokens = TokenIncrement { sequence_idx: Some(sequence_idx), ..TokenIncrement::default() };
        append(&mut tokens, token, ends);
        self.answer(Message::Tokens(tokens));
    }

    fn answer(&mut self, message: Message) {
        self.ready.push_back(GenerateResponse { message: Some(message) });
    }
}

fn append(tokens: &mut TokenIncrement, token: SampledToken, ends: bool) {
    tokens.token_ids.push(token.token.0);
    tokens.logprobs.extend(token.logprobs.map(token_logprobs));
    tokens.last_ends = ends.then_some(true);
}

fn prompt_info(num_tokens: usize, num_cached: usize, logprobs: Option<PromptLogprobs>) -> PromptInfo {
    let logprobs = logprobs.into_iter().flat_map(|PromptLogprobs { first, rest }| {
        let first = common::TokenLogprobs { token_id: Some(first.0), ..common::TokenLogprobs::default() };
        std::iter::once(first).chain(rest.into_iter().map(token_logprobs))
    });
    PromptInfo {
        prompt_tokens: Some(count(num_tokens)),
        cached_prompt_tokens: Some(count(num_cached)),
        logprobs: logprobs.collect(),
    }
}

fn token_logprobs(logprobs: TokenLogprobs) -> common::TokenLogprobs {
    let top = logprobs
        .top
        .into_iter()
        .map(|(token, logprob)| common::TokenLogprob { token_id: Some(token.0), logprob: Some(logprob) });
    common::TokenLogprobs {
        token_id: Some(logprobs.token.0),
        logprob: Some(logprobs.logprob),
        top: top.collect(),
    }
}

fn finish_info(finish: &Finish, fingerprint: &str) -> FinishInfo {
    let (reason, matched) = match finish.reason {
        FinishReason::Eos(token) => (common::FinishReason::Stop, Some(Matched::EosTokenId(token.0))),
        FinishReason::StopToken(token) => (common::FinishReason::Stop, Some(Matched::StopTokenId(token.0))),
        FinishReason::Enough => (common::FinishReason::Stop, None),
        FinishReason::Length => (common::FinishReason::Length, None),
        FinishReason::Aborted => (common::FinishReason::Aborted, None),
    };
    let timings = &finish.timings;
    FinishInfo {
        sequence_idx: Some(finish.sequence_idx),
        reason: Some(reason.into()),
        matched,
        completion_tokens: Some(count(finish.num_tokens)),
        timings: Some(common::Timings {
            queue_us: Some(micros(timings.queue)),
            prefill_us: Some(micros(timings.prefill)),
            decode_us: Some(micros(timings.decode)),
            num_preemptions: Some(timings.num_preemptions),
        }),
        vocabulary_fingerprint: Some(fingerprint.to_owned()),
    }
}

pub(super) fn model_info(model: &ModelInfo) -> common::ModelInfo {
    common::ModelInfo {
        id: Some(model.name.clone()),
        vocabulary_fingerprint: Some(model.vocabulary_fingerprint.clone()),
        max_model_len: Some(count(model.max_model_len)),
        vocab_size: Some(count(model.vocab_size)),
        eos_token_ids: model.eos_token_ids.iter().map(|token| token.0).collect(),
        architecture: Some(model.architecture.clone()),
        dtype: model.dtype.clone(),
        device: Some(model.device.clone()),
        max_logprobs: Some(model.max_logprobs),
        created_unix_s: Some(model.created_unix_s),
        ..common::ModelInfo::default()
    }
}

pub(super) fn load(load: &Load, num_slots: usize) -> GetLoadResponse {
    GetLoadResponse {
        running_sequences: Some(count(load.num_running)),
        waiting_sequences: Some(count(load.num_waiting)),
        waiting_uncached_prompt_tokens: Some(load.num_tokens_to_prefill as u64),
        max_running_sequences: Some(count(num_slots)),
        kv_bytes_total: Some(load.kv.total_bytes as u64),
        kv_bytes_mapped: Some(load.kv.mapped_bytes as u64),
        kv_bytes_parked: Some(load.kv.parked_bytes as u64),
    }
}

/// A count for the wire; none of ours comes near its end.
pub(super) fn count(num: usize) -> u32 {
    u32::try_from(num).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
