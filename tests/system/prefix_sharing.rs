//! Requests that begin alike compute and hold that beginning once, and nobody can tell from what they answer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Metrics, Server, model_dir, token_ids};
use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use serde_json::{Value, json};

const NUM_REQUESTS: usize = 32;
/// Tokens that all prompts begin with, and that each has for itself.
const PREFIX: usize = 512;
const SUFFIX: usize = 4;
/// Prompt and output end before the ninth page does.
const OUTPUT: usize = 32;
/// 64 tokens of `demo-llama`, whose tokens take 6 KiB: the common beginning is 8 pages exactly, the least that
/// is shared.
const PAGE_BYTES: usize = 64 * 6144;

fn serve(arguments: &[&str]) -> Server {
    let (model, page_bytes) = (model_dir("demo-llama"), PAGE_BYTES.to_string());
    // However slow the machine, nobody is refused.
    let mut all = vec!["serve", "--port", "0", "--target-time-to-first-token-s", "0"];
    all.extend(["--model", model.to_str().unwrap()]);
    if !arguments.contains(&"--page-bytes") {
        all.extend(["--page-bytes", &page_bytes]);
    }
    all.extend(arguments);
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &all, &[]).unwrap()
}

/// A request of its own behind `prefix`. Every other one is drawn, the rest are greedy.
fn request(prefix: &[usize], idx: usize) -> Value {
    let prompt = [prefix, &token_ids(100 + idx, SUFFIX)].concat();
    json!({"prompt": prompt, "max_tokens": OUTPUT, "ignore_eos": true, "temperature": idx % 2, "seed": idx,
        "logprobs": 2, "return_token_ids": true})
}

fn salted(mut request: Value, salt: &str) -> Value {
    request["cache_salt"] = json!(salt);
    request
}

async fn answer(server: &Server, request: Value) -> Value {
    server.complete(&request).await.unwrap()
}

async fn answer_all(server: &Server, requests: impl IntoIterator<Item = Value>) -> Vec<Value> {
    join_all(requests.into_iter().map(|request| answer(server, request))).await
}

