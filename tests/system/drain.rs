//! SIGTERM drains: no new requests, running ones finish up to the grace time, exit status 0.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use fused_testkit::{Server, events};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::json;

fn serve(drain_timeout: &str) -> Server {
    let arguments = ["serve", "--port", "0", "--drain-timeout", drain_timeout];
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn running_requests_finish_and_new_ones_are_refused() {
    let server = serve("30");
    // Long enough for the refusals below to fall into it.
    let request = json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 900, "n": 8, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let running = server.http.post(server.url("/v1/completions")).json(&request).send().await.unwrap();
    let mut chunks = running.bytes_stream();
    let mut body = chunks.next().await.unwrap().unwrap().to_vec();
    server.terminate().unwrap();

    // The stage changes a moment after the signal.
    let refused = loop {
        let answer = server.post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1})).await.unwrap();
        if answer.0 != 200 {
            break answer;
        }
    };
    assert_eq!(refused.0, 503, "{}", refused.1);
    assert_eq!(refused.1["error"]["code"], "shutting_down");
    assert_eq!(server.get("/ready").await.unwrap().0, 503);
    assert_eq!(server.get("/health").await.unwrap().0, 200);

    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.unwrap());
    }
    let events = events(&String::from_utf8(body).unwrap()).unwrap();
    assert!(events.is_done);
    assert_eq!(events.finish_reasons(0), ["length"]);
    let (status, log) = server.wait().unwrap();
    assert!(status.success(), "{status}: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_accepted_before_finishes_at_any_stage() {
    let server = serve("60");
    // Prompts that are being read, encoded and queued when the signal comes.
    let requests = (0..60).map(|idx| {
        let prompt = format!("<|endoftext|># tar {idx}\n").repeat(60);
        let request = json!({"prompt": prompt, "max_tokens": 8, "ignore_eos": true});
        let server = &server;
        async move { server.post("/v1/completions", &request).await }
    });
    let signal = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.terminate().unwrap();
    };
    let (answers, ()) = tokio::join!(join_all(requests), signal);
    let mut num_finished = 0;
    // One that came when the port was closed has no answer.
    for (status, body) in answers.into_iter().flatten() {
        if status == 200 {
            num_finished += 1;
        } else {
            assert_eq!((status, &body["error"]["code"]), (503, &json!("shutting_down")), "{body}");
        }
    }
    let (status, log) = server.wait().unwrap();
    assert!(status.success(), "{status}: {log}");
    let draining = log.lines().find(|line| line.contains("draining")).unwrap();
    let (_, number) = draining.split_once("requests=").unwrap();
    let num_accepted: u32 = number.split_whitespace().next().unwrap().parse().unwrap();
    assert!(num_finished >= num_accepted, "{num_finished} finished of {num_accepted}: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_time_is_kept() {
    let server = serve("1");
    // More than a second of work: many long sequences.
    let request = json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 1000, "n": 48, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let running = server.http.post(server.url("/v1/completions")).json(&request).send().await.unwrap();
    let mut chunks = running.bytes_stream();
    chunks.next().await.unwrap().unwrap();
    let started = Instant::now();
    server.terminate().unwrap();
    let (status, log) = server.wait().unwrap();
    assert!(status.success(), "{status}: {log}");
    assert!(started.elapsed().as_secs() < 12, "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_three_ends_well_under_load() {
    let start = |arguments: &[&str]| {
        let arguments = [arguments, &["--drain-timeout", "1"]].concat();
        Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
    };
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    let request = json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 1000, "n": 48, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let started = Instant::now();
    let running = loop {
        let answer = gateway.http.post(gateway.url("/v1/completions")).json(&request).send().await.unwrap();
        if answer.status() == 200 {
            break answer;
        }
        // The three have not found each other yet.
        assert!(started.elapsed().as_secs() < 20, "{}", answer.text().await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let mut chunks = running.bytes_stream();
    chunks.next().await.unwrap().unwrap();
    // Nobody reads the stream from here on: that must not hold up anybody's end.
    for server in [&gateway, &tokenizer, &engine] {
        server.terminate().unwrap();
    }
    for server in [gateway, tokenizer, engine] {
        let (status, log) = server.wait().unwrap();
        assert!(status.success(), "{status}: {log}");
    }
}
