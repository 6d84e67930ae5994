//! Over gRPC, from the client's stub to the mock runner and back.

use std::sync::mpsc::{SyncSender, sync_channel};

use fused_proto::common::v1::{FinishReason, LogprobParams, SamplingParams};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{PromptChunk, generate_response};
use fused_transport::Channel;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

use super::*;
use crate::core::tests::{NUM_SLOTS, alone, max_tokens, mock_kv};
use crate::request::tests::{model, opening};
use crate::runner::mock::{Fault, MockRunner};
use crate::{Config, Engine};

/// An engine behind a channel.
struct Served {
    engine: Engine,
    client: EngineClient<Channel>,
    lifecycle: Lifecycle,
}

impl Served {
    fn new(runner: MockRunner) -> Self {
        Self::with(runner, Config::default())
    }

    fn with(runner: MockRunner, config: Config) -> Self {
        let lifecycle = Lifecycle::new();
        let engine = Engine::start(&config, model(), runner, mock_kv(24), &lifecycle).unwrap();
        let channel = fused_transport::in_process(Routes::new(engine.service()), &lifecycle);
        Self { engine, client: EngineClient::new(channel), lifecycle }
    }

    /// An engine whose every step waits for a word.
    fn gated() -> (Self, SyncSender<()>) {
        let (open, gate) = sync_channel(1024);
        (Self::new(MockRunner { gate: Some(gate), ..MockRunner::default() }), open)
    }

    async fn generate(
        &self,
        messages: impl IntoIterator<Item = GenerateRequest>,
    ) -> Result<Streaming<GenerateResponse>, Status> {
        let messages = messages.into_iter().collect::<Vec<_>>();
        let stream = self.client.clone().generate(tokio_stream::iter(messages)).await?;
        Ok(stream.into_inner())
    }

    /// Waits until nothing runs or waits, and every page is given back.
    async fn is_idle(&self) {
        let door = self.engine.door();
        let load = door.load_becomes(|load| load.num_running + load.num_waiting == 0).await;
        assert_eq!((load.kv.live_slots, load.kv.mapped_bytes), (0, 0));
    }
}

fn opens(opening: GenerateOpening) -> GenerateRequest {
    GenerateRequest { message: Some(Message::Opening(opening)) }
}

fn prompt(token_ids: &[u32], last: bool) -> GenerateRequest {
    let chunk = PromptChunk { token_ids: token_ids.to_vec(), last: Some(last) };
    GenerateRequest { message: Some(Message::Prompt(chunk)) }
}

/// What a client got in the end: tokens by sequence, and how each finished.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    num_messages: usize,
    prompt_tokens: Option<u32>,
    tokens: Vec<Vec<u32>>,
    reasons: Vec<Option<FinishReason>>,
}

async fn hear(mut stream: Streaming<GenerateResponse>, num_sequences: usize) -> Result<Heard, Status> {
    let mut heard = Heard {
        tokens: vec![Vec::new(); num_sequences],
        reasons: vec![None; num_sequences],
        ..Heard::default()
    };
    while let Some(response) = stream.message().await? {
        heard.num_messages += 1;
        match response.message.unwrap() {
            generate_response::Message::PromptInfo(info) => heard.prompt_tokens = info.prompt_tokens,
            generate_response::Message::Tokens(tokens) => {
                let idx = tokens.sequence_idx.unwrap() as usize;
                assert_eq!(heard.reasons[idx], None, "a token after the end");
                heard.tokens[idx].extend(tokens.token_ids);
            }
            generate_response::Message::Finish(finish) => {
                let reason = finish.reason();
                assert_eq!(finish.vocabulary_fingerprint.as_deref(), Some("f00d"));
                let idx = finish.sequence_idx.unwrap() as usize;
                assert_eq!(heard.reasons[idx].replace(reason), None, "two ends");
            }
        }
    }
    Ok(heard)
}

fn expected(prompt: &[u32], sequence_idx: u32, max_tokens: usize) -> Vec<u32> {
    alone(prompt, sequence_idx, max_tokens).0.into_iter().map(|token| token.0).collect()
}

fn code(status: &Status) -> Code {
    Error::from(status).code()
}

