//! Two tokenizers and two engines behind one gateway, as processes: one of them drains, dies or hangs under load. Only
//! requests whose answer had begun there may fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fused_testkit::Server;
use futures_util::future::join_all;
use serde_json::json;

const NUM_CLIENTS: usize = 8;

fn start(arguments: &[&str]) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), arguments, &[]).unwrap()
}

struct Services {
    engines: Vec<Server>,
    tokenizers: Vec<Server>,
    gateway: Server,
}

impl Services {
    async fn start() -> Self {
        let engines: Vec<_> = (0..2).map(|_| start(&["engine", "--grpc-port", "0"])).collect();
        let tokenizer = |_| {
            let (first, second) = (&*engines[0].urls[0], &*engines[1].urls[0]);
            start(&[
                "tokenizer",
                "--grpc-port",
                "0",
                "--engine",
                first,
                "--engine",
                second,
                "--metrics-port",
                "0",
            ])
        };
        let tokenizers: Vec<_> = (0..2).map(tokenizer).collect();
        let (first, second) = (&*tokenizers[0].urls[0], &*tokenizers[1].urls[0]);
        let gateway = start(&["gateway", "--port", "0", "--tokenizer", first, "--tokenizer", second]);
        gateway.wait_for_metric("fused_gateway_tokenizers_usable", 2.0).await.unwrap();
        let services = Self { engines, tokenizers, gateway };
        for tokenizer in &services.tokenizers {
            engines_usable(tokenizer, 2).await;
        }
        services
    }
}

/// Waits until a tokenizer counts so many usable engines.
async fn engines_usable(tokenizer: &Server, num: usize) {
    let started = Instant::now();
    loop {
        let page = tokenizer.http.get(format!("{}/metrics", tokenizer.urls[1])).send().await.unwrap();
        let page = page.text().await.unwrap();
        if page.contains(&format!("fused_tokenizer_engines_usable {num}\n")) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One request of the load.
struct Asked {
    begun: Instant,
    status: u16,
    answer: String,
}

/// Asks one request after the other until it is told to stop.
async fn ask(gateway: &Server, stop: &AtomicBool, num_done: &AtomicUsize) -> Vec<Asked> {
    let request = json!({"prompt": "# tar\n\n>", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let mut asked = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let begun = Instant::now();
        let (status, answer) = gateway.post("/v1/completions", &request).await.unwrap();
        asked.push(Asked { begun, status, answer: answer.to_string() });
        num_done.fetch_add(1, Ordering::AcqRel);
    }
    asked
}

/// Runs clients, and the fault in the midst of them. Returns the requests that failed, those that began before the fault
/// and those after it.
async fn under_load(gateway: &Server, fault: impl FnOnce()) -> (Vec<String>, Vec<String>) {
    let stop = AtomicBool::new(false);
    let num_done: Vec<_> = (0..NUM_CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let clients = join_all(num_done.iter().map(|num_done| ask(gateway, &stop, num_done)));
    let each_has_done = async |more: usize| {
        let wanted: Vec<_> = num_done.iter().map(|num| num.load(Ordering::Acquire) + more).collect();
        while num_done.iter().zip(&wanted).any(|(num, wanted)| num.load(Ordering::Acquire) < *wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let course = async {
        each_has_done(3).await;
        fault();
        let after = Instant::now();
        each_has_done(6).await;
        stop.store(true, Ordering::Release);
        after
    };
    let (asked, after) = tokio::join!(clients, course);
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for Asked { begun, status, answer } in asked.into_iter().flatten().filter(|asked| asked.status != 200) {
        if begun < after { &mut early } else { &mut late }.push(format!("{status}: {answer}"));
    }
    (early, late)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_drains_costs_nothing() {
    let services = Services::start().await;
    let failed = under_load(&services.gateway, || services.tokenizers[0].terminate().unwrap()).await;
    assert_eq!(failed, (vec![], vec![]));
    assert_eq!(services.gateway.get("/ready").await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_drains_costs_nothing() {
    let services = Services::start().await;
    let failed = under_load(&services.gateway, || services.engines[0].terminate().unwrap()).await;
    assert_eq!(failed, (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_dies_costs_what_had_begun_there() {
    let mut services = Services::start().await;
    let killed = services.tokenizers.remove(0);
    let (early, late) = under_load(&services.gateway, || drop(killed)).await;
    assert!(early.len() <= NUM_CLIENTS && early.iter().all(|told| told.contains("unavailable")), "{early:?}");
    assert_eq!(late, Vec::<String>::new());
    assert_eq!(services.gateway.get("/ready").await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_costs_what_had_begun_there() {
    let mut services = Services::start().await;
    let killed = services.engines.remove(0);
    let (early, late) = under_load(&services.gateway, || drop(killed)).await;
    assert!(early.len() <= NUM_CLIENTS && early.iter().all(|told| told.contains("unavailable")), "{early:?}");
    assert_eq!(late, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_hangs_costs_what_had_begun_there_and_is_taken_back() {
    let services = Services::start().await;
    let hung = &services.tokenizers[0];
    let (early, late) = under_load(&services.gateway, || hung.freeze().unwrap()).await;
    assert!(early.len() <= NUM_CLIENTS && early.iter().all(|told| told.contains("unavailable")), "{early:?}");
    assert_eq!(late, Vec::<String>::new());
    services.gateway.wait_for_metric("fused_gateway_tokenizers_usable", 1.0).await.unwrap();
    hung.thaw().unwrap();
    services.gateway.wait_for_metric("fused_gateway_tokenizers_usable", 2.0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_costs_what_had_begun_there_and_is_taken_back() {
    let services = Services::start().await;
    let hung = &services.engines[0];
    let (early, late) = under_load(&services.gateway, || hung.freeze().unwrap()).await;
    assert!(early.len() <= NUM_CLIENTS && early.iter().all(|told| told.contains("unavailable")), "{early:?}");
    assert_eq!(late, Vec::<String>::new());
    engines_usable(&services.tokenizers[0], 1).await;
    hung.thaw().unwrap();
    engines_usable(&services.tokenizers[0], 2).await;
}
