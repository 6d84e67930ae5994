//! The three services as three processes over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use fused_proto::engine::v1 as engine_api;
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::text::v1 as text_api;
use fused_proto::text::v1::text_generation_client::TextGenerationClient;
use fused_testkit::{Server, model_dir, run_to_end};
use serde_json::json;

fn start(arguments: &[&str]) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), arguments, &[]).unwrap()
}

struct Services {
    engine: Server,
    tokenizer: Server,
    gateway: Server,
}

fn services() -> Services {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    Services { engine, tokenizer, gateway }
}

async fn wait_ready(gateway: &Server, status: u16) {
    let started = Instant::now();
    loop {
        let (got, body) = gateway.get("/ready").await.unwrap();
        if got == status {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "/ready is {got}: {body}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apart_they_answer_as_together() {
    let services = services();
    wait_ready(&services.gateway, 200).await;
    let together = start(&["serve", "--port", "0"]);
    let request = json!({"prompt": "<|endoftext|># git rebase\n\n>", "max_tokens": 24, "temperature": 0});
    let (status, apart) = services.gateway.post("/v1/completions", &request).await.unwrap();
    assert_eq!(status, 200, "{apart}");
    let (_, together) = together.post("/v1/completions", &request).await.unwrap();
    assert_eq!(apart["choices"], together["choices"]);
    assert_eq!(apart["usage"], together["usage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_grpc_apis_answer_a_direct_client() {
    let services = services();
    wait_ready(&services.gateway, 200).await;
    let mut text = TextGenerationClient::connect(services.tokenizer.urls[0].clone()).await.unwrap();
    let model = text.get_model(text_api::GetModelRequest::default()).await.unwrap().into_inner();
    let prompt = text_api::prompt::Prompt::Text("<|endoftext|># tar\n\n>".to_owned());
    let prompt = text_api::Prompt { prompt: Some(prompt), add_special_tokens: None };
    let encoded = text
        .tokenize(text_api::TokenizeRequest { prompt: Some(prompt), ..Default::default() })
        .await
        .unwrap()
        .into_inner();

    let mut engine = EngineClient::connect(services.engine.urls[0].clone()).await.unwrap();
    let opening = engine_api::GenerateOpening {
        request_id: Some("direct".to_owned()),
        vocabulary_fingerprint: model.vocabulary_fingerprint.clone(),
        stopping: Some(fused_proto::common::v1::StoppingParams {
            max_tokens: Some(5),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let chunk =
        |token_ids: &[u32], last| engine_api::PromptChunk { token_ids: token_ids.to_vec(), last: Some(last) };
    let (first, rest) = encoded.token_ids.split_at(2);
    use engine_api::generate_request::Message;
    let messages = [
        Message::Opening(opening.clone()),
        Message::Prompt(chunk(first, false)),
        Message::Prompt(chunk(rest, true)),
    ]
    .map(|message| engine_api::GenerateRequest { message: Some(message) });
    let mut stream = engine.generate(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut num_tokens, mut num_infos, mut num_finishes) = (0, 0, 0);
    while let Some(answer) = stream.message().await.unwrap() {
        use engine_api::generate_response::Message;
        match answer.message.unwrap() {
            Message::PromptInfo(info) => {
                assert_eq!(info.prompt_tokens, Some(u32::try_from(encoded.token_ids.len()).unwrap()));
                num_infos += 1;
            }
            Message::Tokens(tokens) => num_tokens += tokens.token_ids.len(),
            Message::Finish(finish) => {
                assert_eq!(finish.reason(), fused_proto::common::v1::FinishReason::Length);
                assert_eq!(finish.vocabulary_fingerprint, model.vocabulary_fingerprint);
                num_finishes += 1;
            }
        }
    }
    assert_eq!((num_infos, num_tokens, num_finishes), (1, 5, 1));

    // Ids of another vocabulary are refused, and an abort of nobody says so.
    let other = engine_api::GenerateOpening { vocabulary_fingerprint: Some("0".repeat(64)), ..opening };
    let messages = [Message::Opening(other), Message::Prompt(chunk(&encoded.token_ids, true))]
        .map(|message| engine_api::GenerateRequest { message: Some(message) });
    let refused = match engine.generate(tokio_stream::iter(messages)).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let request = engine_api::AbortRequest { request_id: Some("nobody".to_owned()), reason: None };
    let answer = engine.abort(request).await.unwrap().into_inner();
    assert_eq!((answer.found, answer.freed_sequences), (Some(false), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_engine_is_told_and_a_new_one_is_found() {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let url = engine.urls[0].clone();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &url]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    wait_ready(&gateway, 200).await;
    drop(engine);
    let request = json!({"prompt": "x", "max_tokens": 1});
    let (status, answer) = gateway.post("/v1/completions", &request).await.unwrap();
    assert_eq!(status, 503, "{answer}");
    assert_eq!(answer["error"]["code"], "unavailable");
    wait_ready(&gateway, 503).await;
    let _engine = start(&["engine", "--grpc-port", &port]);
    wait_ready(&gateway, 200).await;
    let (status, answer) = gateway.post("/v1/completions", &request).await.unwrap();
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_another_vocabulary_is_not_used() {
    let engine = start(&["engine", "--grpc-port", "0", "--model", model_dir("demo-llama").to_str().unwrap()]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    // Longer than a right engine needs to be found.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (status, answer) =
        gateway.post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1})).await.unwrap();
    assert_eq!(status, 503, "{answer}");
    assert_eq!(gateway.get("/ready").await.unwrap().0, 503);
    // And that it is the vocabulary stands in the tokenizer's log, with both fingerprints.
    tokenizer.terminate().unwrap();
    let (_, log) = tokenizer.wait().unwrap();
    assert!(log.contains("has the vocabulary") && log.contains("but the tokenizer has"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_ports_tell_the_state() {
    let engine = start(&["engine", "--grpc-port", "0", "--metrics-port", "0"]);
    let address = engine.urls[0].strip_prefix("http://").unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_fused"));
    for service in ["", "fused.engine.v1.Engine"] {
        let probe = run_to_end(binary, &["probe", &format!("grpc://{address}/{service}")], &[]).unwrap();
        assert!(probe.status.success(), "{}", probe.stderr);
    }
    let unknown = run_to_end(binary, &["probe", &format!("grpc://{address}/no.Such")], &[]).unwrap();
    assert!(!unknown.status.success());
    let metrics = engine.http.get(format!("{}/metrics", engine.urls[1])).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("fused_engine_slots_in_use"));
    let nobody = run_to_end(binary, &["probe", "http://127.0.0.1:1/ready"], &[]).unwrap();
    assert!(!nobody.status.success());
    assert!(nobody.stderr.contains("127.0.0.1:1"), "{}", nobody.stderr);
}
