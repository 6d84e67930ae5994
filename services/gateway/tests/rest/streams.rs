//! Streamed answers, byte by byte, and what becomes of one whose client goes.

use std::time::Duration;

use fused_gateway::Config;
use fused_proto::common::v1::FinishReason;
use fused_proto::text::v1::GenerateRequest;
use fused_status::{Code, Error};
use http::StatusCode;
use http_body::Body as _;
use serde_json::{Value, json};

use crate::fake::{End, Fake, Script, finish, hello, prompt_info, text, usage};
use crate::rig::{Reply, Rig, post};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = r#""messages": [{"role": "user", "content": "Hi"}]"#;

/// The body with id and time, which differ from run to run, put to fixed values.
fn golden(reply: &Reply) -> String {
    let mut lines = Vec::new();
    for event in reply.events() {
        let Ok(value) = serde_json::from_str::<Value>(event) else {
            lines.push(event.to_owned());
            continue;
        };
        let id = value["id"].as_str().unwrap_or_default();
        let unique = id.split_once('-').unwrap_or_default().1;
        let created = format!("\"created\":{}", value["created"]);
        lines.push(event.replace(unique, "ID").replace(&created, "\"created\":0"));
    }
    lines.join("\n")
}

#[tokio::test]
async fn the_chunks_of_a_chat() {
    let rig = Rig::hello();
    let reply = rig.post(CHAT, &format!("{{{MESSAGES}, \"stream\": true}}")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    assert_eq!(reply.headers["x-accel-buffering"], "no");
    let head = concat!(
        r#"{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"org/demo","#,
        r#""system_fingerprint":"fused-0123456789ab","choices":[{"index":0,"delta":"#
    );
    let expected = [
        format!(
            r#"{head}{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null,"stop_reason":null}}]}}"#
        ),
        format!(
            r#"{head}{{"content":"Hello"}},"logprobs":null,"finish_reason":null,"stop_reason":null}}]}}"#
        ),
        format!(
            r#"{head}{{"content":" world"}},"logprobs":null,"finish_reason":null,"stop_reason":null}}]}}"#
        ),
        format!(r#"{head}{{}},"logprobs":null,"finish_reason":"stop","stop_reason":null}}]}}"#),
        "[DONE]".to_owned(),
    ];
    assert_eq!(golden(&reply), expected.join("\n"));
}

#[tokio::test]
async fn the_chunks_of_a_completion_with_usage_at_the_end() {
    let rig = Rig::hello();
    let body = r#"{"prompt": "a", "stream": true, "stream_options": {"include_usage": true}}"#;
    let reply = rig.post(COMPLETIONS, body).await;
    let head = concat!(
        r#"{"id":"cmpl-ID","object":"text_completion","created":0,"model":"org/demo","#,
        r#""system_fingerprint":"fused-0123456789ab","choices":["#
    );
    let choice = |text: &str, finish: &str| {
        format!(
            r#"{head}{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish},"stop_reason":null}}],"usage":null}}"#
        )
    };
    let usage = concat!(
        r#"],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"#,
        r#""prompt_tokens_details":{"cached_tokens":1},"prompt_base_tokens":4,"completion_base_tokens":5}}"#
    );
    let expected = [
        choice("Hello", "null"),
        choice(" world", "null"),
        choice("", "\"stop\""),
        format!("{head}{usage}"),
        "[DONE]".to_owned(),
    ];
    assert_eq!(golden(&reply), expected.join("\n"));
}

#[tokio::test]
async fn usage_on_every_chunk_only_grows() {
    let rig = Rig::hello();
    let options =
        r#""stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}"#;
    let reply = rig.post(CHAT, &format!("{{{MESSAGES}, \"n\": 2, {options}}}")).await;
    let events = reply.events();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let totals: Vec<u64> = chunks
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap()["usage"]["total_tokens"].as_u64().unwrap())
        .collect();
    // Two roles, two pieces of text for each choice, two ends; then the text service's own count.
    assert_eq!(totals, [3, 3, 4, 5, 6, 6, 7, 7, 5]);
    let last: Value = serde_json::from_str(chunks.last().unwrap()).unwrap();
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
}

#[tokio::test]
async fn every_choice_gets_its_role_first_and_its_end_last() {
    let rig = Rig::hello();
    let reply = rig.post(CHAT, &format!("{{{MESSAGES}, \"n\": 3, \"stream\": true}}")).await;
    for index in 0..3 {
        let mut deltas = Vec::new();
        for event in reply.events() {
            let Ok(chunk) = serde_json::from_str::<Value>(event) else { continue };
            let choice = chunk["choices"][0].clone();
            if choice["index"] == index {
                deltas.push((choice["delta"].clone(), choice["finish_reason"].clone()));
            }
        }
        assert_eq!(
            deltas,
            [
                (json!({"role": "assistant", "content": ""}), json!(null)),
                (json!({"content": "Hello"}), json!(null)),
                (json!({"content": " world"}), json!(null)),
                (json!({}), json!("stop")),
            ]
        );
    }
}

#[tokio::test]
async fn a_streamed_echo_comes_once_for_each_choice() {
    let rig = Rig::hello();
    let body = r#"{"prompt": ["a", "b"], "echo": true, "stream": true, "return_token_ids": true}"#;
    let reply = rig.post(COMPLETIONS, body).await;
    for index in 0..2 {
        let mut text = String::new();
        let mut ids = Vec::new();
        for event in reply.events() {
            let Ok(chunk) = serde_json::from_str::<Value>(event) else { continue };
            let choice = &chunk["choices"][0];
            if choice["index"] == index {
                text.push_str(choice["text"].as_str().unwrap());
                ids.extend(choice["prompt_token_ids"].as_array().cloned().unwrap_or_default());
                ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
            }
        }
        assert_eq!(text, "Hé Hello world");
        assert_eq!(Value::from(ids), json!([1, 2, 3, 5, 6]));
    }
}

#[tokio::test]
async fn an_error_inside_a_stream_is_an_event_and_then_done() {
    let failing = |_: &GenerateRequest| Script {
        refusal: None,
        messages: vec![prompt_info(), text(0, "Hel")],
        end: End::Failure(Error::new(Code::SlowReader, "the client did not read fast enough")),
    };
    let rig = Rig::new(Config::default(), Fake::new(failing));
    let reply = rig.post(CHAT, &format!("{{{MESSAGES}, \"stream\": true}}")).await;
    assert_eq!(reply.status, StatusCode::OK);
    let events = reply.events();
    let error: Value = serde_json::from_str(events[2]).unwrap();
    assert_eq!(
        error,
        json!({"error": {"message": "the client did not read fast enough", "type": "rate_limit_error",
            "param": null, "code": "slow_reader"}})
    );
    assert_eq!(events[3..], ["[DONE]"]);
}

fn endless(_: &GenerateRequest) -> Script {
    Script { refusal: None, messages: vec![prompt_info(), text(0, "Hel")], end: End::Never }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it did not happen")
}

#[tokio::test]
async fn a_client_that_goes_cancels_all_its_calls() {
    let rig = Rig::new(Config::default(), Fake::new(endless));
    let body = r#"{"prompt": ["a", "b", "c"], "stream": true}"#;
    let response = soon(rig.begin(post(COMPLETIONS, body))).await;
    assert_eq!(response.status(), StatusCode::OK);
    soon(rig.fake.open_streams(3)).await;
    assert_eq!(rig.lifecycle.num_requests(), 1);
    drop(response);
    soon(rig.fake.open_streams(0)).await;
    assert_eq!(rig.lifecycle.num_requests(), 0);
}

#[tokio::test]
async fn a_client_that_goes_before_the_head_cancels_too() {
    let rig = Rig::new(Config::default(), Fake::new(endless));
    {
        let waiting = rig.begin(post(COMPLETIONS, r#"{"prompt": "a"}"#));
        tokio::pin!(waiting);
        tokio::select! {
            _ = &mut waiting => panic!("an endless answer ended"),
            () = soon(rig.fake.open_streams(1)) => {}
        }
    }
    soon(rig.fake.open_streams(0)).await;
    assert_eq!(rig.lifecycle.num_requests(), 0);
}

#[tokio::test]
async fn a_failing_prompt_cancels_the_others() {
    let one_fails = |request: &GenerateRequest| {
        if request.request_id().ends_with("-1") {
            Script { refusal: Some(Error::new(Code::QueueFull, "full")), messages: vec![], end: End::Whole }
        } else {
            Script { refusal: None, messages: vec![], end: End::Never }
        }
    };
    let rig = Rig::new(Config::default(), Fake::new(one_fails));
    for body in [r#"{"prompt": ["a", "b"]}"#, r#"{"prompt": ["a", "b"], "stream": true}"#] {
        let reply = soon(rig.post(COMPLETIONS, body)).await;
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
        soon(rig.fake.open_streams(0)).await;
    }
}

#[tokio::test]
async fn the_head_does_not_wait_for_a_queue_forever() {
    let queued = |_: &GenerateRequest| Script { refusal: None, messages: vec![], end: End::Never };
    let config = Config { keep_alive_interval: Duration::from_millis(20), ..Config::default() };
    let rig = Rig::new(config, Fake::new(queued));
    let response = soon(rig.begin(post(COMPLETIONS, r#"{"prompt": "a", "stream": true}"#))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let frame = soon(std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx))).await;
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), ": keep-alive\n\n");
}

#[tokio::test]
async fn a_stream_that_has_ended_holds_nothing() {
    let rig = Rig::new(Config::default(), Fake::new(hello));
    let response = rig.begin(post(COMPLETIONS, r#"{"prompt": "a", "stream": true}"#)).await;
    assert_eq!(rig.lifecycle.num_requests(), 1);
    Reply::read(response).await;
    assert_eq!(rig.lifecycle.num_requests(), 0);
    soon(rig.fake.open_streams(0)).await;
}

#[tokio::test]
async fn text_that_ends_nothing_is_not_sent() {
    let silent = |_: &GenerateRequest| Script {
        refusal: None,
        messages: vec![
            prompt_info(),
            text(0, ""),
            text(0, "é"),
            finish(0, FinishReason::Length, None),
            usage(),
        ],
        end: End::Whole,
    };
    let rig = Rig::new(Config::default(), Fake::new(silent));
    let reply = rig.post(COMPLETIONS, r#"{"prompt": "a", "stream": true}"#).await;
    assert_eq!(reply.events().len(), 3, "{}", reply.body);
}
