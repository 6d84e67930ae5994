//! One trace a request, from the gateway through the tokenizer to the engine, exported over OTLP.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fused_testkit::Server;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tokio_stream::wrappers::TcpListenerStream;

#[derive(Clone, Default)]
struct Sink {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans;
        let spans =
            resources.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.spans.lock().unwrap().extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Sink {
    async fn serve(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self));
        #[expect(clippy::disallowed_methods, reason = "the sink ends with the test")]
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    /// Waits for a span; exporters send every few seconds.
    async fn span(&self, name: &str) -> Span {
        let started = Instant::now();
        loop {
            let found = self.spans.lock().unwrap().iter().find(|span| span.name == name).cloned();
            if let Some(span) = found {
                return span;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "no span {name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_across_three_processes() {
    let sink = Sink::default();
    let otlp = sink.clone().serve().await;
    let start = |arguments: &[&str]| {
        let arguments = [arguments, &["--otlp-endpoint", &otlp]].concat();
        Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
    };
    let engine = start(&["engine", "--grpc-port", "0"]);
    let tokenizer = start(&["tokenizer", "--grpc-port", "0", "--engine", &engine.urls[0]]);
    let gateway = start(&["gateway", "--port", "0", "--tokenizer", &tokenizer.urls[0]]);
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let started = Instant::now();
    loop {
        let answer = gateway
            .http
            .post(gateway.url("/v1/completions"))
            .header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01"))
            .json(&json!({"prompt": "x", "max_tokens": 2}))
            .send()
            .await
            .unwrap();
        if answer.status() == 200 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{}", answer.text().await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for server in [gateway, tokenizer, engine] {
        server.terminate().unwrap();
        server.wait().unwrap();
    }
    let engine = sink.span("engine.generate").await;
    let trace: Vec<Span> = {
        let spans = sink.spans.lock().unwrap();
        spans.iter().filter(|span| span.trace_id == engine.trace_id).cloned().collect()
    };
    let hexadecimal: String = engine.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hexadecimal, trace_id);
    // From the engine's span every parent is in the trace, up to the client's.
    let mut names = vec![engine.name.clone()];
    let mut span = engine;
    while let Some(parent) = trace.iter().find(|other| other.span_id == span.parent_span_id) {
        names.push(parent.name.clone());
        span = parent.clone();
    }
    for name in ["engine.generate", "tokenizer.generate", "gateway.request"] {
        assert!(names.iter().any(|other| other == name), "no {name} in {names:?}");
    }
}
