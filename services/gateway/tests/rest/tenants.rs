//! Several keys: apart from each other, each within its limits, changed while the server runs.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use fused_gateway::{ApiKeys, Config, KeySources};
use fused_proto::text::v1::GenerateRequest;
use http::{HeaderValue, Request, StatusCode};
use tempfile::NamedTempFile;

use crate::fake::{End, Fake, Script, hello, prompt_info, text};
use crate::rig::{Reply, Rig, post};

const COMPLETIONS: &str = "/v1/completions";
const ASK: &str = r#"{"prompt": "a", "max_tokens": 5}"#;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn config(sources: KeySources) -> Config {
    Config { api_keys: sources.load().unwrap(), key_sources: sources, ..Config::default() }
}

fn tenants(path: &NamedTempFile) -> Config {
    config(KeySources { tenants_file: Some(PathBuf::from(path.path())), ..KeySources::default() })
}

fn with_key(key: &str, body: &str) -> Request<Body> {
    let (mut head, body) = post(COMPLETIONS, body).into_parts();
    head.headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {key}")).unwrap());
    Request::from_parts(head, body)
}

async fn ask(rig: &Rig, key: &str) -> Reply {
    rig.send(with_key(key, ASK)).await
}

fn number(reply: &Reply, header: &str) -> u64 {
    reply.headers[header].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn requests_a_minute_end_and_the_wait_is_told() {
    let path = file(
        "[[tenant]]\nname = \"a\"\nkeys = [\"k-a\", \"k-b\"]\nrequests_per_minute = 3\n\
         [[tenant]]\nname = \"c\"\nkeys = [\"k-c\"]\n",
    );
    let rig = Rig::new(tenants(&path), Fake::new(hello));
    for left in [2, 1, 0] {
        // Both keys are the same tenant's.
        let reply = ask(&rig, if left == 1 { "k-b" } else { "k-a" }).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(number(&reply, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), left);
    }
    let refused = ask(&rig, "k-a").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    let wait_ms = number(&refused, "retry-after-ms");
    assert!((15_000..=20_000).contains(&wait_ms), "{wait_ms}");
    assert_eq!(number(&refused, "retry-after"), wait_ms.div_ceil(1000));
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
    assert!(refused.headers["x-ratelimit-reset-requests"].to_str().unwrap().ends_with('s'));
    // Nobody else is hurt, and nobody without limits hears of any.
    let other = ask(&rig, "k-c").await;
    assert_eq!(other.status, StatusCode::OK);
    assert!(!other.headers.contains_key("x-ratelimit-limit-requests"));
}

#[tokio::test]
async fn tokens_a_minute_are_estimated_at_first_and_counted_at_the_end() {
    let path = file("[[tenant]]\nname = \"a\"\nkeys = [\"k-a\"]\ntokens_per_minute = 100\n");
    let rig = Rig::new(tenants(&path), Fake::new(hello));
    // Five are counted, 3 of the prompt and 2 of the output, where 91 were taken at first.
    for _ in 0..2 {
        let reply = rig.send(with_key("k-a", r#"{"prompt": "a", "max_tokens": 90}"#)).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(number(&reply, "x-ratelimit-limit-tokens"), 100);
    }
    let refused = rig.send(with_key("k-a", r#"{"prompt": "a", "max_tokens": 96}"#)).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("100 tokens a minute"));
    assert!(number(&refused, "retry-after") >= 1);
    // What the limit cannot tell beforehand is not refused for ever: it is taken as the whole minute.
    let fresh = Rig::new(tenants(&path), Fake::new(hello));
    let reply = fresh.send(with_key("k-a", r#"{"prompt": "a", "max_tokens": 4096}"#)).await;
    assert_eq!(reply.status, StatusCode::OK);
}

fn endless(_: &GenerateRequest) -> Script {
    Script { refusal: None, messages: vec![prompt_info(), text(0, "Hel")], end: End::Never }
}

#[tokio::test]
async fn requests_in_flight_of_one_tenant_leave_room_to_others() {
    let path = file(
        "[[tenant]]\nname = \"a\"\nkeys = [\"k-a\"]\nmax_requests_in_flight = 1\n\
         [[tenant]]\nname = \"b\"\nkeys = [\"k-b\"]\n",
    );
    let rig = Rig::new(tenants(&path), Fake::new(endless));
    let stream = r#"{"prompt": "a", "stream": true}"#;
    let first = rig.begin(with_key("k-a", stream)).await;
    assert_eq!(first.status(), StatusCode::OK);
    let refused = rig.send(with_key("k-a", stream)).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(rig.begin(with_key("k-b", stream)).await.status(), StatusCode::OK);
    drop(first);
    assert_eq!(rig.begin(with_key("k-a", stream)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn several_keys_share_no_prefix_unless_they_shall() {
    let salts = async |keys: &[&str], isolate: Option<bool>| {
        let config =
            Config { api_keys: ApiKeys::new(keys), isolate_prefix_cache: isolate, ..Config::default() };
        let rig = Rig::new(config, Fake::new(hello));
        for key in keys {
            assert_eq!(ask(&rig, key).await.status, StatusCode::OK);
            let own = r#"{"prompt": "a", "cache_salt": "own"}"#;
            assert_eq!(rig.send(with_key(key, own)).await.status, StatusCode::OK);
        }
        rig.fake.asked().into_iter().map(|request| request.cache_salt).collect::<Vec<_>>()
    };
    let own = Some("own".to_owned());
    assert_eq!(salts(&["k"], None).await, [None, own.clone()]);
    assert_eq!(salts(&["k", "l"], Some(false)).await, [None, own.clone(), None, own.clone()]);
    assert_ne!(salts(&["k"], Some(true)).await, [None, own]);
    let several = salts(&["sk-k", "sk-l"], None).await;
    for (idx, salt) in several.iter().enumerate() {
        let salt = salt.as_ref().unwrap();
        assert!(!several[..idx].contains(&Some(salt.clone())) && !salt.contains("sk-") && salt.len() <= 256);
    }
    assert_eq!(several, salts(&["sk-k", "sk-l"], None).await, "the same in every gateway");
}

/// Until the files have been looked at again.
async fn becomes(rig: &Rig, key: &str, status: StatusCode) {
    for _ in 0..300 {
        if ask(rig, key).await.status == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{key} did not become {status}")
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_read_again_and_broken_ones_are_not_taken() {
    let (keys, named) =
        (file("\u{feff}k-one\n# k-old\n"), file("[[tenant]]\nname = \"a\"\nkeys = [\"k-a\"]\n"));
    let sources = KeySources {
        keys: vec!["k-flag".to_owned()],
        key_file: Some(keys.path().to_owned()),
        tenants_file: Some(named.path().to_owned()),
    };
    let rig = Rig::new(config(sources), Fake::new(hello));
    for (key, status) in [
        ("k-flag", StatusCode::OK),
        ("k-one", StatusCode::OK),
        ("k-a", StatusCode::OK),
        ("k-old", StatusCode::UNAUTHORIZED),
        ("#", StatusCode::UNAUTHORIZED),
    ] {
        assert_eq!(ask(&rig, key).await.status, status, "{key}");
    }
    std::fs::write(keys.path(), "k-two # of Tuesday\n").unwrap();
    becomes(&rig, "k-two", StatusCode::OK).await;
    assert_eq!(ask(&rig, "k-one").await.status, StatusCode::UNAUTHORIZED);
    std::fs::write(named.path(), "[[tenant]]\nname = \"a\"\nkeys = [\"k-b\"]\nrequests_per_minute = 0\n")
        .unwrap();
    std::fs::write(keys.path(), "k-three\n").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for key in ["k-flag", "k-two", "k-a"] {
        assert_eq!(ask(&rig, key).await.status, StatusCode::OK, "{key}");
    }
    // Well again, and limits that are new count.
    std::fs::write(named.path(), "[[tenant]]\nname = \"a\"\nkeys = [\"k-b\"]\nrequests_per_minute = 1\n")
        .unwrap();
    becomes(&rig, "k-three", StatusCode::OK).await;
    assert_eq!(ask(&rig, "k-b").await.status, StatusCode::OK);
    assert_eq!(ask(&rig, "k-b").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(&rig, "k-a").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn tenants_do_not_read_of_each_other() {
    let rig = Rig::new(Config { metrics: None, ..Config::default() }, Fake::new(hello));
    let reply = rig.get("/metrics").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (StatusCode::NOT_FOUND, &"not_found".into()));
}
