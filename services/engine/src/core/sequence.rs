use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fused_vocabulary::TokenId;
use tokio::sync::OwnedSemaphorePermit;

use super::door::Arrival;
use super::stream::{Event, EventSender, Finish, FinishReason, NotSent, PromptLogprobs, Timings};
use crate::kv::Candidate;
use crate::request::{Stopping, ValidGenerateRequest, ValidPromptChunk};
use crate::runner::{PromptLogprobStep, SequenceOutput, SequenceStep};
use crate::sampler::{Occurrences, PromptOccurrences, SampleStep, SampledToken, TokenLogprobs};
use crate::scheduler::{Known, Scheduled, SequenceId};

/// A request in the core.
#[derive(Debug)]
pub(super) struct Request {
    number: u64,
    /// See [`SequenceId::turn`].
    turn: i64,
    pub(super) request: ValidGenerateRequest,
    pub(super) events: EventSender,
    pub(super) arrived: Instant,
    /// How long it was to wait, until it runs.
    pub(super) foreseen_wait: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    /// Its place in the queue, until it is scheduled with its whole prompt: before that it may lose its slot to others, and
    /// the queue is what bounds those who wait.
    place: Option<OwnedSemaphorePermit>,
    /// Of all its sequences.
    pub(super) prompt: Vec<TokenId>,
    /// What penalties count of it; known once it is complete, and none where there are no penalties.
    occurrences: Option<Arc<PromptOccurrences>>,
    /// Known once the prompt is complete.
    pub(super) max_tokens: Option<usize>,
    /// Tokens that end a sequence, which may not be drawn before `min_tokens`.
    ending: Vec<TokenId>,
    /// Of the prompt's positions from the second on, as far as they are computed.
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Of the prompt, computed by others when the first sequence first got a slot; later it may find what it left itself.
    num_cached: Option<usize>,
    told_prompt: bool,
    pub(super) sequences: Vec<Sequence>,
}

/// One continuation of a prompt.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// Its output. Once it has had to give way, behind a copy of the prompt: then both are prefilled alike, and a step may
    /// begin in the one and end in the other.
    tokens: Vec<TokenId>,
    has_prompt: bool,
    /// What penalties count; `None` where there are none, and before it runs with its whole prompt.
    occurrences: Option<Occurrences>,
    /// Its place in the last step launched that draws a token of it. As long as that is in flight, `tokens` lack the token.
    drawn_by: usize,
    pub(super) is_finished: bool,
    num_preemptions: u32,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

/// What a step's output means for its sequence.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The token that was drawn; none while the prompt is being prefilled.
    pub(super) drawn: Option<Drawn>,
    /// Set where it was the last.
    pub(super) end: Option<End>,
    /// Whether its request's other sequences have waited for this.
    pub(super) lets_others_draw: bool,
}

/// When a token came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawn {
    pub(crate) is_first: bool,
    /// Since the sequence's last token, or since the request arrived if it is the first.
    pub(crate) latency: Duration,
}

/// Why a sequence does not go on.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Finished(FinishReason),
    /// Its client cannot be told what comes next.
    NotSent(NotSent),
}

impl Request {
    pub(super) fn new(arrival: Arrival, turn: i64) -> Self {
        let Arrival { number, request, events, arrived, place } = arrival;
        let stopping = &request.stopping;
        let ending = stopping.eos_token_ids.iter().chain(&stopping.stop_token_ids).copied().collect();
        Self {
            number,
            turn,
            // A deadline beyond what the clock can say is none.
            deadline: request.timeout.and_then(|timeout| arrived.checked_add(timeout)),
            sequences: (0..request.num_sequences).map(|_| Sequence::default()).collect(),
            request,
            events,
            arrived,
            foreseen_wait: None,
            place: Some(place),
            prompt: Vec::new(),
            occurrences: None,
            max_tokens: None,
            ending,
            prompt_logprobs: Vec::new(),
            num_cached: None,
            told_prompt: false,
        }
    }

