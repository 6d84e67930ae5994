//! Many streams at once, some of them dropped: every stream ends properly, every slot is given back, and nobody's output
//! depends on who else was there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Server, events};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};

const NUM_REQUESTS: usize = 64;

fn request(idx: usize) -> Value {
    let commands = ["tar", "git rebase", "ls", "docker run", "ssh", "find", "curl", "systemctl"];
    let prompt = format!("<|endoftext|># {} {}\n\n>", commands[idx % commands.len()], idx / commands.len());
    json!({"prompt": prompt, "max_tokens": 8 + (idx * 7) % 57, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true}})
}

/// Every third client hangs up after a few chunks.
fn hangs_up_after(idx: usize) -> Option<usize> {
    (idx % 3 == 1).then_some(1 + (idx * 5) % 11)
}

/// The text of one stream; `None` for a client that hung up.
async fn stream(server: &Server, idx: usize) -> Option<String> {
    let answer = server.http.post(server.url("/v1/completions")).json(&request(idx)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    if let Some(num_chunks) = hangs_up_after(idx) {
        let mut chunks = answer.bytes_stream();
        for _ in 0..num_chunks {
            chunks.next().await;
        }
        return None;
    }
    let body = answer.text().await.unwrap();
    let events = events(&body).unwrap();
    assert!(events.is_done, "request {idx} has no end: {body}");
    assert_eq!(events.finish_reasons(0), ["length"], "request {idx}");
    let usage = &events.chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], request(idx)["max_tokens"], "request {idx}");
    Some(events.text(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_streams_with_aborts() {
    // Fewer slots than requests: some wait, and slots change hands.
    let arguments = ["serve", "--port", "0", "--max-num-sequences", "24"];
    let server = Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap();
    let mut alone = Vec::new();
    for idx in (0..NUM_REQUESTS).filter(|&idx| hangs_up_after(idx).is_none()) {
        alone.push(stream(&server, idx).await);
    }
    let together = join_all((0..NUM_REQUESTS).map(|idx| stream(&server, idx))).await;
    let together: Vec<_> = together.into_iter().filter(Option::is_some).collect();
    assert_eq!(together, alone);

    server.wait_until_idle().await.unwrap();
}
