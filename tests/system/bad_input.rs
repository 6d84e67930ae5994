//! Every bad request gets a 4xx that names the field, nothing is lost, and the server keeps serving.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::Server;
use serde_json::{Value, json};

/// One row of the table: a body and what the answer must say.
struct Row {
    route: &'static str,
    body: Value,
    status: u16,
    code: &'static str,
    /// The field the error names; empty: none.
    param: &'static str,
}

fn row(route: &'static str, body: Value, status: u16, code: &'static str, param: &'static str) -> Row {
    Row { route, body, status, code, param }
}

fn table() -> Vec<Row> {
    let completions = "/v1/completions";
    let chat = "/v1/chat/completions";
    let invalid = "invalid_argument";
    let prompt = |key: &str, value: Value| json!({"prompt": "x", "max_tokens": 1, key: value});
    let messages =
        |key: &str, value: Value| json!({"messages": [{"role": "user", "content": "x"}], key: value});
    vec![
        row(completions, prompt("model", json!("gpt-9")), 404, "model_not_found", "model"),
        row(completions, json!({"max_tokens": 1}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": []}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": []}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": {"text": "x"}}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": [1, 2, 99_999_999]}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": [1, -2]}), 400, invalid, "prompt"),
        row(completions, json!({"prompt": "word ".repeat(4000)}), 400, "context_length_exceeded", "prompt"),
        row(completions, json!({"prompt": vec![5; 1024]}), 400, "context_length_exceeded", "prompt"),
        row(completions, prompt("max_tokens", json!(-1)), 400, invalid, "max_tokens"),
        row(completions, prompt("max_tokens", json!("many")), 400, invalid, "max_tokens"),
        row(completions, prompt("max_tokens", json!(1.5)), 400, invalid, "max_tokens"),
        row(completions, prompt("max_tokens", json!(5000)), 400, "context_length_exceeded", "max_tokens"),
        row(completions, prompt("temperature", json!(-0.1)), 400, invalid, "temperature"),
        row(completions, prompt("temperature", json!(2.1)), 400, invalid, "temperature"),
        row(completions, prompt("top_p", json!(0)), 400, invalid, "top_p"),
        row(completions, prompt("top_k", json!(-2)), 400, invalid, "top_k"),
        row(completions, prompt("min_p", json!(1.1)), 400, invalid, "min_p"),
        row(completions, prompt("repetition_penalty", json!(0)), 400, invalid, "repetition_penalty"),
        row(completions, prompt("presence_penalty", json!(3)), 400, invalid, "presence_penalty"),
        row(completions, prompt("frequency_penalty", json!(-3)), 400, invalid, "frequency_penalty"),
        row(completions, prompt("logit_bias", json!({"x": 1})), 400, invalid, "logit_bias"),
        row(completions, prompt("logit_bias", json!({"8192": 1})), 400, invalid, "logit_bias"),
        row(completions, prompt("stop", json!("")), 400, invalid, "stop"),
        row(completions, prompt("stop_token_ids", json!([9_000_000])), 400, invalid, "stop_token_ids"),
        row(completions, prompt("n", json!(0)), 400, invalid, "n"),
        row(completions, prompt("n", json!(1000)), 400, invalid, "n"),
        row(completions, prompt("logprobs", json!(21)), 400, invalid, "logprobs"),
        row(completions, prompt("min_tokens", json!(2)), 400, invalid, "min_tokens"),
        row(
            completions,
            prompt("stream_options", json!({"include_usage": true})),
            400,
            invalid,
            "stream_options",
        ),
        row(completions, prompt("suffix", json!("end")), 400, "unsupported", "suffix"),
        row(completions, json!([1, 2]), 400, invalid, ""),
        row(chat, json!({}), 400, invalid, "messages"),
        row(chat, json!({"messages": []}), 400, invalid, "messages"),
        row(chat, json!({"messages": [{"role": "", "content": "x"}]}), 400, invalid, "messages[0].role"),
        row(chat, messages("top_logprobs", json!(2)), 400, invalid, "top_logprobs"),
        row(chat, messages("max_completion_tokens", json!(-5)), 400, invalid, "max_completion_tokens"),
        row(
            chat,
            messages("response_format", json!({"type": "json_object"})),
            400,
            "unsupported",
            "response_format",
        ),
        row("/tokenize", json!({}), 400, invalid, "prompt"),
        row("/detokenize", json!({"tokens": [99_999_999]}), 400, invalid, "tokens"),
        row("/v1/nothing", json!({}), 404, "not_found", ""),
        row("/v1/models", json!({}), 405, "method_not_allowed", ""),
    ]
}

