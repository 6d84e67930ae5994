//! The gateway's door on real sockets: memory for requests, keys apart from each other, metrics without a key.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::Write;
use std::path::Path;

use fused_testkit::Server;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn start(arguments: &[&str]) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), arguments, &[]).unwrap()
}

async fn ask(server: &Server, key: &str, body: &Value) -> (u16, Value) {
    let request = server.http.post(server.url("/v1/completions")).bearer_auth(key).json(body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// A text of four megabytes in which nearly every byte is a token.
fn long_text() -> String {
    "~ `^ ".repeat((4 << 20) / 5 - 100)
}

#[tokio::test(flavor = "multi_thread")]
async fn long_texts_are_answered_or_refused_within_the_memory_that_is_set() {
    const BUFFERED: u64 = 48 << 20;
    let server = start(&["serve", "--port", "0", "--max-buffered-bytes", &BUFFERED.to_string()]);
    let body = json!({"prompt": long_text(), "return_token_strs": true}).to_string();
    let before = server.peak_memory_bytes().unwrap();
    let tokenize = async || {
        let request = server.http.post(server.url("/tokenize")).header("content-type", "application/json");
        let mut answer = request.body(body.clone()).send().await.unwrap();
        let status = answer.status().as_u16();
        let mut num_bytes = 0;
        while let Some(chunk) = answer.chunk().await.unwrap() {
            num_bytes += chunk.len();
        }
        // What is answered is answered whole: over a million tokens.
        assert!(status != 200 || num_bytes > 8 << 20, "{num_bytes}");
        status
    };
    let statuses = join_all((0..30).map(|_| tokenize())).await;
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    let grown = server.peak_memory_bytes().unwrap() - before;
    // Of the gateway, of the tokenizer, and as much again: texts at hand on two threads, and what the allocator keeps.
    assert!(grown < 4 * BUFFERED, "{} MiB", grown >> 20);
    server.complete(&json!({"prompt": "tar", "max_tokens": 1})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_only_announced_keep_nobody_waiting() {
    let server =
        start(&["serve", "--port", "0", "--max-buffered-bytes", "33554432", "--max-requests-in-flight", "8"]);
    let address = server.urls[0].trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        let head = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4194304\r\n\r\n{";
        connection.write_all(head.as_bytes()).await.unwrap();
        silent.push(connection);
    }
    let body = json!({"prompt": "word ".repeat(200_000)});
    for _ in 0..3 {
        let (status, answer) = server.post("/tokenize", &body).await.unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    server.complete(&json!({"prompt": "tar", "max_tokens": 1})).await.unwrap();
    server.wait_for_metric("fused_gateway_requests_in_flight", 0.0).await.unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_does_not_see_what_another_asked() {
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    writeln!(keys, "# Two of them.\nk-first\nk-second").unwrap();
    let path = keys.path().to_str().unwrap();
    let body = json!({"prompt": "word ".repeat(200), "max_tokens": 1});
    for (isolate, expected) in [(None, 0), (Some("false"), 1)] {
        let mut arguments = vec!["serve", "--port", "0", "--api-key-file", path];
        arguments.extend(isolate.into_iter().flat_map(|value| ["--isolate-prefix-cache", value]));
        let server = start(&arguments);
        let cached = async |key| {
            let (status, answer) = ask(&server, key, &body).await;
            assert_eq!(status, 200, "{answer}");
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        assert_eq!(cached("k-first").await, 0);
        assert!(cached("k-first").await > 0);
        assert_eq!(cached("k-second").await.min(1), expected);
        assert_eq!(ask(&server, "#", &body).await.0, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_port_of_their_own_and_ask_for_no_key() {
    let serve = start(&["serve", "--port", "0", "--metrics-port", "0", "--api-key", "k"]);
    let gateway = start(&["gateway", "--port", "0", "--metrics-port", "0", "--api-key", "k"]);
    for server in [serve, gateway] {
        assert_eq!(server.get("/metrics").await.unwrap().0, 401);
        let answer = server.http.get(format!("{}/metrics", server.urls[1])).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert!(answer.text().await.unwrap().contains("fused_gateway_errors_total"));
        server.terminate().unwrap();
        let (status, log) = server.wait().unwrap();
        assert!(status.success() && log.contains("process list"), "{status}: {log}");
    }
    let open = start(&["gateway", "--port", "0", "--host", "0.0.0.0"]);
    open.terminate().unwrap();
    let (_, log) = open.wait().unwrap();
    assert!(log.contains("no API key is set") && !log.contains("process list"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_limit_is_told_when_to_come_back_and_hurts_nobody() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "[[tenant]]\nname = \"small\"\nkeys = [\"k-small\"]\ntokens_per_minute = 40\n\n[[tenant]]\nname = \"large\"\n\
         keys = [\"k-large\"]"
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let server = start(&["serve", "--port", "0", "--metrics-port", "0", "--tenants-file", path]);
    let body = json!({"prompt": "tar", "max_tokens": 30, "ignore_eos": true});
    assert_eq!(ask(&server, "k-small", &body).await.0, 200);
    let (status, answer) = ask(&server, "k-small", &body).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(ask(&server, "k-large", &body).await.0, 200);
    let metrics = server.http.get(format!("{}/metrics", server.urls[1])).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for line in [
        "fused_gateway_tenant_tokens_total{tenant=\"small\",kind=\"completion\"} 30",
        "fused_gateway_tenant_tokens_total{tenant=\"large\",kind=\"completion\"} 30",
        "fused_gateway_tenant_refusals_total{tenant=\"small\",limit=\"tokens\"} 1",
        "fused_gateway_tenant_requests_in_flight{tenant=\"small\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("k-small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_prompts_and_no_tokens_are_legal() {
    let server = start(&["serve", "--port", "0"]);
    let answer = server.complete(&json!({"prompt": "", "max_tokens": 4, "temperature": 0})).await.unwrap();
    let bos = json!({"prompt": "<|endoftext|>", "max_tokens": 4, "temperature": 0});
    assert_eq!(answer["choices"], server.complete(&bos).await.unwrap()["choices"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 1);
    let none = server.complete(&json!({"prompt": ["tar", ""], "max_tokens": 0})).await.unwrap();
    for choice in none["choices"].as_array().unwrap() {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("length")));
    }
    assert_eq!(none["usage"]["completion_tokens"], 0);
    let messages = json!([{"role": "user", "content": "tar"}]);
    for field in ["max_tokens", "max_completion_tokens"] {
        let (status, answer) =
            server.post("/v1/chat/completions", &json!({"messages": messages, field: 0})).await.unwrap();
        assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("")), "{answer}");
    }
    assert_eq!(server.post("/tokenize", &json!({"prompt": ""})).await.unwrap().1["count"], 0);
}
