//! What each serving subcommand puts together.

mod banner;
mod buffered;
mod device;
mod engine_config;
mod grpc;
mod parts;

use std::sync::Arc;

use anyhow::{Context, bail};
use fused_checkpoint::Wanted;
use fused_lifecycle::Lifecycle;
use fused_settings::Settings;
use fused_telemetry::Metrics;
use fused_transport::follow;

use crate::process::{Failure, Process};
use banner::{Banner, Example};
pub(crate) use device::Device;
pub(crate) use engine_config::{complete, engine_config};
use grpc::{Served, bind, serve_grpc};
use parts::{
    JOIN_TIMEOUT, Loaded, start_engine, start_gateway, start_in_process, start_metrics, start_tokenizer,
};

const TOKENIZER_GRPC_PORT: u16 = 50051;
const ENGINE_GRPC_PORT: u16 = 50052;
const DEFAULT_TOKENIZER: &str = "http://127.0.0.1:50051";
const DEFAULT_ENGINE: &str = "http://127.0.0.1:50052";

/// Gateway, tokenizer and engine in one process, joined by in-memory channels.
pub(crate) async fn serve(process: Arc<Process>) -> anyhow::Result<Failure> {
    let settings = &process.settings;
    check_tokenizer(&settings.tokenizer)?;
    // Bound before the model is loaded: a port in use shows at once.
    let http = bind(settings, settings.port, "--port").await?;
    let grpc = match settings.grpc_port {
        Some(port) => Some(bind(settings, port, "--grpc-port").await?),
        None => None,
    };
    let mut banner = Banner::new(&http, "OpenAI API")?;
    let loaded = Loaded::new(settings, Wanted::Everything).await?;
    let is_open =
        settings.api_key.is_empty() && settings.api_key_file.is_none() && settings.tenants_file.is_none();
    if grpc.is_some() && !is_open {
        tracing::warn!("the gRPC port asks for no API key: let only the gateway's own network reach it");
    }
    let parts = start_in_process(&process, loaded, grpc, &mut banner).await?;
    let gateway = start_gateway(&process, parts.text, http).await?;
    start_metrics(&process, &mut banner).await?;
    // What is printed next invites requests.
    let ready = tokio::time::timeout(JOIN_TIMEOUT, gateway.wait_ready());
    ready.await.context("the gateway cannot use the tokenizer of its own process")?;
    let example = Example {
        key: (!is_open).then(|| example_key(settings)),
        is_chat: parts.has_chat_template,
        max_model_len: parts.max_model_len,
    };
    banner.with_example(&example).print()?;
    Ok(parts.failure)
}

/// Other servers have a setting of this name for the tokenizer's files; one file of settings for all roles may name
/// services here that this one has in itself.
fn check_tokenizer(urls: &[String]) -> anyhow::Result<()> {
    match urls.iter().find(|url| !url.contains("://")) {
        None => Ok(()),
        Some(name) => bail!(
            "setting tokenizer: `{name}` is not the URL of a tokenizer service, which `fused gateway` sends to; the files of \
             the tokenizer are those in the model's directory"
        ),
    }
}

/// A key as a shell finds it, without showing it: where it came from, if that is a place with one key.
fn example_key(settings: &Settings) -> String {
    match (std::env::var("FUSED_API_KEY"), &settings.api_key_file) {
        (Ok(key), _) if settings.api_key.as_slice() == [key.as_str()] => "$FUSED_API_KEY".to_owned(),
        (_, Some(file)) => format!("$(grep -v '^#' '{}' | head -n 1)", file.display()),
        (_, None) => "$API_KEY".to_owned(),
    }
}

/// What [`serve`] runs, with the demo model on any free port; returns its URL. It ends with the process.
pub(crate) async fn serve_for_bench() -> anyhow::Result<String> {
    let settings = Settings { port: 0, ..Settings::default() };
    let process = Arc::new(Process {
        settings: Arc::new(settings),
        lifecycle: Lifecycle::new(),
        metrics: Metrics::install()?,
    });
    let http = bind(&process.settings, 0, "--port").await?;
    let mut banner = Banner::new(&http, "OpenAI API")?;
    let loaded = Loaded::new(&process.settings, Wanted::Everything).await?;
    let parts = start_in_process(&process, loaded, None, &mut banner).await?;
    start_gateway(&process, parts.text, http).await?.wait_ready().await;
    Ok(banner.first_url().to_owned())
}

/// The gateway alone.
pub(crate) async fn gateway(process: Arc<Process>) -> anyhow::Result<Failure> {
    let settings = &process.settings;
    let http = bind(settings, settings.port, "--port").await?;
    let mut banner = Banner::new(&http, "OpenAI API")?;
    let urls = one_or(&settings.tokenizer, DEFAULT_TOKENIZER);
    let text = follow(&urls, &process.lifecycle).context("setting tokenizer")?;
    start_gateway(&process, text, http).await?;
    start_metrics(&process, &mut banner).await?;
    banner.print()?;
    Ok(Box::pin(std::future::pending()))
}

/// The tokenizer alone.
pub(crate) async fn tokenizer(process: Arc<Process>) -> anyhow::Result<Failure> {
    let settings = &process.settings;
    let grpc = bind(settings, settings.grpc_port.unwrap_or(TOKENIZER_GRPC_PORT), "--grpc-port").await?;
    let mut banner = Banner::new(&grpc, "text API, gRPC")?;
    let urls = one_or(&settings.engine, DEFAULT_ENGINE);
    let engines = follow(&urls, &process.lifecycle).context("setting engine")?;
    let loaded = Loaded::new(settings, Wanted::NoWeights).await?;
    let tokenizer = start_tokenizer(&process, &loaded, engines)?;
    let routes = Served::new(&process).with_text(&tokenizer).routes();
    process.lifecycle.spawn("tokenizer gRPC server", serve_grpc(grpc, routes, process.lifecycle.clone()));
    start_metrics(&process, &mut banner).await?;
    banner.print()?;
    Ok(Box::pin(std::future::pending()))
}

/// An engine alone.
pub(crate) async fn engine(process: Arc<Process>) -> anyhow::Result<Failure> {
    let settings = &process.settings;
    let grpc = bind(settings, settings.grpc_port.unwrap_or(ENGINE_GRPC_PORT), "--grpc-port").await?;
    let mut banner = Banner::new(&grpc, "token API, gRPC")?;
    let engine = start_engine(&process, Loaded::new(settings, Wanted::Everything).await?).await?;
    let routes = Served::new(&process).with_engine(&engine).routes();
    process.lifecycle.spawn("engine gRPC server", serve_grpc(grpc, routes, process.lifecycle.clone()));
    start_metrics(&process, &mut banner).await?;
    banner.print()?;
    Ok(Box::pin(engine.failed()))
}

/// The URLs that are set, or the default one.
fn one_or(urls: &[String], default: &str) -> Vec<String> {
    if urls.is_empty() { vec![default.to_owned()] } else { urls.to_vec() }
}
