//! Clients that misbehave, on connections in memory and a paused clock.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use fused_lifecycle::Lifecycle;
use futures_util::stream;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Limits;
use super::connection::{Settings, run};

const KEEP_ALIVE: Duration = Duration::from_secs(75);

struct Rig {
    settings: Arc<Settings>,
    lifecycle: Lifecycle,
    /// Streams of `/forever` that nobody has ended.
    num_open: watch::Receiver<usize>,
}

/// Counts a stream for as long as the answer holds it.
struct OpenGuard(watch::Sender<usize>);

impl OpenGuard {
    fn new(num_open: &watch::Sender<usize>) -> Self {
        num_open.send_modify(|num| *num += 1);
        Self(num_open.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.send_modify(|num| *num -= 1);
    }
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let lifecycle = Lifecycle::new();
        let (sender, num_open) = watch::channel(0);
        let forever = move || {
            let guard = OpenGuard::new(&sender);
            let chunks = stream::unfold(guard, |guard| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"chunk")), guard))
            });
            std::future::ready(Body::from_stream(chunks))
        };
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            "slow"
        };
        let large = get(|| async { vec![b'x'; 1 << 20] });
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/slow", get(slow))
            .route("/large", large)
            .route("/forever", get(forever));
        let settings = Arc::new(Settings::new(router, limits, lifecycle.clone()));
        Self { settings, lifecycle, num_open }
    }

    fn http() -> Self {
        Self::new(Limits::http(KEEP_ALIVE))
    }

    fn connect(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let settings = Arc::clone(&self.settings);
        self.lifecycle.spawn("connection", async move { run(server, &settings).await });
        client
    }

    async fn http2(&self, stream_window_bytes: u32) -> h2::client::SendRequest<Bytes> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(stream_window_bytes).max_concurrent_reset_streams(10_000);
        let (requests, connection) = builder.handshake(self.connect()).await.unwrap();
        // Its end is seen by the requests.
        self.lifecycle.spawn("client", async move { connection.await.is_ok() });
        requests
    }
}

fn request(path: &str) -> Request<()> {
    Request::get(format!("http://test{path}")).body(()).unwrap()
}

/// Seconds until the server closes.
async fn closed_after(client: &mut DuplexStream) -> u64 {
    let start = Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    start.elapsed().as_secs()
}

