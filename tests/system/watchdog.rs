//! An engine whose thread hangs, as in a device that never answers, is noticed and told everywhere, and the process ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use fused_proto::engine::v1 as engine_api;
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_testkit::{Server, run_to_end};
use futures_util::StreamExt;
use serde_json::json;
use tonic::Code;

/// Long enough that a busy machine does not hold up a healthy engine for it.
const WATCHDOG: [&str; 4] = ["--watchdog-timeout-s", "5", "--drain-timeout", "10"];

fn start(arguments: &[&str]) -> Server {
    let arguments = [arguments, &WATCHDOG].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
}

/// Whether a gRPC service says that it serves.
fn serves(server_url: &str, service: &str) -> bool {
    let address = server_url.strip_prefix("http://").unwrap();
    let probe = format!("grpc://{address}/{service}");
    run_to_end(Path::new(env!("CARGO_BIN_EXE_fused")), &["probe", &probe], &[]).unwrap().status.success()
}

async fn model(url: &str) -> Result<(), tonic::Status> {
    let mut engine = EngineClient::connect(url.to_owned()).await.unwrap();
    engine.get_model(engine_api::GetModelRequest {}).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_in_a_step_takes_the_process_with_it() {
    let server = start(&["serve", "--port", "0", "--grpc-port", "0"]);
    let grpc = server.urls[1].clone();
    let request = json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 1000, "n": 16, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let running = server.http.post(server.url("/v1/completions")).json(&request).send().await.unwrap();
    let mut chunks = running.bytes_stream();
    let mut body = chunks.next().await.unwrap().unwrap().to_vec();
    assert!(model(&grpc).await.is_ok() && serves(&grpc, ""));
    server.hold_thread("engine-core").unwrap();

    // The running request ends with an error.
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.unwrap());
    }
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("\"code\":\"unavailable\""), "{}", &body[body.len().saturating_sub(500)..]);
    // All who ask hear of it, the engine's own clients with the reason.
    let status = model(&grpc).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no progress for"), "{status}");
    assert!(!serves(&grpc, "") && !serves(&grpc, "fused.engine.v1.Engine"));
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "x"})).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    let asked = Instant::now();
    while server.get("/ready").await.unwrap().0 != 503 {
        assert!(asked.elapsed() < Duration::from_secs(5), "/ready does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.get("/health").await.unwrap().0, 200, "the process itself lives");
    let (status, log) = server.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the engine failed: the core has made no progress for"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_engine_that_does_not_wake_up_is_noticed_when_it_is_called() {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let url = engine.urls[0].clone();
    let mut client = EngineClient::connect(url.clone()).await.unwrap();
    let info = client.get_model(engine_api::GetModelRequest {}).await.unwrap().into_inner();
    engine.hold_thread("engine-core").unwrap();
    // Longer than it may hang: nobody wants anything of it.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(model(&url).await.is_ok(), "it rests");
    use engine_api::generate_request::Message;
    let opening = engine_api::GenerateOpening {
        request_id: Some("a".to_owned()),
        vocabulary_fingerprint: info.vocabulary_fingerprint.clone(),
        ..Default::default()
    };
    let chunk = engine_api::PromptChunk { token_ids: vec![1, 2, 3], last: Some(true) };
    let messages = [Message::Opening(opening), Message::Prompt(chunk)]
        .map(|message| engine_api::GenerateRequest { message: Some(message) });
    let mut answers = client.generate(tokio_stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    assert!(model(&url).await.unwrap_err().message().contains("has not woken up"));
    let (status, log) = engine.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
}
