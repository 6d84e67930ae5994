//! The loop: take commands, schedule, launch, land, publish. On its own OS thread, which never waits for a client.
//!
//! A device that can be given a step before the last one is done gets it: `schedule` then decides ahead of the tokens in flight,
//! counting on one from every sequence that draws, and the device passes them on itself. What is not known as yet cannot be
//! counted on: a sequence that has ended meanwhile runs once more in vain, its slot is given back only after that, and for
//! memory that others would have to give up the steps in flight are waited for.

mod admission;
mod door;
mod ending;
mod failure;
mod flight;
mod pulse;
mod sequence;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod thread;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fused_status::Error;
use tokio::sync::{mpsc, watch};

use crate::Order;
use crate::events::{self, CoreEvents};
use crate::kv::{self, KvCache};
use crate::request::{RequestId, ValidPromptChunk};
use crate::runner::{Runner, RunnerError, SequenceOutput};
use crate::scheduler::{Scheduled, Scheduler, SequenceId, Step};
use admission::{ForecastRatio, PrefillRate, StepRate};
use door::{Arrival, Bell, Command};
use ending::{cancelled, not_sent, out_of_memory};
use flight::Flight;
use pulse::{Doing, Pulse, StepTime};
pub(crate) use sequence::Drawn;
use sequence::{End, Request};

pub(crate) use door::{Admitted, Door, Load, Totals, engine_ended};
pub(crate) use stream::{Event, EventReceiver, Finish, FinishReason, PromptLogprobs};
pub(crate) use thread::{CoreConfig, assemble, start};

/// Commands taken between two steps; the rest waits for the next.
const MAX_COMMANDS_PER_STEP: usize = 1024;

/// How often it is found out how long a request would wait that comes now, which takes microseconds for each that waits.
const WAIT_INTERVAL: Duration = Duration::from_millis(20);

/// A runner's output does not belong to its input.
#[derive(Debug, thiserror::Error)]
#[error("the runner has not answered for every sequence")]
struct NotAnswered;

/// Reads the time. Tests have their own.
pub(crate) type Clock = Box<dyn Fn() -> Instant + Send>;

/// Everything that runs on the core's thread.
pub(crate) struct EngineCore<R: Runner> {
    runner: R,
    kv: KvCache<R::Memory>,
    scheduler: Scheduler,
    /// By number, that is in order of arrival.
    requests: BTreeMap<u64, Request>,
    /// Steps that the device has been given and whose outputs are not read, the oldest first.
    flights: VecDeque<Flight>,
    /// Whether somebody can only go on when others give way, which those in flight cannot.
    is_held_up: bool,
    /// When the last step came down.
    last_landing: Instant,
    numbers: HashMap<RequestId, u64>,
    /// Of the requests that have one.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Who rings says whose client has gone.
    bell: Bell,
    commands: mpsc::Receiver<Command>,
    order: Order,
    /// A request is refused where prompts wait for longer.
    max_wait: Option<Duration>,
    prefill_rate: PrefillRate,
    step_rate: StepRate,
    forecast_ratio: ForecastRatio,
    /// How long a request would wait that comes now, and when that was found out.
    least_wait: (Instant, Duration),
    step_time: StepTime,
    pulse: Arc<Pulse>,
    started: Instant,
    load: watch::Sender<Load>,
    events: CoreEvents,
    clock: Clock,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Some sequences ran.
    Ran,
    /// Nothing can run before a command comes, or this much time has passed.
    Idle(Option<Duration>),
}

