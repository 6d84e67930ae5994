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
use fused_transport::Limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::process::Process;

const HEALTH_SERVICE: &str = "grpc.health.v1.Health";
const REFLECTION_V1: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

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

/// Serves gRPC until the process stops.
pub(crate) async fn serve_grpc(listener: TcpListener, routes: Routes, lifecycle: Lifecycle) {
    fused_transport::serve(listener, fused_transport::grpc(routes), Limits::grpc(), lifecycle).await;
}

/// The services of one gRPC server, with the standard health and reflection services beside them.
pub(crate) struct Served {
    routes: RoutesBuilder,
    health: HealthReporter,
    /// What reflection lists: what is served here, and nothing else that the contracts have.
    names: Vec<&'static str>,
    lifecycle: Lifecycle,
}

impl Served {
    pub(crate) fn new(process: &Process) -> Self {
        let (health, service) = tonic_health::server::health_reporter();
        let mut routes = RoutesBuilder::default();
        routes.add_service(service);
        Self { routes, health, names: vec![HEALTH_SERVICE], lifecycle: process.lifecycle.clone() }
    }

    pub(crate) fn with_text(mut self, tokenizer: &Tokenizer) -> Self {
        self.routes.add_service(tokenizer.service());
        self.names.push(TEXT_SERVICE);
        let reports = report_text(self.health.clone(), tokenizer.ready(), self.lifecycle.clone());
        self.lifecycle.spawn("text health", reports);
        self
    }

    pub(crate) fn with_engine(mut self, engine: &Engine) -> Self {
        self.routes.add_service(engine.service());
        self.names.push(ENGINE_SERVICE);
        let reports = report_engine(self.health.clone(), engine.failed(), self.lifecycle.clone());
        self.lifecycle.spawn("engine health", reports);
        self
    }

    pub(crate) fn routes(mut self) -> Routes {
        // Both versions: many clients still ask for the older one.
        let v1 = self.reflection().with_service_name(REFLECTION_V1).build_v1();
        let v1alpha = self.reflection().with_service_name(REFLECTION_V1ALPHA).build_v1alpha();
        match (v1, v1alpha) {
            (Ok(v1), Ok(v1alpha)) => {
                self.routes.add_service(v1).add_service(v1alpha);
            }
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "gRPC reflection is not served"),
        }
        self.routes.routes()
    }

    fn reflection(&self) -> tonic_reflection::server::Builder<'static> {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        self.names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
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
    leave(health, TEXT_SERVICE, &lifecycle).await;
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
    leave(health, ENGINE_SERVICE, &lifecycle).await;
}

/// Not serving, and, once the process stops, no more: that ends the streams of those who watch.
async fn leave(mut health: HealthReporter, service: &str, lifecycle: &Lifecycle) {
    health.set_service_status(service, ServingStatus::NotServing).await;
    lifecycle.stopped().await;
    health.clear_service_status(service).await;
}