#[tokio::test]
async fn a_request_over_the_wire() {
    let served = Served::new(MockRunner::default());
    let opening = GenerateOpening { num_sequences: Some(2), ..max_tokens("a", 12) };
    let stream = served.generate([opens(opening), prompt(&[1, 2], false), prompt(&[3], true)]).await.unwrap();
    let heard = hear(stream, 2).await.unwrap();
    assert_eq!(heard.prompt_tokens, Some(3));
    assert_eq!(heard.tokens, [expected(&[1, 2, 3], 0, 12), expected(&[1, 2, 3], 1, 12)]);
    assert!(heard.reasons.iter().all(|reason| *reason == Some(FinishReason::Length)));
    served.is_idle().await;
}

#[tokio::test]
async fn log_probabilities_stand_beside_their_tokens() {
    let served = Served::new(MockRunner::default());
    let logprobs = Some(LogprobParams { num_output: Some(1), num_prompt: Some(1) });
    let opening = GenerateOpening { logprobs, ..max_tokens("a", 2) };
    let mut stream = served.generate([opens(opening), prompt(&[1, 2, 3], true)]).await.unwrap();
    let Some(generate_response::Message::PromptInfo(info)) = stream.message().await.unwrap().unwrap().message
    else {
        panic!("the prompt comes first");
    };
    let of_prompt: Vec<_> = info.logprobs.iter().map(|l| (l.token_id, l.logprob)).collect();
    assert_eq!(of_prompt, [(Some(1), None), (Some(2), Some(-1.0)), (Some(3), Some(-2.0))]);
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(generate_response::Message::Tokens(tokens)) = response.message {
            let of_output: Vec<_> = tokens.logprobs.iter().map(|l| l.token_id.unwrap()).collect();
            assert_eq!(of_output, tokens.token_ids);
        }
    }
}

#[tokio::test]
async fn a_burst_of_tokens_is_one_message() {
    let (served, open) = Served::gated();
    let opening = GenerateOpening { sampling: Some(SamplingParams::default()), ..max_tokens("a", 20) };
    let stream = served.generate([opens(opening), prompt(&[1], true)]).await.unwrap();
    open.send(()).unwrap();
    let door = served.engine.door();
    door.load_becomes(|load| load.num_running == 1).await;
    drop(open);
    // This thread is the one that would send: it is held until all tokens are there.
    while door.load().num_running > 0 {
        std::thread::yield_now();
    }
    let heard = hear(stream, 1).await.unwrap();
    assert_eq!(heard.tokens[0], expected(&[1], 0, 20));
    assert!(heard.num_messages <= 5, "{} messages", heard.num_messages);
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let served = Served::new(MockRunner::default());
    let temperature = SamplingParams { temperature: Some(f32::NAN), ..SamplingParams::default() };
    let cases = [
        (Code::InvalidArgument, "opening", vec![prompt(&[1], true)]),
        (Code::InvalidArgument, "opening", vec![GenerateRequest { message: None }]),
        (Code::InvalidArgument, "opening", vec![]),
        (
            Code::InvalidArgument,
            "temperature",
            vec![opens(GenerateOpening { sampling: Some(temperature), ..opening("a") })],
        ),
        (Code::InvalidArgument, "prompt", vec![opens(opening("a"))]),
        (Code::InvalidArgument, "prompt", vec![opens(opening("a")), prompt(&[1], false)]),
        (Code::InvalidArgument, "prompt", vec![opens(opening("a")), prompt(&[], true)]),
        (Code::InvalidArgument, "prompt", vec![opens(opening("a")), opens(opening("a"))]),
        (Code::InvalidArgument, "prompt", vec![opens(opening("a")), prompt(&[100], true)]),
        (Code::ContextLengthExceeded, "prompt", vec![opens(opening("a")), prompt(&[1; 64], true)]),
        (
            Code::VocabularyMismatch,
            "vocabulary_fingerprint",
            vec![opens(GenerateOpening { vocabulary_fingerprint: Some("x".to_owned()), ..opening("a") })],
        ),
    ];
    for (expected, param, messages) in cases {
        let shown = format!("{messages:?}");
        // Its predecessor is gone from the core before the same id comes again.
        served.is_idle().await;
        let status = served.generate(messages).await.expect_err(&shown);
        let error = Error::from(&status);
        assert_eq!((error.code(), error.param()), (expected, Some(param)), "{shown}: {error}");
    }
    served.is_idle().await;
    assert_eq!(served.lifecycle.num_requests(), 0);
}

