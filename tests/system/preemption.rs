//! Where memory runs short sequences give way and are computed again: nobody can tell from the answers, nobody
//! starves, and nothing is lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Server, model_dir, token_ids};
use futures_util::future::join_all;
use serde_json::{Value, json};

const NUM_REQUESTS: usize = 16;
/// Tokens of `demo-llama` take 6 KiB: 341 of them. All requests together come to six times that.
const KV_CACHE_BYTES: &str = "2097152";

fn serve(arguments: &[&str]) -> Server {
    let model = model_dir("demo-llama");
    // However slow the machine, nobody is refused.
    let common = ["serve", "--port", "0", "--target-time-to-first-token-s", "0", "--max-model-len", "256"];
    let all = [&common[..], &["--model", model.to_str().unwrap()], arguments].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &all, &[]).unwrap()
}

/// Every other one is drawn, the rest are greedy; half of the prompts begin alike.
fn request(idx: usize) -> Value {
    let beginning = if idx % 4 < 2 { token_ids(1, 40) } else { token_ids(100 + idx, 40) };
    let prompt = [beginning, token_ids(200 + idx, 1 + idx % 7)].concat();
    json!({"prompt": prompt, "max_tokens": 60 + (idx * 13) % 41, "ignore_eos": true, "temperature": idx % 2,
        "seed": idx, "logprobs": 1, "return_token_ids": true})
}

async fn answers(server: &Server) -> Vec<Value> {
    let requests: Vec<_> = (0..NUM_REQUESTS).map(request).collect();
    let answers = join_all(requests.iter().map(|request| server.complete(request))).await;
    answers.into_iter().map(|answer| answer.unwrap()["choices"].take()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_way_answers_as_with_all_the_memory() {
    let expected = answers(&serve(&[])).await;
    for (idx, choices) in expected.iter().enumerate() {
        let output = choices[0]["token_ids"].as_array().unwrap();
        assert_eq!(json!(output.len()), request(idx)["max_tokens"]);
    }
    // Large pages are hardly shared, small ones often; without a prefix cache all of a sequence is computed again.
    for arguments in [
        &["--page-bytes", "32768"][..],
        &["--page-bytes", "4096"],
        &["--page-bytes", "4096", "--prefix-cache", "false"],
    ] {
        let server = serve(&[arguments, &["--kv-cache-bytes", KV_CACHE_BYTES]].concat());
        assert_eq!(answers(&server).await, expected, "{arguments:?}");
        assert!(server.metric("fused_engine_preemptions_total").await.unwrap() > 0.0, "{arguments:?}");
        server.wait_until_idle().await.unwrap();
    }
}
