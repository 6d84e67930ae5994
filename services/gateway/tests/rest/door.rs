//! Keys, limits, CORS, panics, real sockets.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use fused_gateway::{ApiKeys, Config};
use fused_proto::common::v1::FinishReason;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::{GenerateRequest, TextIncrement, TextLogprobs};
use http::{HeaderValue, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{End, Fake, Script, finish, hello, prompt_info, text, token, usage};
use crate::rig::{Rig, post};

const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn once_a_key_is_set_everything_but_health_asks_for_it() {
    let config = Config { api_keys: ApiKeys::new(["sk-1", "sk-2"]), ..Config::default() };
    let rig = Rig::new(config, Fake::new(hello));
    let with = |path: &str, authorization: Option<&str>| {
        let mut request = Request::get(path);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.body(Body::empty()).unwrap()
    };
    for path in [
        "/v1/models",
        "/v1/models/x",
        "/metrics",
        "/version",
        "/v1/completions",
        "/nothing",
        "/health/",
        "//health",
    ] {
        for authorization in [None, Some("Bearer sk-3"), Some("Bearer "), Some("Basic sk-1"), Some("sk-1")] {
            let reply = rig.send(with(path, authorization)).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} {authorization:?}");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
            let error = &reply.json()["error"];
            assert_eq!(error["code"], "invalid_api_key");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    for key in ["Bearer sk-1", "bearer sk-2"] {
        assert_eq!(rig.send(with("/v1/models", Some(key))).await.status, StatusCode::OK);
        assert_eq!(rig.send(with("/nothing", Some(key))).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(rig.get("/health").await.status, StatusCode::OK);
    assert_ne!(rig.get("/ready").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await.status, StatusCode::UNAUTHORIZED);
    assert!(rig.fake.asked().is_empty());
}

fn endless(_: &GenerateRequest) -> Script {
    Script { refusal: None, messages: vec![prompt_info(), text(0, "Hel")], end: End::Never }
}

#[tokio::test]
async fn one_request_too_many_is_refused_until_one_ends() {
    let config = Config { max_requests_in_flight: 2, ..Config::default() };
    let rig = Rig::new(config, Fake::new(endless));
    let stream = r#"{"prompt": "a", "stream": true}"#;
    let first = rig.begin(post(COMPLETIONS, stream)).await;
    let second = rig.begin(post(COMPLETIONS, stream)).await;
    let refused = rig.post("/tokenize", r#"{"prompt": "a"}"#).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert_eq!(rig.get("/v1/models").await.status, StatusCode::OK);
    drop(first);
    assert_eq!(rig.post("/tokenize", r#"{"prompt": "a"}"#).await.status, StatusCode::OK);
    drop(second);
}

#[tokio::test]
async fn bodies_are_held_within_a_bound_until_their_requests_end() {
    // Three bytes of memory for each byte of a body, and a quarter for short ones.
    let config = Config { max_buffered_bytes: 32 << 10, ..Config::default() };
    let rig = Rig::new(config, Fake::new(endless));
    let stream = format!(r#"{{"prompt": "{}", "stream": true}}"#, "a".repeat(5 << 10));
    let text = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(5 << 10));
    let first = rig.begin(post(COMPLETIONS, &stream)).await;
    assert_eq!(first.status(), StatusCode::OK);
    for _ in 0..2 {
        let refused = rig.post("/tokenize", &text).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers["retry-after"], "1");
        let body = refused.json();
        assert_eq!(body["error"]["code"], "queue_full");
        assert!(body["error"]["message"].as_str().unwrap().contains("24576 bytes"), "{body}");
    }
    assert_eq!(rig.post("/tokenize", r#"{"prompt": "a"}"#).await.status, StatusCode::OK);
    drop(first);
    assert_eq!(rig.post("/tokenize", &text).await.status, StatusCode::OK);
    let never = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(8 << 10));
    assert_eq!(rig.post("/tokenize", &never).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn bodies_that_do_not_come_take_no_places_and_no_memory() {
    let config = Config {
        max_requests_in_flight: 2,
        max_buffered_bytes: 1 << 20,
        body_idle_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let rig = Rig::new(config, Fake::new(hello));
    let address = serve(&rig).await;
    let head = |len: usize| {
        format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n"
        )
    };
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(format!("{}{{", head(64 << 10)).as_bytes()).await.unwrap();
        silent.push(connection);
    }
    let long = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(128 << 10));
    for _ in 0..4 {
        assert_eq!(rig.post(COMPLETIONS, &long).await.status, StatusCode::OK);
    }
    for mut connection in silent {
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 504");
    }
}

#[tokio::test]
async fn log_probabilities_of_collected_answers_are_bounded_and_count_as_memory() {
    let position = || TextLogprobs {
        token: Some(token("Hello", -0.25)),
        top: vec![token("Hi", -1.5); 20],
        text_offset: Some(0),
    };
    let script = move |request: &GenerateRequest| {
        let increment = TextIncrement { logprobs: vec![position(); 128], ..TextIncrement::default() };
        let mut messages = vec![prompt_info()];
        messages.extend((0..16).map(|_| Message::Text(increment.clone())));
        messages.extend((0..request.num_sequences()).map(|idx| finish(idx, FinishReason::Stop, None)));
        messages.push(usage());
        Script { refusal: None, messages, end: End::Whole }
    };
    let ask = |rest: &str| format!(r#"{{"prompt": "a", "logprobs": 20{rest}}}"#);
    let rig = Rig::new(Config { max_buffered_bytes: 20 << 20, ..Config::default() }, Fake::new(script));
    // 43,008 of 256 bytes.
    let whole = rig.post(COMPLETIONS, &ask("")).await;
    assert_eq!(whole.status, StatusCode::OK);
    let small = Rig::new(Config { max_buffered_bytes: 8 << 20, ..Config::default() }, Fake::new(script));
    let reply = small.post(COMPLETIONS, &ask("")).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &"payload_too_large".into())
    );
    // A stream holds nothing, and the memory is free again.
    let streamed = small.post(COMPLETIONS, &ask(r#", "stream": true"#)).await;
    assert!(!streamed.body.contains("error"), "{}", streamed.body);
    let many = r#", "n": 8, "max_tokens": 8192"#;
    let chat = r#"{"messages": [{"role": "user", "content": "a"}], "n": 8, "max_completion_tokens": 8192,
        "logprobs": true, "top_logprobs": 20}"#;
    for (route, body, param) in
        [(COMPLETIONS, ask(many), "logprobs"), ("/v1/chat/completions", chat.to_owned(), "top_logprobs")]
    {
        let refused = rig.post(route, &body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let error = &refused.json()["error"];
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains("over 524288"), "{error}");
    }
    let streamed = rig.begin(post(COMPLETIONS, &ask(&format!(r#"{many}, "stream": true"#)))).await;
    assert_eq!(streamed.status(), StatusCode::OK);
}

#[tokio::test]
async fn cors_only_for_allowed_origins_and_without_a_key() {
    let preflight = |origin: &'static str, method: &'static str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri(COMPLETIONS)
            .header("origin", origin)
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "authorization,x-stainless-os,x-of-tomorrow")
            .body(Body::empty())
            .unwrap()
    };
    let allow = "access-control-allow-origin";
    let off = Rig::hello();
    assert!(!off.send(preflight("https://a.example", "POST")).await.headers.contains_key(allow));
    let config = Config {
        allowed_origins: vec![HeaderValue::from_static("https://a.example")],
        api_keys: ApiKeys::new(["k"]),
        ..Config::default()
    };
    let on = Rig::new(config, Fake::new(hello));
    let reply = on.send(preflight("https://a.example", "POST")).await;
    assert_eq!(
        (reply.status, &reply.headers[allow]),
        (StatusCode::OK, &HeaderValue::from_static("https://a.example"))
    );
    assert_eq!(reply.headers["access-control-allow-headers"], "authorization,x-stainless-os,x-of-tomorrow");
    for method in ["GET", "POST", "DELETE"] {
        let reply = on.send(preflight("https://a.example", method)).await;
        assert_eq!(reply.headers["access-control-allow-methods"], method);
    }
    assert!(!on.send(preflight("https://b.example", "POST")).await.headers.contains_key(allow));
    // A refusal must be readable by the page, and says when to come back.
    let request = post(COMPLETIONS, "{}");
    let (mut head, body) = request.into_parts();
    head.headers.insert("origin", HeaderValue::from_static("https://a.example"));
    let refused = on.send(Request::from_parts(head, body)).await;
    assert_eq!(
        (refused.status, &refused.headers[allow]),
        (StatusCode::UNAUTHORIZED, &"https://a.example".parse().unwrap())
    );
    let exposed = refused.headers["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("retry-after") && exposed.contains("x-ratelimit-remaining-tokens"), "{exposed}");
    let config = Config { allowed_origins: vec![HeaderValue::from_static("*")], ..Config::default() };
    let any = Rig::new(config, Fake::new(hello));
    assert_eq!(any.send(preflight("https://b.example", "POST")).await.headers[allow], "*");
}

#[tokio::test]
async fn a_panic_is_a_500_and_nobody_elses_business() {
    let config = Config { metrics: Some(Arc::new(|| panic!("no metrics today"))), ..Config::default() };
    let rig = Rig::new(config, Fake::new(hello));
    let reply = rig.get("/metrics").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(reply.json()["error"]["code"], "internal");
    assert!(!reply.body.contains("no metrics today"));
    assert!(reply.headers.contains_key("x-request-id"));
    assert_eq!(rig.get("/version").await.status, StatusCode::OK);
}

/// The router on a real socket.
async fn serve(rig: &Rig) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = rig.router.clone();
    rig.lifecycle.spawn("http", async move { axum::serve(listener, router).await });
    address
}

#[tokio::test]
async fn a_closed_connection_cancels_whole_and_streamed_requests() {
    let rig = Rig::new(Config::default(), Fake::new(endless));
    let address = serve(&rig).await;
    for body in [r#"{"prompt": "a", "stream": true}"#, r#"{"prompt": "a"}"#] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), rig.fake.open_streams(1)).await.unwrap();
        drop(connection);
        tokio::time::timeout(Duration::from_secs(10), rig.fake.open_streams(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_sends_ten_megabytes_hears_why_they_were_too_many() {
    let rig = Rig::hello();
    let address = serve(&rig).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let body = vec![b' '; 10 << 20];
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&body).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(r#""code":"payload_too_large""#), "{answer}");
}