    /// Its sequences.
    pub(super) fn ids(&self) -> impl Iterator<Item = SequenceId> + use<> {
        let (turn, request) = (self.turn, self.number);
        (0..self.request.num_sequences).map(move |idx| SequenceId { turn, request, idx })
    }

    /// Those of its sequences that may draw tokens as soon as the prompt is complete. Where its log-probabilities are asked
    /// for, that is the first alone until it has computed them, or another that finds the prompt computed would draw before
    /// they can be told.
    pub(super) fn ids_that_may_draw(&self) -> impl Iterator<Item = SequenceId> + use<> {
        self.ids().take(if self.tells_prompt_logprobs(0) { 1 } else { usize::MAX })
    }

    /// What is known of a sequence.
    pub(super) fn known(&self, sequence_idx: u32) -> Option<Known<'_>> {
        let sequence = self.sequences.get(sequence_idx as usize)?;
        Some(Known {
            tokens: if sequence.has_prompt { &sequence.tokens } else { &self.prompt },
            salt: self.request.cache_salt.as_deref(),
            reuses: !self.tells_prompt_logprobs(sequence_idx),
        })
    }

    /// Its prompt, as it asks for a slot.
    pub(super) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            tokens: &self.prompt,
            is_arriving: self.max_tokens.is_none(),
            salt: self.request.cache_salt.as_deref(),
            reuses: !self.tells_prompt_logprobs(0),
            num_reserved: self.prompt.len(),
            is_ahead: false,
        }
    }

    /// Whether a sequence still has to compute all of the prompt, because every position's prediction is asked for.
    fn tells_prompt_logprobs(&self, sequence_idx: u32) -> bool {
        // The prompt is the same for all sequences; the first one, for which the others wait, is asked for it.
        sequence_idx == 0 && !self.told_prompt && self.request.num_prompt_logprobs.is_some()
    }

    /// Tokens of the prompt, as far as it has arrived.
    pub(super) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    /// Tokens of a sequence's output.
    pub(super) fn num_output(&self, sequence_idx: u32) -> usize {
        let sequence = self.sequences.get(sequence_idx as usize);
        sequence.map_or(0, |sequence| sequence.num_output(&self.prompt))
    }

    /// Tokens of prompt and output, at most.
    pub(super) fn max_len(&self) -> usize {
        // The last one drawn is never computed.
        self.prompt.len() + self.max_tokens.unwrap_or(0).saturating_sub(1)
    }

    /// Appends a chunk of the prompt.
    pub(super) fn extend_prompt(&mut self, chunk: ValidPromptChunk) {
        self.max_tokens = chunk.max_tokens;
        self.occurrences = chunk.occurrences;
        self.prompt.extend_from_slice(&chunk.tokens);
    }

    /// The runner's part of a sequence in this step.
    pub(super) fn step(&self, scheduled: &Scheduled) -> Option<SequenceStep<'_>> {
        let sequence = self.sequences.get(scheduled.id.idx as usize)?;
        let end = scheduled.context_len + scheduled.num_tokens;
        let num_known = self.prompt.len() + sequence.num_output(&self.prompt);
        Some(SequenceStep {
            slot: scheduled.slot,
            context_len: scheduled.context_len,
            tokens: sequence.tokens_at(&self.prompt, scheduled.context_len..end.min(num_known))?,
            drawn_by: (end > num_known).then_some(sequence.drawn_by),
            sample: self.draws(scheduled).then(|| self.draw(sequence, scheduled)),
            prompt_logprobs: self.prompt_logprob_step(scheduled),
        })
    }

    /// The tokens of a step that has come down: all of them are known then.
    pub(super) fn computed(&self, scheduled: &Scheduled) -> &[TokenId] {
        let end = scheduled.context_len + scheduled.num_tokens;
        let sequence = self.sequences.get(scheduled.id.idx as usize);
        let tokens = sequence.and_then(|s| s.tokens_at(&self.prompt, scheduled.context_len..end));
        tokens.unwrap_or(&[])
    }

    /// Notes that a step has been launched, in which a sequence has this place. Says whether it draws a token that another may
    /// follow.
    pub(super) fn note_launched(&mut self, scheduled: &Scheduled, idx: usize) -> bool {
        let draws = self.draws(scheduled);
        if let Some(sequence) = self.sequences.get_mut(scheduled.id.idx as usize).filter(|_| draws) {
            sequence.drawn_by = idx;
        }
        draws && scheduled.context_len + scheduled.num_tokens < self.max_len()
    }

    fn draws(&self, scheduled: &Scheduled) -> bool {
        scheduled.reaches_end && self.max_tokens != Some(0)
    }

    fn draw<'a>(&'a self, sequence: &'a Sequence, scheduled: &Scheduled) -> SampleStep<'a> {
        let num_output = scheduled.context_len + scheduled.num_tokens - self.prompt.len();
        SampleStep {
            sampling: &self.request.sampling,
            sequence_idx: scheduled.id.idx,
            position: num_output as u64,
            occurrences: sequence.occurrences.as_ref(),
            banned: if num_output < self.request.stopping.min_tokens { &self.ending } else { &[] },
            num_logprobs: self.request.num_logprobs,
        }
    }

    fn prompt_logprob_step(&self, scheduled: &Scheduled) -> Option<PromptLogprobStep<'_>> {
        let is_asked = self.tells_prompt_logprobs(scheduled.id.idx);
        let num_top = self.request.num_prompt_logprobs.filter(|_| is_asked)?;
        let first = scheduled.context_len + 1;
        let end = (first + scheduled.num_tokens).min(self.prompt.len());
        // What was computed before the sequence had to give way is not asked for again.
        let is_new = end > 1 + self.prompt_logprobs.len();
        let targets = self.prompt.get(first..end).filter(|_| is_new)?;
        Some(PromptLogprobStep { targets, num_top })
    }

    /// Notes how much of a sequence's tokens was computed by others when it got its slot.
    pub(super) fn note_admitted(&mut self, sequence_idx: u32, num_cached: usize) {
        if sequence_idx == 0 {
            self.num_cached.get_or_insert(num_cached);
        }
    }

    /// Notes that a sequence runs in this step. Returns how long it has waited, if this is the first time.
    pub(super) fn note_scheduled(&mut self, sequence_idx: u32, now: Instant) -> Option<Duration> {
        if self.max_tokens.is_some() {
            self.place = None;
        }
        let sequence = self.sequences.get_mut(sequence_idx as usize)?;
        if let Some(occurrences) = self.occurrences.as_ref().filter(|_| sequence.occurrences.is_none()) {
            sequence.occurrences = Some(Occurrences::after(Arc::clone(occurrences)));
        }
        if sequence.first_scheduled.is_some() {
            return None;
        }
        sequence.first_scheduled = Some(now);
        Some(now.saturating_duration_since(self.arrived))
    }

    /// Notes that a sequence had to give way.
    pub(super) fn note_preempted(&mut self, sequence_idx: u32) {
        if let Some(sequence) = self.sequences.get_mut(sequence_idx as usize) {
            sequence.num_preemptions += 1;
            if !sequence.has_prompt && !sequence.tokens.is_empty() {
                sequence.tokens.splice(..0, self.prompt.iter().copied());
                sequence.has_prompt = true;
            }
        }
    }

    /// Takes a step's output of one sequence and tells the client.
    pub(super) fn take(&mut self, scheduled: &Scheduled, output: SequenceOutput, now: Instant) -> Taken {
        let first = scheduled.context_len + 1;
        let known = (1 + self.prompt_logprobs.len()).saturating_sub(first);
        self.prompt_logprobs.extend(output.prompt_logprobs.into_iter().skip(known));
        if !scheduled.reaches_end {
            return Taken::default();
        }
        let lets_others_draw = self.sequences.len() > 1 && self.tells_prompt_logprobs(scheduled.id.idx);
        if let Err(error) = self.tell_prompt() {
            return Taken { end: Some(End::NotSent(error)), ..Taken::default() };
        }
        let (drawn, end) = match output.sampled {
            Some(token) => self.take_token(scheduled.id.idx, token, now),
            None => (None, Some(End::Finished(FinishReason::Length))),
        };
        Taken { drawn, end, lets_others_draw }
    }

    fn tell_prompt(&mut self) -> Result<(), NotSent> {
        if self.told_prompt {
            return Ok(());
        }
        self.told_prompt = true;
        let first = self.prompt.first();
        let logprobs = self
            .request
            .num_prompt_logprobs
            .and(first)
            .map(|first| PromptLogprobs { first: *first, rest: std::mem::take(&mut self.prompt_logprobs) });
        let num_cached = self.num_cached.unwrap_or(0);
        self.events.send(Event::Prompt { num_tokens: self.prompt.len(), num_cached, logprobs })
    }

    fn take_token(
        &mut self,
        sequence_idx: u32,
        token: SampledToken,
        now: Instant,
    ) -> (Option<Drawn>, Option<End>) {
        let Some(sequence) = self.sequences.get_mut(sequence_idx as usize) else { return (None, None) };
        let latency = now.saturating_duration_since(sequence.last_token.unwrap_or(self.arrived));
        let drawn = Some(Drawn { is_first: sequence.first_token.is_none(), latency });
        sequence.first_token.get_or_insert(now);
        sequence.last_token = Some(now);
        let num_before = sequence.num_output(&self.prompt);
        let ending = self.request.stopping.ends(token.token, num_before);
        sequence.tokens.push(token.token);
        if let Some(occurrences) = &mut sequence.occurrences {
            occurrences.push_output(token.token);
        }
        let is_last = self.max_tokens.is_some_and(|max_tokens| num_before + 1 >= max_tokens);
        let reason = ending.or(is_last.then_some(FinishReason::Length));
        let end = match self.events.send(Event::Token { sequence_idx, token, ends: ending.is_some() }) {
            Err(error) => Some(End::NotSent(error)),
            Ok(()) => reason.map(End::Finished),
        };
        (drawn, end)
    }

    /// Tells the client that a sequence has ended.
    pub(super) fn finish(&mut self, sequence_idx: u32, reason: FinishReason) {
        let Some(sequence) = self.sequences.get_mut(sequence_idx as usize) else { return };
        sequence.is_finished = true;
        let num_tokens = sequence.num_output(&self.prompt);
        (sequence.tokens, sequence.has_prompt, sequence.occurrences) = (Vec::new(), false, None);
        let timings = sequence.timings(self.arrived);
        self.events.finish(Finish { sequence_idx, reason, num_tokens, timings });
    }

    pub(super) fn is_finished(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.is_finished)
    }
}