impl<R: Runner> EngineCore<R> {
    /// One step of all sequences.
    pub(crate) fn step(&mut self) -> Result<Progress, RunnerError> {
        let started = (self.clock)();
        self.pulse.work(Doing::Planning, Duration::ZERO);
        self.take_commands();
        self.end_lost_requests(started);
        let mut waited = Duration::ZERO;
        while self.is_held_up && !self.flights.is_empty() {
            waited += self.land()?;
        }
        let step = self.schedule();
        self.is_held_up = step.is_held_up;
        self.note(&step, started);
        let is_launched = self.launch(&step)?;
        let landed = match self.flights.len() {
            0 => false,
            num if is_launched && num < self.runner.max_in_flight() => false,
            _ => {
                waited += self.land()?;
                true
            }
        };
        self.tell_load();
        let finished = (self.clock)();
        // Of a device that computes when it is given a step, this would be the step's time.
        if is_launched && self.runner.max_in_flight() > 1 {
            self.events.host(finished.saturating_duration_since(started).saturating_sub(waited));
        }
        Ok(if step.is_empty() && !landed { self.idle(finished) } else { Progress::Ran })
    }

    fn take_commands(&mut self) {
        for _ in 0..MAX_COMMANDS_PER_STEP {
            match self.commands.try_recv() {
                Ok(Command::Start(arrival)) => self.admit(*arrival),
                Ok(Command::Prompt { request, chunk }) => self.extend_prompt(request, chunk),
                Ok(Command::Finish { request, sequence_idx }) => self.finish_early(request, sequence_idx),
                Ok(Command::Abort { id, reply }) => self.abort(&id, reply),
                Err(_) => return,
            }
        }
    }

    fn admit(&mut self, arrival: Arrival) {
        let number = arrival.number;
        if self.numbers.contains_key(&arrival.request.id) {
            let message = format!("request_id `{}` is in use by a running request", arrival.request.id.0);
            arrival.events.fail(Error::invalid("request_id", message));
            return;
        }
        // Before it was known here, so that nobody heard it leave.
        if arrival.events.is_gone() {
            self.events.request_ended(cancelled().code().name());
            return;
        }
        self.numbers.insert(arrival.request.id.clone(), number);
        let turn = self.turn(&arrival);
        let request = Request::new(arrival, turn);
        for id in request.ids() {
            self.scheduler.add(id);
        }
        self.deadlines.extend(request.deadline.map(|deadline| (deadline, number)));
        self.requests.insert(number, request);
    }

    /// All that wait grow older alike, so that who has waited longer by an ageing period than one of the next better priority
    /// stays before it: the order is that of the arrivals, put off or brought forward by the priority.
    fn turn(&self, arrival: &Arrival) -> i64 {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        match self.order {
            Order::Fcfs => 0,
            Order::Priority { ageing } => {
                let arrived = micros(arrival.arrived.saturating_duration_since(self.started));
                arrived.saturating_add(micros(ageing).saturating_mul(i64::from(arrival.request.priority)))
            }
        }
    }

    fn extend_prompt(&mut self, number: u64, chunk: ValidPromptChunk) {
        // Unknown where it has been aborted or has failed in the meantime.
        let Some(request) = self.requests.get_mut(&number) else { return };
        let (num_tokens, is_last) = (chunk.tokens.len(), chunk.max_tokens.is_some());
        request.extend_prompt(chunk);
        for id in request.ids() {
            self.scheduler.extend(id, num_tokens);
            if let Some(slot) = self.scheduler.slot(id) {
                self.kv.announce(slot, &request.prompt);
            }
        }
        if is_last {
            self.complete_prompt(number);
        }
    }

    fn complete_prompt(&mut self, number: u64) {
        let Some(request) = self.requests.get(&number) else { return };
        self.events.prompt(request.prompt_len());
        self.let_draw(number);
        if let Err(error) = self.check_wait(number) {
            self.fail(number, error);
        }
    }

    /// The scheduler is told of a complete prompt, for those sequences that may draw.
    fn let_draw(&mut self, number: u64) {
        let Some(request) = self.requests.get(&number) else { return };
        let num_cached = self.kv.num_cached(&request.candidate());
        let shares = self.kv.size().shares_prefixes;
        for id in request.ids_that_may_draw() {
            // What the first of several sequences computes the others need not.
            let all_but_last = request.prompt_len().saturating_sub(1);
            let num_cached = if shares && id.idx > 0 { all_but_last } else { num_cached };
            self.scheduler.complete_prompt(id, request.max_len(), num_cached);
        }
    }