async fn ask(client: &mut DuplexStream) {
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 1024];
    let num = client.read(&mut answer).await.unwrap();
    assert!(answer[..num].ends_with(b"hello"), "{:?}", String::from_utf8_lossy(&answer[..num]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_nothing_is_closed() {
    for limits in [Limits::http(KEEP_ALIVE), Limits::grpc()] {
        for sent in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut client = Rig::new(limits.clone()).connect();
            client.write_all(sent.as_bytes()).await.unwrap();
            assert!((30..33).contains(&closed_after(&mut client).await), "{sent:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_however_it_comes() {
    let rig = Rig::http();
    let mut client = rig.connect();
    let dripped = async {
        for byte in "GET / HTTP/1.1\r\nx: ".bytes().chain(std::iter::repeat(b'y')) {
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let start = Instant::now();
    dripped.await;
    assert!((30..34).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    // The same on a connection that has had a request and was idle: its head's time begins with its first byte.
    let mut client = rig.connect();
    ask(&mut client).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.write_all(b"GET").await.unwrap();
    assert!((30..33).contains(&closed_after(&mut client).await));
}

#[tokio::test(start_paused = true)]
async fn idle_connections_stay_open_for_the_keep_alive_time() {
    let rig = Rig::http();
    let mut client = rig.connect();
    ask(&mut client).await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    ask(&mut client).await;
    assert!((75..78).contains(&closed_after(&mut client).await));

    let mut requests = rig.http2(65_535).await;
    let (answer, _) = requests.send_request(request("/"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    let start = Instant::now();
    while futures_util::future::poll_fn(|cx| requests.poll_ready(cx)).await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(start.elapsed() < Duration::from_secs(90), "still open");
    }
    assert!(start.elapsed() > Duration::from_secs(74), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_running_request_keeps_its_connection() {
    let mut rig = Rig::http();
    let mut client = rig.connect();
    client.write_all(b"GET /forever HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut chunk = [0; 1024];
    for _ in 0..300 {
        assert!(client.read(&mut chunk).await.unwrap() > 0);
    }
    drop(client);
    rig.num_open.wait_for(|num| *num == 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn streams_whose_client_takes_nothing_end_and_others_of_the_connection_do_not() {
    for limits in [Limits::http(KEEP_ALIVE), Limits::grpc()] {
        let mut rig = Rig::new(limits);
        let mut requests = rig.http2(0).await;
        let mut answers = Vec::new();
        for _ in 0..100 {
            let (answer, _) = requests.send_request(request("/forever"), true).unwrap();
            answers.push(answer.await.unwrap());
        }
        let mut taken = answers.pop().unwrap().into_body();
        taken.flow_control().release_capacity(0).unwrap();
        let start = Instant::now();
        rig.num_open.wait_for(|num| *num == 100).await.unwrap();
        // One of them is read; h2's client gives a stream window only for what was taken, so that it gets one anew.
        let (answer, _) = requests.send_request(request("/slow"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
        rig.num_open.wait_for(|num| *num == 0).await.unwrap();
        assert!((58..64).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        let (answer, _) = requests.send_request(request("/"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK, "the connection is as good as before");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_a_little_at_a_time_gets_all() {
    let rig = Rig::http();
    let mut requests = rig.http2(16 << 10).await;
    let (answer, _) = requests.send_request(request("/large"), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut num_bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        num_bytes += data.len();
        // Slowly, but within a minute for each piece.
        tokio::time::sleep(Duration::from_secs(25)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(num_bytes, 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_nothing_is_closed() {
    let mut rig = Rig::http();
    let mut client = rig.connect();
    client.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(70)).await;
    // What was on its way is all that there is.
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < 1 << 20 && start.elapsed() < Duration::from_secs(71));
    assert_eq!(*rig.num_open.borrow_and_update(), 0);
}

/// Everybody's requests share a connection between services: those who hang up must not end the others'.
#[tokio::test(start_paused = true)]
async fn resets_of_some_do_not_end_the_streams_of_others() {
    for (limits, num_resets) in [(Limits::http(KEEP_ALIVE), 100), (Limits::grpc(), 3000)] {
        let rig = Rig::new(limits);
        let mut requests = rig.http2(65_535).await;
        let (honest, _) = requests.send_request(request("/slow"), true).unwrap();
        for _ in 0..num_resets {
            futures_util::future::poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let (answer, mut stream) = requests.send_request(request("/slow"), false).unwrap();
            stream.send_reset(h2::Reason::CANCEL);
            drop(answer);
        }
        assert_eq!(honest.await.unwrap().status(), StatusCode::OK);
        let (after, _) = requests.send_request(request("/"), true).unwrap();
        assert_eq!(after.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_kept_alive_clients_to_go() {
    let rig = Rig::http();
    let mut client = rig.connect();
    ask(&mut client).await;
    let mut requests = rig.http2(65_535).await;
    let (running, _) = requests.send_request(request("/slow"), true).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.lifecycle.begin_drain();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(running.await.unwrap().status(), StatusCode::OK, "what runs is not cut");
    assert!(futures_util::future::poll_fn(|cx| requests.poll_ready(cx)).await.is_err(), "told to go");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_cannot_hold_up_the_end() {
    let rig = Rig::http();
    let _client = rig.connect();
    let mut requests = rig.http2(0).await;
    let (answer, _) = requests.send_request(request("/forever"), true).unwrap();
    answer.await.unwrap();
    rig.lifecycle.shut_down(Duration::ZERO, Duration::from_secs(5)).await.unwrap();
}
