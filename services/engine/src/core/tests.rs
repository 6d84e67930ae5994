//! The whole core without its thread: tests step it by hand and move its clock.

mod ahead;
mod outcomes;
mod simulation;

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fused_proto::common::v1::StoppingParams;
use fused_proto::engine::v1::{GenerateOpening, PromptChunk};
use fused_status::{Code, Error};
use fused_virtual_memory::SimulatedMemory;
use fused_vocabulary::TokenId;
use tokio::sync::oneshot;

use super::door::Aborted;
use super::thread::{CoreConfig, assemble};
use super::*;
use crate::kv::{KvLayout, KvSize};
use crate::request::tests::{EOS, MAX_MODEL_LEN, model, opening};
use crate::request::{Limits, PromptReader, ValidGenerateRequest};
use crate::runner::mock::{Fault, MockRunner, next_token};
use crate::scheduler::SchedulerConfig;
use crate::{ChunkSchedule, ChunkSize, PolicyName, PrefillOrder};

pub(crate) const NUM_SLOTS: usize = 4;

/// Four tokens a page; sixteen pages are one sequence of the greatest length.
pub(crate) fn mock_kv(num_pages: usize) -> KvCache<SimulatedMemory> {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, bytes_per_element: 2 };
    let pool_bytes = num_pages * 32;
    let memory = SimulatedMemory::with_contents(32, pool_bytes).unwrap().of_device();
    KvCache::new(memory, layout, mock_size(pool_bytes)).unwrap()
}

pub(crate) fn mock_size(pool_bytes: usize) -> KvSize {
    KvSize {
        num_sequences: NUM_SLOTS,
        num_slots: 2 * NUM_SLOTS,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes,
        shares_prefixes: true,
    }
}

/// Bounds for tests.
pub(crate) fn core_config(token_budget: usize) -> CoreConfig {
    CoreConfig {
        scheduler: SchedulerConfig {
            policy: PolicyName::Sarathi,
            token_budget,
            prefill_order: PrefillOrder::default(),
            chunks: ChunkSize::Budget,
        },
        order: Order::Fcfs,
        max_wait: None,
        max_waiting_requests: 8,
        stream_buffer: 64,
        watchdog_timeout: None,
    }
}

/// A core, the way to it, and its clock.
struct Harness {
    core: EngineCore<MockRunner>,
    door: Door,
    now: Arc<Mutex<Instant>>,
}

/// A client's end, and what it has heard.
struct Client {
    number: u64,
    events: EventReceiver,
    heard: Vec<Event>,
    /// What the stream ended with, once it has ended: `None` for the end it should have.
    ended: Option<Option<Code>>,
}

impl Harness {
    fn new(num_pages: usize) -> Self {
        Self::with(num_pages, core_config(16))
    }

    fn with(num_pages: usize, config: CoreConfig) -> Self {
        Self::on(MockRunner::default(), num_pages, config)
    }

    fn on(runner: MockRunner, num_pages: usize, config: CoreConfig) -> Self {
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || *clock.lock().unwrap());
        let (core, door) = assemble(config, runner, mock_kv(num_pages), clock);
        Self { core, door, now }
    }

    fn pass(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }

    fn start(&self, opening: GenerateOpening) -> Result<(Client, PromptReader), Error> {
        let model = model();
        let limits = Limits { model: &model };
        let request = ValidGenerateRequest::new(opening, limits)?;
        let prompt = PromptReader::new(&request, limits);
        let Admitted { number, events } = self.door.start(request, *self.now.lock().unwrap())?;
        Ok((Client { number, events, heard: Vec::new(), ended: None }, prompt))
    }

    fn prompt(&self, client: &Client, prompt: &mut PromptReader, tokens: &[u32], last: bool) {
        let chunk = PromptChunk { token_ids: tokens.to_vec(), last: Some(last) };
        let chunk = prompt.read(chunk).unwrap();
        self.door.commands.try_send(Command::Prompt { request: client.number, chunk }).unwrap();
    }

    /// Starts a request with its whole prompt.
    fn send(&self, opening: GenerateOpening, prompt: &[u32]) -> Client {
        let (client, mut reader) = self.start(opening).unwrap();
        self.prompt(&client, &mut reader, prompt, true);
        client
    }

    fn step(&mut self) -> Progress {
        self.core.step().unwrap()
    }

    /// Steps until nothing can run.
    fn run(&mut self) {
        while self.step() == Progress::Ran {}
    }

    fn abort(&mut self, id: &str) -> Option<Aborted> {
        let (reply, mut aborted) = oneshot::channel();
        self.door.commands.try_send(Command::Abort { id: RequestId(id.into()), reply }).unwrap();
        self.step();
        aborted.try_recv().ok()
    }

    /// Everything is given back: slots, memory, places in the queue.
    fn assert_nothing_is_left(&self) {
        let load = self.door.load();
        assert_eq!((load.num_running, load.num_waiting, load.num_tokens_to_prefill), (0, 0, 0));
        assert_eq!((load.kv.live_slots, load.kv.mapped_bytes), (0, 0));
        assert_eq!(load.kv.parked_bytes + load.kv.free_bytes, load.kv.total_bytes);
        assert_eq!(self.door.queue.available_permits(), 8);
        assert!(self.core.requests.is_empty() && self.core.numbers.is_empty());
    }
}

impl Client {
    /// Reads what is there.
    fn listen(&mut self) -> &mut Self {
        let mut cx = Context::from_waker(Waker::noop());
        while self.ended.is_none() {
            match self.events.poll_recv_many(&mut cx, &mut self.heard, 16) {
                Poll::Ready(0) => self.ended = Some(self.events.failure().map(|error| error.code())),
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        self
    }

    fn tokens(&self, sequence_idx: u32) -> Vec<TokenId> {
        let tokens = self.heard.iter().filter_map(|event| match event {
            Event::Token { sequence_idx: idx, token, .. } if *idx == sequence_idx => Some(token.token),
            _ => None,
        });
        tokens.collect()
    }

    fn finishes(&self) -> Vec<&Finish> {
        let finishes = self.heard.iter().filter_map(|event| match event {
            Event::Finish(finish) => Some(finish),
            _ => None,
        });
        finishes.collect()
    }

    fn failure(&self) -> Option<Code> {
        self.ended?
    }
}

fn stopping(id: &str, stopping: StoppingParams) -> GenerateOpening {
    GenerateOpening { stopping: Some(stopping), ..opening(id) }
}

pub(crate) fn max_tokens(id: &str, max_tokens: u32) -> GenerateOpening {
    stopping(id, StoppingParams { max_tokens: Some(max_tokens), ..StoppingParams::default() })
}

/// What a request gets when nobody disturbs it.
pub(crate) fn alone(prompt: &[u32], sequence_idx: u32, max_tokens: usize) -> (Vec<TokenId>, FinishReason) {
    let mut context: Vec<_> = prompt.iter().copied().map(TokenId).collect();
    for _ in 0..max_tokens {
        let token = next_token(&context, sequence_idx, &[]);
        context.push(token);
        if token == EOS {
            return (context.split_off(prompt.len()), FinishReason::Eos(EOS));
        }
    }
    (context.split_off(prompt.len()), FinishReason::Length)
}
