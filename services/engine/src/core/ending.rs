//! Every way in which a request ends.

use std::time::Instant;

use fused_status::{Code, Error};
use tokio::sync::oneshot;

use super::EngineCore;
use super::door::Aborted;
use super::sequence::Request;
use super::stream::{FinishReason, NotSent};
use crate::kv;
use crate::request::RequestId;
use crate::runner::Runner;
use crate::scheduler::SequenceId;

impl<R: Runner> EngineCore<R> {
    pub(super) fn abort(&mut self, id: &RequestId, reply: oneshot::Sender<Aborted>) {
        let Some(&number) = self.numbers.get(id) else { return };
        let mut aborted = Aborted::default();
        let Some(request) = self.requests.get(&number) else { return };
        let unfinished = request.ids().filter(|id| !request.sequences[id.idx as usize].is_finished);
        for id in unfinished.collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(&number) else { break };
            aborted.num_sequences += 1;
            request.finish(id.idx, FinishReason::Aborted);
            aborted.kv_bytes += self.free(id);
        }
        self.forget(number, "aborted");
        // The one who asked may have gone.
        let _ = reply.send(aborted);
    }

    /// Ends requests whose client has gone or whose deadline has passed.
    pub(super) fn end_lost_requests(&mut self, now: Instant) {
        for number in self.bell.take_left() {
            self.fail(number, cancelled());
        }
        while let Some((deadline, number)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.fail(number, Error::new(Code::DeadlineExceeded, "the request's deadline has passed"));
        }
    }

    /// Ends one sequence because its client needs no more of it.
    pub(super) fn finish_early(&mut self, number: u64, sequence_idx: u32) {
        let Some(request) = self.requests.get(&number) else { return };
        let id = request.ids().find(|id| id.idx == sequence_idx);
        // It may have come to its own end meanwhile.
        let is_running = |id: &SequenceId| !request.sequences[id.idx as usize].is_finished;
        if let Some(id) = id.filter(is_running) {
            self.finish(id, FinishReason::Enough);
        }
    }

    /// Ends one sequence as it should end.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.free(id);
        let Some(request) = self.requests.get_mut(&id.request) else { return };
        self.scheduler.note_output(request.num_output(id.idx));
        request.finish(id.idx, reason);
        if request.is_finished() {
            self.forget(id.request, reason_label(reason));
        }
    }

    /// Ends a request with an error and frees what it holds.
    pub(super) fn fail(&mut self, number: u64, error: Error) {
        let Some(request) = self.requests.get(&number) else { return };
        for id in request.ids() {
            self.free(id);
        }
        if let Some(request) = self.forget(number, error.code().name()) {
            request.events.fail(error);
        }
    }

    /// Forgets a sequence and gives its slot back, when the last step in flight that works on it has come down. Returns the
    /// bytes that it needed.
    fn free(&mut self, id: SequenceId) -> usize {
        let Some(slot) = self.scheduler.remove(id) else { return 0 };
        match self.flights.iter_mut().rev().find(|flight| flight.holds(slot)) {
            Some(flight) => {
                flight.ended.push(slot);
                self.kv.needed_bytes(slot)
            }
            None => self.kv.release(slot),
        }
    }

    pub(super) fn forget(&mut self, number: u64, finish_reason: &'static str) -> Option<Request> {
        let request = self.requests.remove(&number)?;
        self.numbers.remove(&request.request.id);
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, number));
        }
        self.events.request_ended(finish_reason);
        Some(request)
    }
}

fn reason_label(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos(_) | FinishReason::StopToken(_) | FinishReason::Enough => "stop",
        FinishReason::Length => "length",
        FinishReason::Aborted => "aborted",
    }
}

pub(super) fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the client has gone")
}

pub(super) fn not_sent(error: NotSent) -> Error {
    match error {
        NotSent::Gone => cancelled(),
        NotSent::Full => Error::new(
            Code::SlowReader,
            "the stream was not read, its buffer is full, and the request was cancelled; read faster",
        ),
    }
}

/// The one request's misfortune, and the engine goes on: `Unavailable` would say that the engine does not.
pub(super) fn out_of_memory(error: &kv::Error) -> Error {
    Error::new(Code::QueueFull, "no memory could be had for the request's keys and values; try again later")
        .with_cause(error)
}
