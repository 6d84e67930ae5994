use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use fused_checkpoint::{ModelFiles, Wanted};
use fused_engine::Engine;
use fused_gateway::{Gateway, KeySources};
use fused_lifecycle::Lifecycle;
use fused_settings::Settings;
use fused_tokenizer::{Readiness, Tokenizer};
use fused_transport::{Limits, Replica};
use fused_vocabulary::PatchVocabulary;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;

use super::banner::Banner;
use super::buffered;
use super::device::Device;
use super::engine_config::engine_config;
use super::grpc::{Served, bind, serve_grpc};
use crate::model;
use crate::process::{Failure, Process};

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
    engines: watch::Receiver<Vec<Replica>>,
) -> anyhow::Result<Tokenizer> {
    let settings = &process.settings;
    let config = fused_tokenizer::Config {
        model_names: model::served_names(settings, &loaded.files),
        generation_config: model::generation_config(settings, &loaded.files)?,
        encode_threads: settings.tokenizer_threads,
        max_waiting_texts: settings.max_waiting_texts,
        max_prompt_bytes: settings.max_body_bytes,
        max_text_memory_bytes: buffered::max_bytes(settings),
        chat_template: settings.chat_template.as_deref().map(model::chat_template).transpose()?,
        request_template_renderer: settings.trust_request_chat_template.then(|| THIS_PROGRAM.into()),
        ..fused_tokenizer::Config::default()
    };
    Ok(Tokenizer::start(config, &loaded.files, loaded.patch.clone(), engines, &process.lifecycle.tier(1))?)
}

/// Starts a gateway on a socket.
pub(crate) async fn start_gateway(
    process: &Process,
    text: watch::Receiver<Vec<Replica>>,
    listener: TcpListener,
) -> anyhow::Result<Gateway> {
    let settings = &process.settings;
    let metrics = process.metrics.clone();
    let origins = settings.allowed_origins.iter().map(|origin| {
        origin.parse().with_context(|| format!("setting allowed_origins: `{origin}` is not an origin"))
    });
    let key_sources = KeySources {
        keys: settings.api_key.clone(),
        key_file: settings.api_key_file.clone(),
        tenants_file: settings.tenants_file.clone(),
    };
    let api_keys = key_sources.load().context("setting api_key_file or tenants_file")?;
    warn_of_keys(api_keys.is_empty(), listener.local_addr()?);
    let config = fused_gateway::Config {
        api_keys,
        key_sources,
        isolate_prefix_cache: settings.isolate_prefix_cache,
        max_buffered_bytes: buffered::max_bytes(settings),
        allowed_origins: origins.collect::<anyhow::Result<_>>()?,
        max_requests_in_flight: settings.max_requests_in_flight,
        max_body_bytes: settings.max_body_bytes,
        // What is counted by tenant is no customer's to read.
        metrics: settings
            .tenants_file
            .is_none()
            .then(|| -> fused_gateway::RenderMetrics { Arc::new(move || metrics.render()) }),
        ..fused_gateway::Config::default()
    };
    let gateway = Gateway::new(config, text, &process.lifecycle);
    let limits = Limits::http(Duration::from_secs(settings.http_keep_alive_s));
    let server = fused_transport::serve(listener, gateway.router(), limits, process.lifecycle.clone());
    process.lifecycle.spawn("HTTP server", server);
    Ok(gateway)
}

/// Tokenizer and engine of one process.
pub(crate) struct InProcess {
    /// The way to the tokenizer.
    pub(crate) text: watch::Receiver<Vec<Replica>>,
    pub(crate) failure: Failure,
    pub(crate) has_chat_template: bool,
    pub(crate) max_model_len: usize,
}

/// Starts tokenizer and engine in this process; with `grpc`, both also on a socket.
pub(crate) async fn start_in_process(
    process: &Arc<Process>,
    loaded: Loaded,
    grpc: Option<TcpListener>,
    banner: &mut Banner,
) -> anyhow::Result<InProcess> {
    let lifecycle = &process.lifecycle;
    let engine = start_engine(process, loaded.clone()).await?;
    let engines = in_process(Served::new(process).with_engine(&engine).routes(), lifecycle);
    let tokenizer = start_tokenizer(process, &loaded, engines)?;
    let text = in_process(Served::new(process).with_text(&tokenizer).routes(), lifecycle);
    let mut ready = tokenizer.ready();
    let joined = tokio::time::timeout(JOIN_TIMEOUT, ready.wait_for(|ready| *ready == Readiness::Ready)).await;
    if joined.is_err() {
        bail!("the tokenizer cannot use the engine of its own process: {:?}", *tokenizer.ready().borrow());
    }

    if let Some(listener) = grpc {
        banner.add(&listener, "text and token API, gRPC")?;
        let routes = Served::new(process).with_text(&tokenizer).with_engine(&engine).routes();
        lifecycle.spawn("gRPC server", serve_grpc(listener, routes, lifecycle.clone()));
    }
    Ok(InProcess {
        text,
        failure: Box::pin(engine.failed()),
        has_chat_template: tokenizer.has_chat_template(),
        max_model_len: engine.model_info().max_model_len,
    })
}

/// The one replica of a service of this process.
fn in_process(routes: Routes, lifecycle: &Lifecycle) -> watch::Receiver<Vec<Replica>> {
    let channel = fused_transport::in_process(routes, lifecycle);
    watch::channel(vec![Replica { name: "in-process".to_owned(), channel }]).1
}

/// Serves /metrics and /health on a port of their own, where one is set.
pub(crate) async fn start_metrics(process: &Process, banner: &mut Banner) -> anyhow::Result<()> {
    let Some(port) = process.settings.metrics_port else { return Ok(()) };
    let listener = bind(&process.settings, port, "--metrics-port").await?;
    banner.add(&listener, "metrics")?;
    let metrics = process.metrics.clone();
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(metrics.render())))
        .route("/health", get(|| std::future::ready(())));
    let limits = Limits::http(Duration::from_secs(process.settings.http_keep_alive_s));
    let server = fused_transport::serve(listener, router, limits, process.lifecycle.clone());
    process.lifecycle.spawn("metrics server", server);
    Ok(())
}

/// Says what makes a door more open than it may be meant to be.
fn warn_of_keys(is_open: bool, address: SocketAddr) {
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "whoever reaches this address may use the model: no API key is set; set api_key_file, or host to 127.0.0.1"
        );
    }
    let is_flag = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        argument == "--api-key" || argument.starts_with("--api-key=")
    };
    if std::env::args_os().any(|argument| is_flag(&argument)) {
        tracing::warn!(
            "an API key given by --api-key shows in the process list: use api_key_file or FUSED_API_KEY"
        );
    }
}