/// What must not depend on who computed the prompt: text, ids, log-probabilities and why it ended.
fn choices(answers: &[Value]) -> Vec<&Value> {
    answers.iter().map(|answer| &answer["choices"]).collect()
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// How many tokens were computed, and how many need not be, since `before`.
async fn work_since(server: &Server, before: &Metrics) -> (usize, usize) {
    server.wait_until_idle().await.unwrap();
    let now = server.metrics().await.unwrap();
    let since = |name| (now.get(name) - before.get(name)) as usize;
    (since("fused_engine_computed_tokens_total"), since("fused_engine_cached_prompt_tokens_total"))
}

/// What comes of `work`, how many sequences ran at the same time, at most, and how many pages they then needed.
async fn watched<T>(server: &Server, work: impl Future<Output = T>) -> (usize, usize, T) {
    let mut work = std::pin::pin!(work);
    let (mut last, mut most) = ((0, 0), (0, 0));
    loop {
        tokio::select! {
            done = &mut work => return (most.0, most.1, done),
            metrics = server.metrics() => {
                let metrics = metrics.unwrap();
                let num_running = metrics.get("fused_engine_running_sequences") as usize;
                let bytes = metrics.get("fused_engine_kv_bytes{state=\"mapped\"}") as usize;
                let now = (num_running, bytes / PAGE_BYTES);
                // Seen twice, so that it is not half of one step and half of the next.
                if now == last {
                    most = most.max(now);
                }
                last = now;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_requests_compute_and_hold_their_beginning_once() {
    // With a budget for all prompts at once, all of them run at the same time where each is computed too.
    let budget = ["--token-budget", "32768"];
    let (shared, unshared) = (serve(&budget), serve(&["--prefix-cache", "false", budget[0], budget[1]]));
    let prefix = token_ids(1, PREFIX);
    let all = || (0..NUM_REQUESTS).map(|idx| request(&prefix, idx));

    let before = unshared.metrics().await.unwrap();
    let (num_running, pages, expected) = watched(&unshared, answer_all(&unshared, all())).await;
    assert_eq!((num_running, pages), (NUM_REQUESTS, NUM_REQUESTS * 9));
    assert!(expected.iter().all(|answer| cached(answer) == 0));
    // The last token that is drawn is not computed.
    let own = NUM_REQUESTS * (SUFFIX + OUTPUT - 1);
    assert_eq!(work_since(&unshared, &before).await, (own + NUM_REQUESTS * PREFIX, 0));

    // All at the same moment, to an idle server: one computes the beginning, the others wait for that.
    let before = shared.metrics().await.unwrap();
    let (num_running, pages, answers) = watched(&shared, answer_all(&shared, all())).await;
    assert_eq!((num_running, pages), (NUM_REQUESTS, 8 + NUM_REQUESTS));
    assert_eq!(choices(&answers), choices(&expected));
    assert_eq!(work_since(&shared, &before).await, (own + PREFIX, (NUM_REQUESTS - 1) * PREFIX));
    let mut hits: Vec<_> = answers.iter().map(cached).collect();
    hits.sort_unstable();
    assert_eq!((hits[0], hits[1], hits[NUM_REQUESTS - 1]), (0, PREFIX as u64, PREFIX as u64));

    // While one of them runs.
    let before = shared.metrics().await.unwrap();
    let mut first = salted(request(&prefix, 0), "runs");
    first["stream"] = json!(true);
    first["max_tokens"] = json!(400);
    let first = shared.http.post(shared.url("/v1/completions")).json(&first).send().await.unwrap();
    let mut first = first.bytes_stream();
    first.next().await.unwrap().unwrap();
    let rest = || all().skip(1).map(|request| salted(request, "runs"));
    let (num_running, pages, answers) = watched(&shared, answer_all(&shared, rest())).await;
    drop(first);
    // The one that runs longer has grown beyond its ninth page.
    let once = 8 + num_running;
    assert!((once..once + 7).contains(&pages), "{pages} pages for {num_running}");
    assert_eq!(choices(&answers), choices(&expected)[1..]);
    assert!(answers.iter().all(|answer| cached(answer) == PREFIX as u64));
    assert_eq!(work_since(&shared, &before).await.1, (NUM_REQUESTS - 1) * PREFIX);

    // After it has ended.
    answer(&shared, salted(request(&prefix, 99), "ended")).await;
    let before = shared.metrics().await.unwrap();
    let (num_running, pages, answers) =
        watched(&shared, answer_all(&shared, all().map(|request| salted(request, "ended")))).await;
    // The first of them may be through before the last one comes.
    assert!(num_running > 1);
    assert_eq!(pages, 8 + num_running);
    assert_eq!(choices(&answers), choices(&expected));
    assert!(answers.iter().all(|answer| cached(answer) == PREFIX as u64));
    assert_eq!(work_since(&shared, &before).await, (own, NUM_REQUESTS * PREFIX));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requests_with_the_same_salt_share() {
    let server = serve(&[]);
    let prefix = token_ids(2, PREFIX);
    let plain = |max_tokens| {
        let mut request = request(&prefix, 0);
        request["max_tokens"] = json!(max_tokens);
        request
    };
    let all_but_last = (PREFIX + SUFFIX - 1) as u64;
    let first = answer(&server, plain(8)).await;
    assert_eq!(cached(&first), 0);
    for (request, expected) in [
        (salted(plain(8), "one"), 0),
        (salted(plain(8), "two"), 0),
        (salted(plain(8), "one"), all_but_last),
        (salted(plain(8), "two"), all_but_last),
        (salted(plain(8), "three"), 0),
        (plain(8), all_but_last),
    ] {
        let what = request["cache_salt"].clone();
        let again = answer(&server, request).await;
        assert_eq!(cached(&again), expected, "{what}");
        assert_eq!(again["choices"], first["choices"], "{what}");
    }
    // Whoever asks for the prompt's own log-probabilities has it computed.
    let mut scored = plain(1);
    scored["echo"] = json!(true);
    assert_eq!(cached(&answer(&server, scored).await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sequences_of_one_request_share_its_prompt() {
    const N: usize = 8;
    let (shared, unshared) = (serve(&[]), serve(&["--prefix-cache", "false"]));
    // Not whole pages, so that a part of one is copied; more than one step's tokens.
    let prefix = token_ids(3, 600);
    let mut request = request(&prefix, 0);
    request["n"] = json!(N);
    // Every sequence draws tokens of its own from the one seed.
    request["temperature"] = json!(1);
    let before = shared.metrics().await.unwrap();
    let (together, apart) = join(answer(&shared, request.clone()), answer(&unshared, request)).await;
    assert_eq!(together["choices"].as_array().unwrap().len(), N);
    assert_eq!(together["choices"], apart["choices"]);
    assert_ne!(together["choices"][0]["text"], together["choices"][1]["text"]);
    assert_eq!(cached(&together), 0, "nothing was there before the request");
    let prompt = 600 + SUFFIX;
    // Every other sequence computes the last token, to draw from.
    let computed = prompt + (N - 1) + N * (OUTPUT - 1);
    assert_eq!(work_since(&shared, &before).await, (computed, (N - 1) * (prompt - 1)));
}

/// Hang-ups among sharers: of the one who computes the beginning, in the middle of it, and of others.
#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_takes_nothing_from_those_who_share_with_him() {
    let small_steps = ["--token-budget", "64", "--page-bytes", "65536"];
    let shared = serve(&small_steps);
    let unshared = serve(&["--prefix-cache", "false"]);
    // Comes in two parts, and ends within a page.
    let prefix = token_ids(4, 700);
    let all = || (0..12).map(|idx| request(&prefix, idx));
    let expected = answer_all(&unshared, all().step_by(2)).await;

    let computed = |metrics: &Metrics| metrics.get("fused_engine_computed_tokens_total");
    for round in 0..2 {
        let salt = format!("{round}");
        let before = shared.metrics().await.unwrap();
        let request = salted(request(&prefix, 99), &salt);
        let mut donor = Box::pin(shared.http.post(shared.url("/v1/completions")).json(&request).send());
        let begun = |metrics: &Metrics| computed(metrics) > computed(&before);
        tokio::select! {
            begun = shared.wait_until(begun) => begun.unwrap(),
            answer = &mut donor => panic!("{answer:?} before a step was seen"),
        };
        let rest = all().enumerate().map(|(idx, request)| {
            let (shared, salt) = (&shared, &salt);
            async move {
                let mut request = salted(request, salt);
                if idx % 2 == 0 {
                    return Some(answer(shared, request).await);
                }
                request["stream"] = json!(true);
                let stream =
                    shared.http.post(shared.url("/v1/completions")).json(&request).send().await.unwrap();
                let mut stream = stream.bytes_stream();
                for _ in 0..(idx * 5 + round * 7) % 23 {
                    stream.next().await;
                }
                None
            }
        });
        let hang_up = async {
            let waits = |metrics: &Metrics| metrics.get("fused_engine_waiting_sequences") > 0.0;
            tokio::select! {
                _ = shared.wait_until(waits) => {}
                // Through sooner than the others came.
                _ = &mut donor => {}
            };
            drop(donor);
        };
        let (answers, ()) = join(join_all(rest), hang_up).await;
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        assert_eq!(choices(&answers), choices(&expected), "round {round}");
        shared.wait_until_idle().await.unwrap();
    }
}
