//! What the scheduler's settings promise: other steps, the same answers; refusals at the door; priorities.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use fused_testkit::{Server, model_dir, token_ids};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};

fn serve(arguments: &[&str]) -> Server {
    let model = model_dir("demo-llama");
    let common = ["serve", "--port", "0", "--model", model.to_str().unwrap()];
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &[&common, arguments].concat(), &[]).unwrap()
}

/// Prompts of all lengths, some with a common beginning, every other one drawn.
async fn mixed_answers(server: &Server) -> Vec<Value> {
    let requests: Vec<_> = (0..10)
        .map(|idx| {
            let prompt = [token_ids(idx % 3, 90), token_ids(idx, 1 + idx * 13)].concat();
            json!({"prompt": prompt, "max_tokens": 4 + idx * 2, "ignore_eos": true, "temperature": idx % 2,
                "seed": idx, "logprobs": 1, "return_token_ids": true})
        })
        .collect();
    let answers = join_all(requests.iter().map(|request| server.complete(request))).await;
    answers.into_iter().map(|answer| answer.unwrap()["choices"].take()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_setting_of_the_scheduler_changes_an_answer() {
    // However slow the machine, nobody is refused.
    let serve_all =
        |arguments: &[&str]| serve(&[arguments, &["--target-time-to-first-token-s", "0"]].concat());
    let expected = mixed_answers(&serve_all(&[])).await;
    let schedule =
        ["--chunk-size-high", "128", "--chunk-size-low", "32", "--chunk-schedule-max-tokens", "160"];
    for arguments in [
        &["--scheduling-policy", "vllm"][..],
        &["--scheduling-policy", "orca", "--token-budget", "8", "--max-num-sequences", "4"],
        &["--scheduling-policy", "fastertransformer", "--max-num-sequences", "3"],
        &["--scheduling-policy", "simple-chunking", "--token-budget", "64"],
        &["--scheduling-policy", "sarathi", "--token-budget", "8", "--max-num-sequences", "8"],
        &["--scheduling-order", "priority"],
        &[&schedule[..], &["--chunk-schedule-stages", "4"]].concat(),
    ] {
        let server = serve_all(arguments);
        assert_eq!(mixed_answers(&server).await, expected, "{arguments:?}");
        server.wait_until_idle().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_latency_sets_the_token_budget() {
    let server = serve(&["--target-inter-token-latency-ms", "20"]);
    let request = json!({"prompt": token_ids(1, 300), "max_tokens": 4, "ignore_eos": true});
    assert_eq!(server.complete(&request).await.unwrap()["usage"]["completion_tokens"], 4);
    server.terminate().unwrap();
    let (status, log) = server.wait().unwrap();
    assert!(status.success(), "{log}");
    let budget = log.split("token_budget=").nth(1).unwrap_or_else(|| panic!("no budget in {log}"));
    let budget: usize = budget.split(|char: char| !char.is_ascii_digit()).next().unwrap().parse().unwrap();
    // A token for each of the 64 sequences at least, and no more than the model reads.
    assert!(budget.is_multiple_of(32) && (64..=1024).contains(&budget), "{budget}");
}

/// Prompts that come all at once, none with anything in common.
async fn flood(server: &Server) -> Vec<reqwest::Response> {
    let requests = (0..12).map(|idx| {
        let request = json!({"prompt": token_ids(10 + idx, 256), "max_tokens": 2, "ignore_eos": true});
        server.http.post(server.url("/v1/completions")).json(&request).send()
    });
    join_all(requests).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_would_wait_too_long_is_refused_and_told_when_to_come_back() {
    let server = serve(&["--target-time-to-first-token-s", "0.005"]);
    // The first prompt shows how fast this machine is.
    let request = |seed| json!({"prompt": token_ids(seed, 256), "max_tokens": 2, "ignore_eos": true});
    server.complete(&request(1)).await.unwrap();
    let (mut num_served, mut num_refused) = (0, 0);
    for response in flood(&server).await {
        if response.status() == 200 {
            num_served += 1;
            continue;
        }
        num_refused += 1;
        assert_eq!(response.status(), 429);
        let header = |name| response.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
        let (seconds, millis) = (header("retry-after"), header("retry-after-ms"));
        assert!(seconds >= 1 && millis >= 1 && millis <= seconds * 1000, "{seconds} s, {millis} ms");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "queue_full", "{body}");
    }
    assert!(num_served > 0 && num_refused > 0, "{num_served} served, {num_refused} refused");
    server.wait_until_idle().await.unwrap();
    server.complete(&request(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_for_waiting_where_that_is_off() {
    let server = serve(&["--target-time-to-first-token-s", "0"]);
    server.complete(&json!({"prompt": token_ids(1, 256), "max_tokens": 2})).await.unwrap();
    assert!(flood(&server).await.iter().all(|response| response.status() == 200));
}

/// One slot, which is taken: priority says who of those that wait is next, and time lets everybody through.
#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_overtake_but_not_those_who_have_waited_long_enough() {
    // A millisecond of waiting is worth a step of priority.
    let order = ["--scheduling-order", "priority", "--priority-ageing-s", "0.001"];
    let server = serve(&[&order[..], &["--max-num-sequences", "1"]].concat());
    let stream = async |priority: i32, max_tokens: usize| {
        let request = json!({"prompt": token_ids(1, 20), "max_tokens": max_tokens, "ignore_eos": true,
            "priority": priority, "stream": true});
        let response = server.http.post(server.url("/v1/completions")).json(&request).send().await.unwrap();
        let mut chunks = response.bytes_stream();
        chunks.next().await.unwrap().unwrap();
        chunks
    };
    let num_waiting = async |num: usize| {
        server.wait_for_metric("fused_engine_waiting_sequences", num as f64).await.unwrap();
    };
    let begun = Mutex::new(Vec::new());
    let ask = async |priority: i32, num_before: usize| {
        num_waiting(num_before).await;
        // However long it takes: it is more than the step of priority that the second is before the first.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let chunks = stream(priority, 16).await;
        begun.lock().unwrap().push(priority);
        chunks.count().await;
    };

    let long = stream(0, 1000).await;
    let release = async {
        num_waiting(3).await;
        drop(long);
    };
    tokio::join!(ask(1, 0), ask(0, 1), ask(-1_000_000, 2), release);
    assert_eq!(*begun.lock().unwrap(), [-1_000_000, 1, 0]);
}
