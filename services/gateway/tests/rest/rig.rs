//! A gateway in front of a fake, called without a socket.

use axum::Router;
use axum::body::{Body, to_bytes};
use fused_gateway::{Config, Gateway};
use fused_lifecycle::Lifecycle;
use fused_proto::text::v1::text_generation_server::TextGenerationServer;
use fused_transport::Replica;
use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt;

use crate::fake::{Fake, hello};

pub(crate) struct Rig {
    pub(crate) router: Router,
    pub(crate) fake: Fake,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) health: HealthReporter,
}

/// An answer read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Rig {
    pub(crate) fn hello() -> Self {
        Self::new(Config::default(), Fake::new(hello))
    }

    pub(crate) fn new(config: Config, fake: Fake) -> Self {
        let lifecycle = Lifecycle::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        let routes = Routes::new(TextGenerationServer::new(fake.clone())).add_service(health_service);
        let channel = fused_transport::in_process(routes, &lifecycle);
        let replicas = vec![Replica { name: "fake".to_owned(), channel }];
        let router = Gateway::new(config, watch::channel(replicas).1, &lifecycle).router();
        let rig = Self { router, fake, lifecycle, health };
        // Nobody else has the health yet, so that there is nothing to wait for.
        rig.set_ready(ServingStatus::Serving).now_or_never().unwrap();
        rig
    }

    pub(crate) async fn set_ready(&self, status: ServingStatus) {
        self.health.set_service_status("fused.text.v1.TextGeneration", status).await;
    }

    /// The head of an answer; its body is still to be read.
    pub(crate) async fn begin(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        Reply::read(self.begin(request).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(post(path, body)).await
    }
}

pub(crate) fn post(path: &str, body: &str) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(path).header(CONTENT_TYPE, "application/json");
    request.body(Body::from(body.to_owned())).unwrap()
}

impl Reply {
    pub(crate) async fn read(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Self { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The `data:` events in order, and nothing else in the body.
    pub(crate) fn events(&self) -> Vec<&str> {
        let events = self.body.strip_suffix("\n\n").unwrap().split("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap()).collect()
    }
}
