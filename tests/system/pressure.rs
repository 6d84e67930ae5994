//! Clients that hang up, reset, read nothing or say nothing, beside honest ones: none of these fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fused_testkit::{Server, events};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const NUM_HONEST: usize = 8;
const NUM_ROUNDS: usize = 3;

fn start(arguments: &[&str]) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), arguments, &[]).unwrap()
}

fn streaming(max_tokens: u32) -> Value {
    json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "stream": true})
}

fn address(server: &Server) -> String {
    server.urls[0].strip_prefix("http://").unwrap().to_owned()
}

/// An HTTP/2 connection on which every stream has a window of so many bytes.
async fn http2(server: &Server, window_bytes: u32) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address(server)).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window_bytes);
    let (requests, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

fn post(server: &Server) -> http::Request<()> {
    http::Request::post(server.url("/v1/completions"))
        .header("content-type", "application/json")
        .body(())
        .unwrap()
}

/// Two hundred clients that ask and hang up at once.
async fn hang_up(gateway: &Server) {
    let abort = |_| async {
        let request = gateway.http.post(gateway.url("/v1/completions")).json(&streaming(64));
        let _ = tokio::time::timeout(Duration::from_millis(10), request.send()).await;
    };
    join_all((0..200).map(abort)).await;
}

/// A hundred streams of one connection that are reset a moment after they were opened.
async fn reset(gateway: &Server) {
    let mut requests = http2(gateway, 65_535).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        requests = requests.ready().await.unwrap();
        let (answer, mut stream) = requests.send_request(post(gateway), false).unwrap();
        stream.send_data(Bytes::from(streaming(64).to_string()), true).unwrap();
        streams.push((answer, stream));
    }
    tokio::time::sleep(Duration::from_millis(3)).await;
    for (_, stream) in &mut streams {
        stream.send_reset(h2::Reason::CANCEL);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A hundred streams of one connection that take nothing of their answers; they last as long as what is returned.
async fn take_nothing(gateway: &Server) -> impl Sized {
    let mut requests = http2(gateway, 0).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        requests = requests.ready().await.unwrap();
        let (answer, mut stream) = requests.send_request(post(gateway), false).unwrap();
        stream.send_data(Bytes::from(streaming(1).to_string()), true).unwrap();
        answers.push(answer);
    }
    (requests, answers)
}

/// Asks again and again until it is told to stop. Returns what was no whole answer.
async fn honest(gateway: &Server, stop: &AtomicBool) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let sent = gateway.http.post(gateway.url("/v1/completions")).json(&streaming(24)).send().await;
        let answer = sent.unwrap();
        let status = answer.status();
        let body = answer.text().await.unwrap_or_else(|error| format!("cut off: {error:?}"));
        let is_whole = status == 200
            && events(&body).is_ok_and(|events| events.finish_reasons(0) == ["length"] && events.is_done);
        if !is_whole {
            failed.push(format!("{status}: {body}"));
        }
    }
    failed
}

/// All attacks at once, beside honest clients.
async fn attack(gateway: &Server, grpc_ports: &[&Server]) {
    let stop = Arc::new(AtomicBool::new(false));
    let honest = join_all((0..NUM_HONEST).map(|_| honest(gateway, &stop)));
    let attacks = async {
        let mut silent = Vec::new();
        for server in std::iter::once(&gateway).chain(grpc_ports) {
            for _ in 0..50 {
                silent.push(TcpStream::connect(address(server)).await.unwrap());
            }
        }
        let unread = take_nothing(gateway).await;
        for _ in 0..NUM_ROUNDS {
            tokio::join!(hang_up(gateway), reset(gateway));
        }
        stop.store(true, Ordering::Release);
        drop((silent, unread));
    };
    let (failed, ()) = tokio::join!(honest, attacks);
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_no_honest_client_fails() {
    let server = start(&["serve", "--port", "0"]);
    attack(&server, &[]).await;
    server.wait_until_idle().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_sockets_no_honest_client_fails() {
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    gateway.wait_for_metric("fused_gateway_tokenizers_usable", 1.0).await.unwrap();
    attack(&gateway, &[&tokenizer, &engine]).await;
    gateway.wait_for_metric("fused_gateway_requests_in_flight", 0.0).await.unwrap();
    // No hop was lost on the way.
    assert_eq!(gateway.metric("fused_gateway_tokenizer_retries_total").await.unwrap(), 0.0);
}