#[tokio::test]
async fn a_prompt_that_does_not_come_is_not_waited_for() {
    let config = Config { prompt_timeout: Duration::from_millis(50), ..Config::default() };
    let served = Served::with(MockRunner::default(), config);
    let (messages, stream) = mpsc::channel(4);
    messages.send(opens(opening("a"))).await.unwrap();
    messages.send(prompt(&[1, 2], false)).await.unwrap();
    let status = served.client.clone().generate(ReceiverStream::new(stream)).await.unwrap_err();
    assert_eq!(code(&status), Code::DeadlineExceeded);
    served.is_idle().await;
}

#[tokio::test]
async fn dropping_the_stream_frees_the_slot() {
    let (served, open) = Served::gated();
    let stream = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    open.send(()).unwrap();
    served.engine.door().load_becomes(|load| load.kv.live_slots == 1).await;
    drop(stream);
    drop(open);
    served.is_idle().await;
}

#[tokio::test]
async fn an_abort_frees_and_says_so() {
    let (served, open) = Served::gated();
    let stream = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    open.send(()).unwrap();
    served.engine.door().load_becomes(|load| load.kv.live_slots == 1).await;
    drop(open);
    let mut client = served.client.clone();
    let abort = |id: &str| AbortRequest { request_id: Some(id.to_owned()), reason: None };
    let aborted = client.abort(abort("a")).await.unwrap().into_inner();
    let heard = hear(stream, 1).await.unwrap();
    // It may have reached its end before the abort came.
    if aborted.found() {
        assert_eq!(aborted.freed_sequences(), 1);
        assert!(aborted.freed_kv_bytes() > 0);
        assert_eq!(heard.reasons, [Some(FinishReason::Aborted)]);
    }
    let unknown = client.abort(abort("b")).await.unwrap().into_inner();
    assert_eq!((unknown.found, unknown.freed_sequences), (Some(false), Some(0)));
    assert_eq!(code(&client.abort(AbortRequest::default()).await.unwrap_err()), Code::InvalidArgument);
    served.is_idle().await;
}

#[tokio::test]
async fn an_abort_reaches_a_prompt_that_is_still_arriving() {
    let served = Served::new(MockRunner::default());
    let (messages, stream) = mpsc::channel(4);
    messages.send(opens(opening("a"))).await.unwrap();
    let mut client = served.client.clone();
    let generating = served.lifecycle.spawn("client", async move {
        client.generate(ReceiverStream::new(stream)).await.map(Response::into_inner)
    });
    served.engine.door().load_becomes(|load| load.num_waiting == 1).await;
    let request = AbortRequest { request_id: Some("a".to_owned()), reason: Some("test".to_owned()) };
    assert!(served.client.clone().abort(request).await.unwrap().into_inner().found());
    let heard = hear(generating.await.unwrap().unwrap(), 1).await.unwrap();
    assert_eq!(heard.reasons, [Some(FinishReason::Aborted)]);
    served.is_idle().await;
}

#[tokio::test]
async fn draining_refuses_the_new_and_finishes_the_old() {
    let (served, open) = Served::gated();
    let stream = served.generate([opens(max_tokens("a", 9)), prompt(&[1, 2], true)]).await.unwrap();
    served.lifecycle.begin_drain();
    assert!(!served.engine.is_ready());
    let refused = served.generate([opens(opening("b")), prompt(&[1], true)]).await.unwrap_err();
    assert_eq!(code(&refused), Code::ShuttingDown);
    drop(open);
    assert_eq!(hear(stream, 1).await.unwrap().tokens[0], expected(&[1, 2], 0, 9));
    assert_eq!(
        served.lifecycle.shut_down(Duration::from_secs(10), Duration::from_secs(10)).await.unwrap(),
        0
    );
}

