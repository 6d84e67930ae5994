//! An engine that answers what a test wrote down, over a real socket.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fused_proto::common::v1::{FinishReason, ModelInfo, TokenLogprob, TokenLogprobs};
use fused_proto::engine::v1::engine_server::{Engine, EngineServer};
use fused_proto::engine::v1::finish_info::Matched;
use fused_proto::engine::v1::generate_request::Message as Received;
use fused_proto::engine::v1::generate_response::Message;
use fused_proto::engine::v1::{
    AbortRequest, AbortResponse, FinishInfo, GenerateOpening, GenerateRequest, GenerateResponse,
    GetLoadRequest, GetLoadResponse, GetModelRequest, PromptInfo, TokenIncrement,
};
use fused_status::{Code, Error};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use fused_lifecycle::Lifecycle;
use fused_transport::{Limits, Replica};

/// Rows of the model's embedding: more than the vocabulary has tokens.
pub(super) const VOCAB_SIZE: u32 = 9984;

/// One answer.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// About the prompt, with these log-probabilities (none: none).
    Prompt(Vec<TokenLogprobs>),
    Tokens(u32, Vec<u32>),
    /// With log-probability -1, and the token itself as the likeliest.
    TokensWithLogprobs(u32, Vec<u32>),
    /// One that ends the sequence, with log-probability -2.
    Ending(u32, u32),
    Eos(u32, u32),
    Length(u32, u32),
    /// Because it was told that the client has enough.
    Stopped(u32, u32),
    Fail(Code),
    /// With a wait of its own.
    FailFor(Code, Duration),
    /// Nothing, until it is told that the client has enough of this sequence.
    AwaitEnough(u32),
    /// Nothing more, ever.
    Hang,
}

/// What the engine saw.
#[derive(Debug)]
pub(super) enum Seen {
    Request {
        opening: Box<GenerateOpening>,
        prompt_chunks: Vec<Vec<u32>>,
    },
    /// The answers were dropped before their end.
    Cancelled,
    Ended,
}

/// Runs on a runtime of its own, so that it can die with all its connections.
pub(super) struct FakeEngine {
    runtime: Option<Runtime>,
    pub(super) endpoint: Replica,
    pub(super) seen: mpsc::Receiver<Seen>,
    fingerprint: watch::Sender<String>,
}

impl FakeEngine {
    pub(super) fn start(name: &str, fingerprint: &str, steps: Vec<Step>) -> Self {
        Self::with_context(name, fingerprint, steps, 1024)
    }

    pub(super) fn with_context(name: &str, fingerprint: &str, steps: Vec<Step>, max_model_len: u32) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let channel =
            fused_transport::connect(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (sender, seen) = mpsc::channel(64);
        let (fingerprint, current) = watch::channel(fingerprint.to_owned());
        let service = Service { fingerprint: current, steps: steps.into(), seen: sender, max_model_len };
        let (health, health_service) = tonic_health::server::health_reporter();
        runtime.spawn(async move {
            health.set_serving::<EngineServer<Service>>().await;
            let routes = Routes::new(EngineServer::new(service)).add_service(health_service);
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let router = fused_transport::grpc(routes);
            fused_transport::serve(listener, router, Limits::grpc(), Lifecycle::new()).await;
        });
        let endpoint = Replica { name: name.to_owned(), channel };
        Self { runtime: Some(runtime), endpoint, seen, fingerprint }
    }

    /// Takes another vocabulary, as an engine restarted with another model has.
    pub(super) fn set_fingerprint(&self, fingerprint: &str) {
        self.fingerprint.send_replace(fingerprint.to_owned());
    }

    pub(super) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.die();
    }
}

struct Service {
    fingerprint: watch::Receiver<String>,
    steps: Arc<[Step]>,
    seen: mpsc::Sender<Seen>,
    max_model_len: u32,
}

/// Tells how a stream of answers ended.
struct EndGuard {
    seen: mpsc::Sender<Seen>,
    has_ended: bool,
}

impl EndGuard {
    fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let seen = if self.has_ended { Seen::Ended } else { Seen::Cancelled };
        let _ = self.seen.try_send(seen);
    }
}