    /// Decides the next step; `run` has memory mapped for the one after it meanwhile.
    fn schedule(&mut self) -> Step {
        let requests = &self.requests;
        let known = |id: SequenceId| requests.get(&id.request)?.known(id.idx);
        self.scheduler.schedule(&mut self.kv, known, !self.flights.is_empty())
    }

    /// Notes what the scheduler has decided.
    fn note(&mut self, step: &Step, now: Instant) {
        for id in &step.preempted {
            self.events.preempted();
            if let Some(request) = self.requests.get_mut(&id.request) {
                request.note_preempted(id.idx);
            }
        }
        for (id, error) in &step.failed {
            let error = out_of_memory(error);
            self.fail(id.request, error);
        }
        for (id, num_cached) in &step.admitted {
            self.events.admitted(*num_cached);
            if let Some(request) = self.requests.get_mut(&id.request) {
                request.note_admitted(id.idx, *num_cached);
            }
        }
        for Scheduled { id, .. } in &step.scheduled {
            let Some(request) = self.requests.get_mut(&id.request) else { continue };
            if let Some(waited) = request.note_scheduled(id.idx, now) {
                self.events.queued(waited);
                if let Some(foreseen) = request.foreseen_wait.take() {
                    self.forecast_ratio.note(foreseen, waited);
                }
            }
        }
    }

    /// Gives the device the forward pass and the draws. Says whether there was anything to give.
    fn launch(&mut self, step: &Step) -> Result<bool, RunnerError> {
        // A request that has just failed for want of memory may have another sequence in the step.
        let steps = step.scheduled.iter().filter_map(|scheduled| {
            Some((*scheduled, self.requests.get(&scheduled.id.request)?.step(scheduled)?))
        });
        let (scheduled, sequences): (Vec<_>, Vec<_>) = steps.unzip();
        let copies = self.kv.take_copies();
        if !copies.is_empty() {
            self.pulse.work(Doing::Copying, Duration::ZERO);
            self.runner.copy(&copies, &self.kv)?;
        }
        if sequences.is_empty() {
            return Ok(false);
        }
        let memory_error = |error: kv::Error| RunnerError::new::<R>(&error);
        let grow = scheduled.iter().filter(|scheduled| scheduled.reaches_end).map(|scheduled| scheduled.slot);
        self.kv.map_ahead(grow).map_err(memory_error)?;
        let launched = (self.clock)();
        let num_tokens = scheduled.iter().map(|scheduled| scheduled.num_tokens).sum();
        let work = scheduled.iter().map(|s| pulse::work(s.context_len, s.num_tokens)).sum();
        self.pulse.work(Doing::Launching { num_tokens }, self.expected(work));
        self.runner.launch(&sequences, &self.kv)?;
        let draws = sequences.iter().map(|sequence| sequence.sample.is_some()).collect();
        for (idx, scheduled) in scheduled.iter().enumerate() {
            let request = self.requests.get_mut(&scheduled.id.request);
            let has_next = request.is_some_and(|request| request.note_launched(scheduled, idx));
            self.scheduler.commit(scheduled, has_next);
        }
        self.flights.push_back(Flight { scheduled, draws, ended: Vec::new(), launched, work });
        Ok(true)
    }