async fn assert_serves(server: &Server) {
    let request = json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 4, "temperature": 0});
    let (status, answer) = server.post("/v1/completions", &request).await.unwrap();
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let server =
        Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &["serve", "--port", "0"], &[]).unwrap();
    let mut wrong = Vec::new();
    for Row { route, body, status, code, param } in table() {
        let (got, answer) = server.post(route, &body).await.unwrap();
        let error = &answer["error"];
        let got_param = error["param"].as_str().unwrap_or_default();
        let is_named = if param.is_empty() { got_param.is_empty() } else { got_param.starts_with(param) };
        let is_whole =
            error["message"].as_str().is_some_and(|message| message.len() > 10) && error["type"].is_string();
        if got != status || error["code"] != code || !is_named || !is_whole {
            let body: String = body.to_string().chars().take(90).collect();
            wrong.push(format!("{route} {body}: wanted {status} {code} {param}, got {got} {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_serves(&server).await;
    for gauge in ["fused_engine_slots_in_use", "fused_gateway_requests_in_flight"] {
        server.wait_for_metric(gauge, 0.0).await.unwrap();
    }
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let server =
        Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &["serve", "--port", "0"], &[]).unwrap();
    let json_type = "application/json";
    let cases: [(&str, Vec<u8>, u16, &str); 7] = [
        (json_type, b"{\"prompt\": \"x\"".to_vec(), 400, "invalid_argument"),
        (json_type, b"".to_vec(), 400, "invalid_argument"),
        (json_type, b"{\"prompt\": \"\xff\xfe\"}".to_vec(), 400, "invalid_argument"),
        (json_type, b"{\"prompt\": \"\\ud800\"}".to_vec(), 400, "invalid_argument"),
        (json_type, vec![b'['; 100_000], 400, "invalid_argument"),
        (json_type, vec![b' '; 10 << 20], 413, "payload_too_large"),
        ("text/plain", b"{\"prompt\": \"x\"}".to_vec(), 415, "unsupported_media_type"),
    ];
    for (content_type, body, status, code) in cases {
        let start: String = String::from_utf8_lossy(&body).chars().take(30).collect();
        let request = server.http.post(server.url("/v1/completions")).header("content-type", content_type);
        let answer = request.body(body).send().await.unwrap();
        let got = answer.status().as_u16();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!((got, answer["error"]["code"].as_str().unwrap()), (status, code), "{start}: {answer}");
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn keys_are_asked_for_everywhere_but_health() {
    let arguments = ["serve", "--port", "0", "--api-key", "right", "--api-key", "also-right"];
    let server = Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap();
    let routes =
        ["/v1/models", "/v1/models/demo-llama-tldr", "/metrics", "/version", "/tokenize", "/no/such/route"];
    for path in routes {
        for key in [None, Some("wrong"), Some("right "), Some("")] {
            let request = server.http.get(server.url(path));
            let request =
                key.map_or_else(|| server.http.get(server.url(path)), |key| request.bearer_auth(key));
            let answer = request.send().await.unwrap();
            // A trailing blank is no part of a header's value: that key is right.
            if key == Some("right ") {
                continue;
            }
            assert_eq!(answer.status(), 401, "{path} with {key:?}");
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["error"]["code"], "invalid_api_key");
        }
    }
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).await.unwrap().0, 200, "{path}");
    }
    for key in ["right", "also-right"] {
        let answer = server.http.get(server.url("/v1/models")).bearer_auth(key).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}