#[tonic::async_trait]
impl Engine for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateRequest>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut messages = request.into_inner();
        let (mut opening, mut prompt_chunks) = (Box::default(), Vec::new());
        while let Some(message) = messages.next().await {
            match message?.message {
                Some(Received::Opening(received)) => *opening = received,
                Some(Received::Prompt(chunk)) => {
                    let is_last = chunk.last();
                    prompt_chunks.push(chunk.token_ids);
                    if is_last {
                        break;
                    }
                }
                Some(Received::Finish(_)) | None => {}
            }
        }
        self.seen.send(Seen::Request { opening, prompt_chunks }).await.unwrap();
        let guard = EndGuard { seen: self.seen.clone(), has_ended: false };
        let steps = Arc::clone(&self.steps);
        let answers = futures_util::stream::unfold((0, guard, messages), move |state| {
            let (mut idx, guard, mut messages): (usize, EndGuard, Streaming<GenerateRequest>) = state;
            let steps = Arc::clone(&steps);
            async move {
                while let Some(Step::AwaitEnough(sequence)) = steps.get(idx) {
                    let told = messages.next().await.unwrap().unwrap().message.unwrap();
                    assert!(
                        matches!(told, Received::Finish(finish) if finish.sequence_idx == Some(*sequence))
                    );
                    idx += 1;
                }
                let step = steps.get(idx).cloned();
                match step {
                    None => {
                        guard.end();
                        None
                    }
                    Some(Step::Hang) => std::future::pending().await,
                    Some(step) => Some((answer(step), (idx + 1, guard, messages))),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        Ok(Response::new(AbortResponse::default()))
    }

    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<ModelInfo>, Status> {
        Ok(Response::new(ModelInfo {
            id: Some("demo".to_owned()),
            vocabulary_fingerprint: Some(self.fingerprint.borrow().clone()),
            max_model_len: Some(self.max_model_len),
            vocab_size: Some(VOCAB_SIZE),
            ..ModelInfo::default()
        }))
    }

    async fn get_load(&self, _: Request<GetLoadRequest>) -> Result<Response<GetLoadResponse>, Status> {
        Ok(Response::new(GetLoadResponse::default()))
    }
}

fn answer(step: Step) -> Result<GenerateResponse, Status> {
    let message = match step {
        Step::Prompt(logprobs) => Message::PromptInfo(PromptInfo {
            logprobs,
            cached_prompt_tokens: Some(3),
            ..PromptInfo::default()
        }),
        Step::Tokens(sequence, token_ids) => Message::Tokens(TokenIncrement {
            sequence_idx: Some(sequence),
            token_ids,
            ..TokenIncrement::default()
        }),
        Step::TokensWithLogprobs(sequence, token_ids) => Message::Tokens(TokenIncrement {
            sequence_idx: Some(sequence),
            logprobs: token_ids.iter().map(|id| logprobs(*id, Some(-1.0))).collect(),
            token_ids,
            last_ends: None,
        }),
        Step::Ending(sequence, token_id) => Message::Tokens(TokenIncrement {
            sequence_idx: Some(sequence),
            token_ids: vec![token_id],
            logprobs: vec![logprobs(token_id, Some(-2.0))],
            last_ends: Some(true),
        }),
        Step::Eos(sequence, completion_tokens) => {
            finish(sequence, FinishReason::Stop, completion_tokens, Some(Matched::EosTokenId(0)))
        }
        Step::Length(sequence, completion_tokens) => {
            finish(sequence, FinishReason::Length, completion_tokens, None)
        }
        Step::Stopped(sequence, completion_tokens) => {
            finish(sequence, FinishReason::Stop, completion_tokens, None)
        }
        Step::Fail(code) => return Err(Error::new(code, "the test wants it").into()),
        Step::FailFor(code, wait) => {
            return Err(Error::new(code, "the test wants it").with_retry_after(wait).into());
        }
        Step::AwaitEnough(_) | Step::Hang => return Ok(GenerateResponse::default()),
    };
    Ok(GenerateResponse { message: Some(message) })
}

pub(super) fn logprobs(token_id: u32, logprob: Option<f32>) -> TokenLogprobs {
    let top = logprob.map(|logprob| TokenLogprob { token_id: Some(token_id), logprob: Some(logprob) });
    TokenLogprobs { token_id: Some(token_id), logprob, top: top.into_iter().collect() }
}

fn finish(sequence: u32, reason: FinishReason, completion_tokens: u32, matched: Option<Matched>) -> Message {
    Message::Finish(FinishInfo {
        sequence_idx: Some(sequence),
        reason: Some(reason.into()),
        completion_tokens: Some(completion_tokens),
        matched,
        ..FinishInfo::default()
    })
}
