use std::future::Future;
use std::net::SocketAddr;

use anyhow::Context;
use fused_engine::Engine;
use fused_lifecycle::Lifecycle;
use fused_proto::FILE_DESCRIPTOR_SET;
use fused_proto::engine::v1::engine_server::SERVICE_NAME as ENGINE_SERVICE;
use fused_proto::text::v1::text_generation_server::SERVICE_NAME as TEXT_SERVICE;
use fused_settings::Settings;
use fused_tokenizer::{Readiness, Tokenizer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::service::RoutesBuilder;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::http_server;
use crate::process::Process;

/// Binds the settings' host and a port.
pub(crate) async fn bind(settings: &Settings, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("setting host: `{host}` is not the name of an address"))?;
    let address: SocketAddr =
        addresses.next().with_context(|| format!("setting host: `{host}` has no address"))?;
    Ok(fused_transport::bind(address, flag).await?)
}

/// Connections over a socket.
pub(crate) fn tcp(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Serves until the process stops.
pub(crate) async fn serve_grpc<S, C>(connections: S, routes: RoutesBuilder, lifecycle: Lifecycle)
where
    S: Stream<Item = std::io::Result<C>> + Send,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let server = fused_transport::server().add_routes(routes.routes());
    let served = server.serve_with_incoming_shutdown(connections, lifecycle.stopped());
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "the gRPC server ended");
        },
        // A client that does not read cannot hold up the end.
        () = http_server::closed(lifecycle) => {}
    }
}

/// The services of one gRPC server, with the standard health and reflection services beside them.
pub(crate) struct Served {
    routes: RoutesBuilder,
    health: HealthReporter,
    lifecycle: Lifecycle,
}

impl Served {
    pub(crate) fn new(process: &Process) -> Self {
        let (health, service) = tonic_health::server::health_reporter();
        let mut routes = RoutesBuilder::default();
        routes.add_service(service);
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        // Both versions: many clients still ask for the older one.
        match (reflection().build_v1(), reflection().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => {
                routes.add_service(v1).add_service(v1alpha);
            }
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "gRPC reflection is not served"),
        }
        Self { routes, health, lifecycle: process.lifecycle.clone() }
    }

    pub(crate) fn with_text(mut self, tokenizer: &Tokenizer) -> Self {
        self.routes.add_service(tokenizer.service());
        let reports = report_text(self.health.clone(), tokenizer.ready(), self.lifecycle.clone());
        self.lifecycle.spawn("text health", reports);
        self
    }

    pub(crate) fn with_engine(mut self, engine: &Engine) -> Self {
        self.routes.add_service(engine.service());
        let reports = report_engine(self.health.clone(), engine.failed(), self.lifecycle.clone());
        self.lifecycle.spawn("engine health", reports);
        self
    }

    pub(crate) fn routes(self) -> RoutesBuilder {
        self.routes
    }
}

/// The text service serves while an engine is usable and the process does not drain.
async fn report_text(health: HealthReporter, mut ready: watch::Receiver<Readiness>, lifecycle: Lifecycle) {
    let draining = lifecycle.draining();
    tokio::pin!(draining);
    loop {
        let status = match *ready.borrow_and_update() {
            Readiness::Ready => ServingStatus::Serving,
            Readiness::NotReady(_) => ServingStatus::NotServing,
        };
        health.set_service_status(TEXT_SERVICE, status).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { break },
            () = &mut draining => break,
        }
    }
    health.set_service_status(TEXT_SERVICE, ServingStatus::NotServing).await;
}

/// The engine serves until it is lost or the process drains. A process that has lost its engine is of no more use at all.
async fn report_engine(
    health: HealthReporter,
    failed: impl Future<Output = String> + Send,
    lifecycle: Lifecycle,
) {
    health.set_service_status(ENGINE_SERVICE, ServingStatus::Serving).await;
    tokio::select! {
        _ = failed => health.set_service_status("", ServingStatus::NotServing).await,
        () = lifecycle.draining() => {}
    }
    health.set_service_status(ENGINE_SERVICE, ServingStatus::NotServing).await;
}
