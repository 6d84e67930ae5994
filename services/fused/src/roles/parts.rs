use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use fused_checkpoint::{ModelFiles, Wanted};
use fused_engine::Engine;
use fused_gateway::{ApiKeys, Gateway};
use fused_settings::Settings;
use fused_tokenizer::{EngineEndpoint, Readiness, Tokenizer};
use fused_vocabulary::PatchVocabulary;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::banner::Banner;
use super::device::Device;
use super::engine_config::engine_config;
use super::grpc::{Served, bind, serve_grpc, tcp};
use crate::process::{Failure, Process};
use crate::{http_server, model};

/// How long the parts of one process may take to find each other.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What tokenizer and engine both read.
#[derive(Clone)]
pub(crate) struct Loaded {
    files: ModelFiles,
    patch: Option<PatchVocabulary>,
}

impl Loaded {
    /// On a thread of its own: a download takes minutes, and signals are listened to meanwhile.
    pub(crate) async fn new(settings: &Arc<Settings>, wanted: Wanted) -> anyhow::Result<Self> {
        let settings = Arc::clone(settings);
        let loaded = tokio::task::spawn_blocking(move || {
            let files = model::files(settings.model.as_deref(), wanted)?;
            let patch = model::patch(settings.patch_vocabulary.as_deref(), &files)?;
            Ok(Self { files, patch })
        });
        loaded.await?
    }
}

/// Loads the model and starts the engine's thread.
pub(crate) async fn start_engine(process: &Arc<Process>, loaded: Loaded) -> anyhow::Result<Engine> {
    let device = Device::chosen(&process.settings.device)?;
    let process = Arc::clone(process);
    // Reading and converting weights is work for seconds.
    let started = tokio::task::spawn_blocking(move || {
        let settings = &process.settings;
        let config = engine_config(settings, model::served_name(settings, &loaded.files), device)?;
        let embeddings = model::patch_embeddings(settings.patch_vocabulary.as_deref())?;
        let (files, patch) = (&loaded.files, loaded.patch);
        device.start(config, files, patch, embeddings.as_ref(), &process.lifecycle.tier(2))
    });
    started.await?
}

/// As it was started, even where its file was replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Starts a tokenizer in front of engines.
pub(crate) fn start_tokenizer(
    process: &Process,
    loaded: &Loaded,
    engines: watch::Receiver<Vec<EngineEndpoint>>,
) -> anyhow::Result<Tokenizer> {
    let settings = &process.settings;
    let config = fused_tokenizer::Config {
        model_name: Some(model::served_name(settings, &loaded.files)),
        encode_threads: settings.tokenizer_threads,
        max_waiting_texts: settings.max_waiting_texts,
        max_prompt_bytes: settings.max_body_bytes,
        request_template_renderer: settings.trust_request_chat_template.then(|| THIS_PROGRAM.into()),
        ..fused_tokenizer::Config::default()
    };
    Ok(Tokenizer::start(config, &loaded.files, loaded.patch.clone(), engines, &process.lifecycle.tier(1))?)
}

/// Starts a gateway on a socket.
pub(crate) async fn start_gateway(
    process: &Process,
    text: Channel,
    listener: TcpListener,
) -> anyhow::Result<Gateway> {
    let settings = &process.settings;
    let metrics = process.metrics.clone();
    let origins = settings.allowed_origins.iter().map(|origin| {
        origin.parse().with_context(|| format!("setting allowed_origins: `{origin}` is not an origin"))
    });
    let config = fused_gateway::Config {
        api_keys: ApiKeys::new(api_keys(settings)?),
        allowed_origins: origins.collect::<anyhow::Result<_>>()?,
        max_requests_in_flight: settings.max_requests_in_flight,
        max_body_bytes: settings.max_body_bytes,
        metrics: Arc::new(move || metrics.render()),
        ..fused_gateway::Config::default()
    };
    let gateway = Gateway::new(config, text, &process.lifecycle);
    let server = http_server::serve(listener, gateway.router(), process.lifecycle.clone());
    process.lifecycle.spawn("HTTP server", server);
    Ok(gateway)
}

/// Tokenizer and engine of one process, and the channel to the tokenizer; with `grpc`, both also on a socket.
pub(crate) async fn start_in_process(
    process: &Arc<Process>,
    loaded: Loaded,
    grpc: Option<TcpListener>,
    banner: &mut Banner,
) -> anyhow::Result<(Channel, Failure)> {
    let lifecycle = &process.lifecycle;
    let engine = start_engine(process, loaded.clone()).await?;
    let (channel, connections) = fused_transport::in_memory();
    let routes = Served::new(process).with_engine(&engine).routes();
    lifecycle.spawn("engine server", serve_grpc(connections, routes, lifecycle.clone()));

    let endpoint = EngineEndpoint { name: "in-process".to_owned(), channel };
    let tokenizer = start_tokenizer(process, &loaded, watch::channel(vec![endpoint]).1)?;
    let (text, connections) = fused_transport::in_memory();
    let routes = Served::new(process).with_text(&tokenizer).routes();
    lifecycle.spawn("tokenizer server", serve_grpc(connections, routes, lifecycle.clone()));
    let mut ready = tokenizer.ready();
    let joined = tokio::time::timeout(JOIN_TIMEOUT, ready.wait_for(|ready| *ready == Readiness::Ready)).await;
    if joined.is_err() {
        bail!("the tokenizer cannot use the engine of its own process: {:?}", *tokenizer.ready().borrow());
    }

    if let Some(listener) = grpc {
        banner.add(&listener, "text and token API, gRPC")?;
        let routes = Served::new(process).with_text(&tokenizer).with_engine(&engine).routes();
        lifecycle.spawn("gRPC server", serve_grpc(tcp(listener), routes, lifecycle.clone()));
    }
    Ok((text, Box::pin(engine.failed())))
}

/// Serves /metrics and /health of a service that has no HTTP of its own, where a port is set.
pub(crate) async fn start_metrics(process: &Process, banner: &mut Banner) -> anyhow::Result<()> {
    let Some(port) = process.settings.metrics_port else { return Ok(()) };
    let listener = bind(&process.settings, port, "--metrics-port").await?;
    banner.add(&listener, "metrics")?;
    let metrics = process.metrics.clone();
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(metrics.render())))
        .route("/health", get(|| std::future::ready(())));
    process
        .lifecycle
        .spawn("metrics server", http_server::serve(listener, router, process.lifecycle.clone()));
    Ok(())
}

fn api_keys(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let mut keys = settings.api_key.clone();
    if let Some(path) = &settings.api_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("setting api_key_file: {}", path.display()))?;
        let before = keys.len();
        keys.extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
        if keys.len() == before {
            bail!("setting api_key_file: {} has no key: put one a line", path.display());
        }
    }
    Ok(keys)
}