#[tokio::test]
async fn stopping_ends_what_still_runs() {
    let (served, open) = Served::gated();
    let stream = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    open.send(()).unwrap();
    served.engine.door().load_becomes(|load| load.kv.live_slots == 1).await;
    // The stop is seen after the step that the gate holds up; there are words for a few.
    let lifecycle = served.lifecycle.clone();
    let stopping = served.lifecycle.spawn("test", async move {
        lifecycle.stopped().await;
        drop(open)
    });
    let hearing = tokio::time::timeout(Duration::from_secs(10), hear(stream, 1));
    let cut = served.lifecycle.shut_down(Duration::ZERO, Duration::from_secs(10));
    let (heard, cut) = tokio::join!(hearing, cut);
    assert_eq!(cut.unwrap(), 1);
    assert!(heard.unwrap().is_err(), "the stream says that it was cut");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_lost_engine_says_so_everywhere() {
    let runner = MockRunner { fault: Some(Fault::Panic { step: 2 }), ..MockRunner::default() };
    let served = Served::new(runner);
    assert!(served.engine.is_ready());
    let failed = served.engine.failed();
    let stream = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    let status = hear(stream, 1).await.unwrap_err();
    assert_eq!(code(&status), Code::Unavailable);
    assert!(failed.await.contains("told to panic"));
    assert!(!served.engine.is_ready());
    let refused = served.generate([opens(opening("b")), prompt(&[1], true)]).await.unwrap_err();
    assert_eq!(code(&refused), Code::Unavailable);
    served.lifecycle.shut_down(Duration::ZERO, Duration::from_secs(10)).await.unwrap();
}

/// A core whose thread is in a device that never answers, behind a real socket: nobody hears of it from the core.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_is_given_up_and_says_so_everywhere() {
    let (open, gate) = sync_channel(1024);
    let runner = MockRunner { gate: Some(gate), ..MockRunner::default() };
    let limit = Duration::from_millis(300);
    let config = Config { watchdog_timeout: Some(limit), ..Config::default() };
    let lifecycle = Lifecycle::new();
    let engine = Engine::start(&config, model(), runner, mock_kv(24), &lifecycle).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(engine.service());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let serving = server.serve_with_incoming_shutdown(incoming, lifecycle.stopped());
    lifecycle.spawn("server", async move { serving.await.unwrap() });
    let client = EngineClient::new(fused_transport::connect(&url).unwrap());
    let served = Served { engine, client, lifecycle };

    let failed = served.engine.failed();
    let running = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    // A prompt that is still on its way.
    let (messages, stream) = mpsc::channel(4);
    messages.send(opens(opening("b"))).await.unwrap();
    let mut client = served.client.clone();
    let arriving =
        served.lifecycle.spawn("client", async move { client.generate(ReceiverStream::new(stream)).await });
    assert_eq!(code(&hear(running, 1).await.unwrap_err()), Code::Unavailable);
    let arriving = arriving.await.unwrap().unwrap().into_inner();
    assert_eq!(code(&hear(arriving, 1).await.unwrap_err()), Code::Unavailable);
    let reason = failed.await;
    assert!(reason.contains("no progress for"), "{reason}");
    assert!(!served.engine.is_ready());
    let mut client = served.client.clone();
    let status = client.get_model(GetModelRequest {}).await.unwrap_err();
    assert_eq!(code(&status), Code::Unavailable);
    assert!(status.message().contains(&reason), "{status}");
    let refused = served.generate([opens(opening("c")), prompt(&[1], true)]).await.unwrap_err();
    assert_eq!(code(&refused), Code::Unavailable);
    let abort = AbortRequest { request_id: Some("a".to_owned()), reason: None };
    assert_eq!(code(&client.abort(abort).await.unwrap_err()), Code::Unavailable);
    // If the device answers after all, the core ends and is not used any more.
    drop((open, messages));
    served.lifecycle.shut_down(Duration::from_secs(10), Duration::from_secs(10)).await.unwrap();
    assert!(!served.engine.is_ready());
}