    /// Waits for the oldest step in flight and tells its outputs. Returns how long it has waited.
    fn land(&mut self) -> Result<Duration, RunnerError> {
        let began = (self.clock)();
        if let Some(flight) = self.flights.front() {
            let doing = Doing::Waiting { num_tokens: flight.num_tokens() };
            self.pulse.work(doing, self.expected(flight.work));
        }
        let outputs = self.runner.finish()?;
        self.pulse.land();
        let Some(flight) = self.flights.pop_front() else { return Ok(Duration::ZERO) };
        let now = (self.clock)();
        let waited = now.saturating_duration_since(began);
        // A sequence without its output would wait for ever.
        if !flight.draws.iter().copied().eq(outputs.iter().map(|output| output.sampled.is_some())) {
            return Err(RunnerError::new::<R>(&NotAnswered));
        }
        self.note_landing(&flight, now, waited);
        for (scheduled, output) in flight.scheduled.iter().zip(outputs) {
            // Ended since it was launched.
            if flight.ended.contains(&scheduled.slot) {
                continue;
            }
            self.publish(scheduled, output, now);
        }
        for slot in flight.ended {
            self.kv.release(slot);
        }
        Ok(waited)
    }

    fn publish(&mut self, scheduled: &Scheduled, output: SequenceOutput, now: Instant) {
        let id = scheduled.id;
        // Unknown where another sequence of the same request has just ended it.
        let Some(request) = self.requests.get_mut(&id.request) else { return };
        self.kv.computed(scheduled.slot, request.computed(scheduled));
        let taken = request.take(scheduled, output, now);
        if let Some(drawn) = taken.drawn {
            self.events.token(drawn);
        }
        match taken.end {
            Some(End::Finished(reason)) => self.finish(id, reason),
            Some(End::NotSent(error)) => self.fail(id.request, not_sent(error)),
            None => {}
        }
        if taken.lets_others_draw {
            self.let_draw(id.request);
        }
    }

    /// A step takes from when the device could begin with it, which is when the one before was done.
    fn note_landing(&mut self, flight: &Flight, now: Instant, waited: Duration) {
        let took = now.saturating_duration_since(flight.launched.max(self.last_landing));
        self.last_landing = now;
        let num_tokens = flight.num_tokens();
        self.step_time.note(flight.work, took);
        self.events.step(took, num_tokens);
        // Where the host has come late, the device may have been done long before, or begun.
        let is_timed = self.runner.max_in_flight() == 1 || 2 * waited >= took;
        if is_timed && flight.scheduled.iter().any(|scheduled| scheduled.num_tokens > 1) {
            self.prefill_rate.note(num_tokens, took);
        }
        if is_timed && flight.scheduled.iter().any(|scheduled| scheduled.num_tokens == 1) {
            self.step_rate.note(took);
        }
    }

    /// How long a step of so much work takes, for the watchdog.
    fn expected(&self, work: f64) -> Duration {
        self.step_time.of(work).unwrap_or_else(|| self.runner.assumed_token_time().mul_f64(work))
    }

    fn tell_load(&mut self) {
        debug_assert!(self.kv.is_consistent(), "a page is lost or in two places");
        debug_assert!(self.scheduler.is_consistent(), "a sequence is in two queues");
        let now = (self.clock)();
        if now.saturating_duration_since(self.least_wait.0) >= WAIT_INTERVAL {
            self.least_wait = (now, self.least_wait());
        }
        let load = Load {
            num_running: self.scheduler.num_running(),
            num_waiting: self.scheduler.num_waiting(),
            num_tokens_to_prefill: self.scheduler.num_tokens_to_prefill(),
            least_wait: self.least_wait.1,
            kv: self.kv.stats(),
            totals: self.events.totals(),
        };
        let before = self.load.borrow().kv.total_bytes;
        if load.kv.total_bytes != before {
            events::kv_pool_resized(before, load.kv.total_bytes);
        }
        self.events.load(&load);
        self.events.driver(self.kv.num_driver_calls(), self.kv.waited_for_mapper());
        self.load.send_replace(load);
    }

    fn idle(&self, now: Instant) -> Progress {
        if !self.commands.is_empty() {
            return Progress::Ran;
        }
        let next_deadline = self.deadlines.first();
        Progress::Idle(next_deadline.map(|(deadline, _)| deadline.saturating_duration_since(now)))
    }
}
