//! What comes from outside and is no request of a sane client: templates made to end a process, signals, variables of
//! others, a log that nobody reads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fused_testkit::{Server, run_to_end};
use serde_json::json;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fused"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_template_ends_neither_the_process_nor_its_memory() {
    let arguments = ["serve", "--port", "0", "--trust-request-chat-template"];
    let server = Server::start(binary(), &arguments, &[]).unwrap();
    let chat = |template: &str| {
        let request = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1,
            "chat_template": template});
        let server = &server;
        async move { server.post("/v1/chat/completions", &request).await.unwrap() }
    };
    let doubled = |end: &str| format!("{{% set a = [1] %}}{}{end}", "{% set a = [a, a] %}".repeat(60));
    let ns = "{% set ns = namespace(x=1) %}{% set ns.x = ns %}";
    for template in [
        format!("{ns}{{{{ ns }}}}"),
        format!("{ns}{{{{ ns ~ 'x' }}}}"),
        format!("{ns}{{{{ [ns] == [ns] and {{ns: 1}} }}}}"),
        format!("{ns}{{{{ [ns, ns] | join }}}}{{{{ ns | string }}}}"),
        format!("{{{{ {}1 }}}}", "not ".repeat(16_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(30_000)),
        format!("{{{{ 'a'{} }}}}", "|e".repeat(30_000)),
        doubled("{{ a }}"),
        doubled("{{ a ~ 'x' }}"),
        doubled("{% set b = a %}") + &doubled("{{ a == b }}"),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ 'x' * 999999999 }}".to_owned(),
        "{{ range(999999999) | list }}".to_owned(),
    ] {
        let (status, answer) = chat(&template).await;
        assert_eq!(status, 400, "{}: {answer}", &template[..40]);
    }
    let (status, answer) = chat("own {{ messages[0].content }}").await;
    assert_eq!(status, 200, "{answer}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak_kb = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak_kb.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak_kb < 400_000, "{peak_kb} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_and_variables_of_others_end_nothing() {
    let others = [("FUSED_GATEWAY_SERVICE_HOST", "10.0.0.1"), ("FUSED_PORT", "tcp://10.0.0.1:80")];
    let server = Server::start(binary(), &["serve", "--port", "0"], &others).unwrap();
    let pid = server.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -HUP $0", &pid]).status().unwrap().success());
    assert_eq!(server.get("/health").await.unwrap().0, 200);
    server.terminate().unwrap();
    let (status, log) = server.wait().unwrap();
    assert!(status.success(), "{status}: {log}");
    let told = log.lines().filter(|line| line.contains("FUSED_GATEWAY_SERVICE_HOST, FUSED_PORT"));
    assert_eq!(told.count(), 1, "{log}");

    let misspelt = run_to_end(binary(), &["serve", "--port", "0"], &[("FUSED_TOKEN_BUGDET", "9")]).unwrap();
    assert!(!misspelt.status.success());
    assert!(misspelt.stderr.contains("is token_budget meant?"), "{}", misspelt.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    // Every line that there is, into a pipe of 64 KiB.
    let mut server = Command::new(binary())
        .args(["serve", "--port", "0", "--log-filter", "trace", "--drain-timeout", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let url = lines.by_ref().find_map(|line| line.unwrap().strip_prefix("listening on ").map(str::to_owned));
    let url = url.unwrap().split(' ').next().unwrap().to_owned();
    let _stderr = server.stderr.take().unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let request = json!({"prompt": "x", "max_tokens": 16});
    for _ in 0..40 {
        let answer = http.post(format!("{url}/v1/completions")).json(&request).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(http.get(format!("{url}/health")).send().await.unwrap().status(), 200);
    }
    let pid = server.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM $0", &pid]).status().unwrap().success());
    let told = Instant::now();
    let status = tokio::task::spawn_blocking(move || server.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
}