impl Sequence {
    /// Tokens drawn, as far as they are known.
    fn num_output(&self, prompt: &[TokenId]) -> usize {
        self.tokens.len() - if self.has_prompt { prompt.len() } else { 0 }
    }

    /// Its tokens at some positions, all of which are known.
    fn tokens_at<'a>(&'a self, prompt: &'a [TokenId], at: Range<usize>) -> Option<&'a [TokenId]> {
        let first = if self.has_prompt { 0 } else { prompt.len() };
        match at.start.checked_sub(first) {
            Some(start) => self.tokens.get(start..at.end.checked_sub(first)?),
            None => prompt.get(at),
        }
    }

    fn timings(&self, arrived: Instant) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        Timings {
            queue: between(Some(arrived), self.first_scheduled),
            prefill: between(self.first_scheduled, self.first_token),
            decode: between(self.first_token, self.last_token),
            num_preemptions: self.num_preemptions,
        }
    }
}

impl Stopping {
    /// Why a sequence ends with this token, `num_output` others having been drawn before.
    fn ends(&self, token: TokenId, num_output: usize) -> Option<FinishReason> {
        if num_output < self.min_tokens {
            None
        } else if self.eos_token_ids.contains(&token) {
            Some(FinishReason::Eos(token))
        } else if self.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else {
            None
        }
    }
}