#[tokio::test]
async fn one_of_several_sequences_ends_when_its_client_has_enough() {
    let (served, open) = Served::gated();
    let (messages, stream) = mpsc::channel(8);
    let opening = GenerateOpening { num_sequences: Some(2), ..max_tokens("a", 12) };
    messages.send(opens(opening)).await.unwrap();
    messages.send(prompt(&[1, 2, 3], true)).await.unwrap();
    let finish = |idx| {
        let finish = FinishSequence { sequence_idx: Some(idx) };
        GenerateRequest { message: Some(Message::Finish(finish)) }
    };
    // Before the prompt is answered it is not read.
    messages.send(finish(1)).await.unwrap();
    let stream = served.client.clone().generate(ReceiverStream::new(stream)).await.unwrap().into_inner();
    // Step by step, until the one has been ended; a client's half is read while it listens.
    let door = served.engine.door();
    let stepping = async move {
        let ended = door.load_becomes(|load| load.kv.live_slots == 1);
        tokio::pin!(ended);
        while tokio::time::timeout(Duration::from_millis(20), &mut ended).await.is_err() {
            open.send(()).unwrap();
        }
    };
    let (heard, ()) = tokio::join!(hear(stream, 2), stepping);
    let heard = heard.unwrap();
    assert_eq!(heard.tokens[0], expected(&[1, 2, 3], 0, 12));
    assert!(heard.tokens[1].len() < 12 && expected(&[1, 2, 3], 1, 12).starts_with(&heard.tokens[1]));
    assert_eq!(heard.reasons, [Some(FinishReason::Length), Some(FinishReason::Stop)]);
    served.is_idle().await;
}

#[tokio::test]
async fn behind_the_prompt_a_client_can_only_end_sequences_that_it_has() {
    let finish = FinishSequence { sequence_idx: Some(1) };
    let finish = GenerateRequest { message: Some(Message::Finish(finish)) };
    for (behind, param) in [(finish, "sequence_idx"), (prompt(&[1], true), "finish")] {
        let served = Served::new(MockRunner::default());
        let messages = [opens(max_tokens("a", 40)), prompt(&[1, 2], true), behind];
        // It may have been answered whole before the client's half is read.
        if let Err(status) = hear(served.generate(messages).await.unwrap(), 1).await {
            let error = Error::from(&status);
            assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some(param)), "{error}");
        }
        served.is_idle().await;
    }
}

#[tokio::test]
async fn model_and_load_are_told() {
    let (served, open) = Served::gated();
    let mut client = served.client.clone();
    let told = client.get_model(GetModelRequest {}).await.unwrap().into_inner();
    assert_eq!((told.id(), told.vocabulary_fingerprint(), told.vocab_size()), ("mock", "f00d", 100));
    assert_eq!((told.max_model_len(), &told.eos_token_ids[..]), (64, &[99][..]));
    let stream = served.generate([opens(max_tokens("a", 60)), prompt(&[1, 2], true)]).await.unwrap();
    open.send(()).unwrap();
    served.engine.door().load_becomes(|load| load.kv.live_slots == 1).await;
    let load = client.get_load(GetLoadRequest {}).await.unwrap().into_inner();
    assert_eq!((load.running_sequences(), load.max_running_sequences()), (1, NUM_SLOTS as u32));
    assert!(load.kv_bytes_mapped() > 0 && load.kv_bytes_total() == 24 * 32);
    drop((open, stream));
    served.is_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_with_some_leaving() {
    let served = Served::new(MockRunner::default());
    let requests = (0..64u32).map(|idx| {
        let served = &served;
        async move {
            let prompt_ids: Vec<u32> = (0..1 + idx % 20).map(|token| (token * 7 + idx) % 98).collect();
            let messages = [opens(max_tokens(&idx.to_string(), 30)), prompt(&prompt_ids, true)];
            let mut stream = served.generate(messages).await.unwrap();
            if idx % 5 == 0 {
                // Reads a little and goes.
                stream.next().await.unwrap().unwrap();
                return;
            }
            let heard = hear(stream, 1).await.unwrap();
            assert_eq!(heard.tokens[0], expected(&prompt_ids, 0, 30), "request {idx}");
        }
    });
    futures_util::future::join_all(requests).await;
    served.is_idle().await;
    // The streams are dropped by the server's tasks, which may be a moment late.
    served.lifecycle.shut_down(Duration::from_secs(10), Duration::from_secs(10)).await.unwrap();
    assert_eq!(served.lifecycle.num_requests(), 0);
}
