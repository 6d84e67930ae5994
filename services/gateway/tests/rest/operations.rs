//! Models, health, readiness, metrics, version.

use std::sync::Arc;
use std::time::Duration;

use fused_gateway::Config;
use fused_telemetry::Metrics;
use http::StatusCode;
use serde_json::json;
use tonic_health::ServingStatus;

use crate::fake::{Fake, hello};
use crate::rig::{Rig, post};

#[tokio::test]
async fn models() {
    let rig = Rig::hello();
    let model = json!({
        "id": "org/demo", "object": "model", "created": 1_700_000_000, "owned_by": "fused", "root": "demo-dir",
        "parent": null, "max_model_len": 1024,
    });
    let mut alias = model.clone();
    alias["id"] = json!("alias");
    assert_eq!(rig.get("/v1/models").await.json(), json!({"object": "list", "data": [model, alias]}));
    assert_eq!(rig.get("/v1/models/alias").await.json(), alias);
    assert_eq!(rig.get("/v1/models/org/demo").await.json(), model);
    assert_eq!(rig.get("/v1/models/org%2Fdemo").await.json(), model);
    let unknown = rig.get("/v1/models/other").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let error = &unknown.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    for path in ["/v1/models/%FF", "/v1/models/org/%C3"] {
        let unreadable = rig.get(path).await;
        assert_eq!(unreadable.status, StatusCode::NOT_FOUND, "{path}: {}", unreadable.body);
        assert_eq!(unreadable.headers["content-type"], "application/json");
        let error = &unreadable.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    }
}

#[tokio::test]
async fn what_the_tokenizer_says_of_itself() {
    let info = Rig::hello().get("/tokenizer_info").await;
    assert_eq!((info.status, info.json()), (StatusCode::OK, json!({"eos_token": "</s>"})));
    assert_eq!(info.headers["content-type"], "application/json");
}

#[tokio::test]
async fn metrics_and_version() {
    let config = Config { metrics: Some(Arc::new(|| "up 1\n".to_owned())), ..Config::default() };
    let rig = Rig::new(config, Fake::new(hello));
    let metrics = rig.get("/metrics").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4");
    assert_eq!(metrics.body, "up 1\n");
    assert_eq!(rig.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn what_is_counted() {
    // Of this process, other tests' requests included: only what they do not touch is compared exactly.
    let metrics = Metrics::install().unwrap();
    let config = Config { metrics: Some(Arc::new(move || metrics.render())), ..Config::default() };
    let rig = Rig::new(config, Fake::new(hello));
    rig.get("/v1/models").await;
    rig.get("/a/path/of/the/clients").await;
    rig.post("/v1/chat/completions", r#"{"messages": [], "never_heard_of": 1}"#).await;
    rig.post("/v1/completions", r#"{"prompt": "a", "stream": true, "never_heard_of": 1}"#).await;
    drop(rig.begin(post("/v1/completions", r#"{"prompt": "a", "stream": true}"#)).await);
    let text = rig.get("/metrics").await.body;
    for line in [
        r#"fused_gateway_requests_total{endpoint="/v1/models",code="200"}"#,
        r#"fused_gateway_requests_total{endpoint="none",code="404"}"#,
        r#"fused_gateway_requests_total{endpoint="/v1/completions",code="200"}"#,
        r#"fused_gateway_requests_total{endpoint="/v1/completions",code="499"}"#,
        r#"fused_gateway_errors_total{code="invalid_argument"}"#,
        r#"fused_gateway_request_duration_seconds_bucket{endpoint="/v1/completions",le="0.01"}"#,
        r#"fused_gateway_time_to_first_chunk_seconds_bucket{endpoint="/v1/completions",le="0.01"}"#,
        "fused_gateway_requests_in_flight ",
        "fused_gateway_unknown_fields_total ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("of/the/clients"), "{text}");
}

async fn readiness_becomes(rig: &Rig, status: StatusCode) -> serde_json::Value {
    for _ in 0..100 {
        let reply = rig.get("/ready").await;
        if reply.status == status {
            return reply.json();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("/ready did not become {status}")
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_the_text_service() {
    let rig = Rig::hello();
    let reason = |body: serde_json::Value| body["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(rig.get("/ready").await.json()), "the text service was not asked yet");
    rig.set_ready(ServingStatus::Serving).await;
    assert_eq!(readiness_becomes(&rig, StatusCode::OK).await, json!({"ready": true}));
    rig.set_ready(ServingStatus::NotServing).await;
    let body = readiness_becomes(&rig, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(reason(body), "the text service is not serving");
    assert_eq!(rig.get("/health").await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_work_and_only_work() {
    let rig = Rig::hello();
    rig.set_ready(ServingStatus::Serving).await;
    readiness_becomes(&rig, StatusCode::OK).await;
    rig.lifecycle.begin_drain();
    for (path, body) in [
        ("/v1/completions", r#"{"prompt": "a"}"#),
        ("/v1/chat/completions", "{}"),
        ("/tokenize", "{}"),
        ("/detokenize", "{}"),
    ] {
        let reply = rig.post(path, body).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(reply.json()["error"]["code"], "shutting_down");
        assert_eq!(reply.headers["retry-after"], "1");
    }
    let ready = rig.get("/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json(), json!({"ready": false, "reason": "the server is shutting down"}));
    for path in ["/health", "/metrics", "/version", "/v1/models"] {
        assert_eq!(rig.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(rig.lifecycle.num_requests(), 0);
    rig.lifecycle.shut_down(Duration::from_secs(1), Duration::from_secs(1)).await.unwrap();
}
