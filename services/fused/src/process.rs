//! The life of a process that serves: settings, telemetry, services, signal, drain, end.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fused_lifecycle::{Lifecycle, ShutdownSignals};
use fused_settings::Settings;
use fused_telemetry::{Metrics, Telemetry};

use crate::cli::Service;
use crate::roles::{self, Device};

/// How long tasks get to end once they are told to.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often metrics that nobody scrapes are folded.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// What a role is built from.
pub(crate) struct Process {
    pub(crate) settings: Arc<Settings>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: Metrics,
}

/// What a tool exits with where its input is at fault: a flag, a file, a corpus, a model, a vocabulary. As clap
/// does.
const BAD_INPUT: u8 = 2;
/// What a tool exits with that was told to end: 128 and SIGINT, as shells count.
pub(crate) const INTERRUPTED: u8 = 130;

/// Completes when a role cannot serve any more, with the reason.
pub(crate) type Failure = Pin<Box<dyn Future<Output = String> + Send>>;

/// Runs a role until SIGTERM, SIGINT or its failure.
pub(crate) fn run<F>(
    service: &Service,
    service_name: &str,
    build: impl FnOnce(Arc<Process>) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Failure>>,
{
    let settings = fused_settings::load(&service.flags)?;
    if service.print_settings {
        let mut settings = settings;
        let device = Device::chosen(&settings.device)?;
        roles::complete(&mut settings, device);
        return print(&settings.to_toml()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let telemetry = Telemetry::start(&telemetry_config(&settings, service_name)?)?;
        let result = run_until_told(settings, build).await;
        telemetry.shut_down();
        result
    });
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    result
}

async fn run_until_told<F>(settings: Settings, build: impl FnOnce(Arc<Process>) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Failure>>,
{
    let drain_timeout = Duration::from_secs(settings.drain_timeout_s);
    let mut signals = ShutdownSignals::install()?;
    let process = Arc::new(Process {
        settings: Arc::new(settings),
        lifecycle: Lifecycle::new(),
        metrics: Metrics::install()?,
    });
    let lifecycle = process.lifecycle.clone();
    lifecycle.spawn("fold metrics", fold_metrics(process.metrics.clone(), lifecycle.clone()));
    // A signal that comes while the model loads ends the process at once: there is nothing to drain.
    let failure = tokio::select! {
        built = build(process) => built?,
        signal = signals.next() => {
            tracing::info!(signal, "told to end while starting");
            return Ok(());
        }
    };
    let failed = tokio::select! {
        signal = signals.next() => {
            tracing::info!(
                signal,
                requests = lifecycle.num_requests(),
                grace_s = drain_timeout.as_secs(),
                "draining: no new requests, running ones may finish"
            );
            None
        }
        reason = failure => Some(reason),
    };
    // After a failure there is nothing to wait for: clients have been told already.
    let grace = if failed.is_some() { Duration::ZERO } else { drain_timeout };
    let shut_down = tokio::select! {
        shut_down = lifecycle.shut_down(grace, STOP_GRACE) => shut_down,
        signal = signals.next() => {
            tracing::warn!(signal, requests = lifecycle.num_requests(), "told again: ended without draining");
            return Ok(());
        }
    };
    let num_cut = match shut_down {
        Ok(num_cut) => num_cut,
        Err(late) => {
            tracing::warn!(%late, "ended without them");
            lifecycle.num_requests()
        }
    };
    if let Some(reason) = failed {
        anyhow::bail!("the engine failed: {reason}");
    }
    if num_cut > 0 {
        tracing::warn!(requests = num_cut, "still running after the grace time, cut off");
    }
    tracing::info!("ended");
    Ok(())
}

async fn fold_metrics(metrics: Metrics, lifecycle: Lifecycle) {
    let mut interval = tokio::time::interval(FOLD_INTERVAL);
    let stopped = lifecycle.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = interval.tick() => metrics.fold(),
            () = &mut stopped => return,
        }
    }
}

fn telemetry_config(settings: &Settings, service_name: &str) -> anyhow::Result<fused_telemetry::Config> {
    Ok(fused_telemetry::Config {
        service_name: service_name.to_owned(),
        log_filter: settings.log_filter.clone(),
        log_format: settings.log_format.parse().map_err(anyhow::Error::msg).context("setting log_format")?,
        otlp_endpoint: settings.otlp_endpoint.clone(),
        trace_sample_ratio: settings.trace_sample_ratio,
    })
}

/// Writes to standard output, which belongs to what a command was asked to print.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        // A reader that has seen enough, such as `head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What a tool exits with after an error.
pub(crate) fn tool_exit_code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(fused_adaptation::Error::Interrupted))) {
        return ExitCode::from(INTERRUPTED);
    }
    // No input is at fault where a server does not answer, or where the engine fails that is measured or simulated.
    let is_simulation = |cause: &(dyn std::error::Error + 'static)| {
        use fused_engine::simulation::Error;
        matches!(cause.downcast_ref(), Some(Error::Step(_) | Error::Stuck { .. }))
    };
    if error
        .chain()
        .any(|cause| cause.is::<reqwest::Error>() || cause.is::<tonic::Status>() || is_simulation(cause))
    {
        return ExitCode::FAILURE;
    }
    match error.chain().find_map(|cause| cause.downcast_ref()) {
        Some(fused_vocabulary::Error::Cancelled) => ExitCode::from(INTERRUPTED),
        // No input is at fault where the disk is full.
        Some(fused_vocabulary::Error::Spool { .. }) => ExitCode::FAILURE,
        _ => ExitCode::from(BAD_INPUT),
    }
}

/// Writes an error and its causes to standard error.
pub(crate) fn print_error(error: &anyhow::Error) {
    // Nothing is left to do where standard error is gone.
    let _ = writeln!(std::io::stderr(), "fused: {error:#}");
}
