//! The life of a process that serves: settings, telemetry, services, signal, drain, end.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
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
/// How long a process that has lost its engine stays at least, where the drain time allows: whoever looks after it asks every
/// few seconds, and hears the reason.
const FAILURE_NOTICE: Duration = Duration::from_secs(5);
/// How long the system's own end of such a process may take: what a hanging device's driver does there hangs as well.
const EXIT_GRACE: Duration = Duration::from_secs(10);
/// How often metrics that nobody scrapes are folded, and losses of the log are told of.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What a role is built from.
pub(crate) struct Process {
    pub(crate) settings: Arc<Settings>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: Metrics,
}

/// What a tool exits with where its input is at fault: a flag, a file, a corpus, a model, a vocabulary. As clap
/// does.
const BAD_INPUT: u8 = 2;
/// What a tool exits with where the input is good and the work failed: a full disk, a hub or server that is away.
const FAILURE: u8 = 1;
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
    let settings = fused_settings::load(&service.flags.clone().with_model(service.positional_model.clone()))?;
    if service.print_settings {
        let mut settings = settings;
        let device = Device::chosen(&settings.device)?;
        roles::complete(&mut settings, device);
        return print(&settings.to_toml()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut telemetry = Telemetry::start(&telemetry_config(&settings, service_name)?)?;
        let foreign = fused_settings::foreign_variables();
        if !foreign.is_empty() {
            tracing::info!(
                variables = foreign.join(", "),
                "variables of the environment that are no settings"
            );
        }
        let metrics = Metrics::install()?;
        let result = tokio::select! {
            result = run_until_told(settings, metrics.clone(), build) => result,
            never = upkeep(metrics, &mut telemetry) => match never {},
        };
        telemetry.shut_down();
        result
    });
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    result
}

async fn run_until_told<F>(
    settings: Settings,
    metrics: Metrics,
    build: impl FnOnce(Arc<Process>) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Failure>>,
{
    let drain_timeout = Duration::from_secs(settings.drain_timeout_s);
    let mut signals = ShutdownSignals::install()?;
    let process = Arc::new(Process { settings: Arc::new(settings), lifecycle: Lifecycle::new(), metrics });
    let lifecycle = process.lifecycle.clone();
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
    if failed.is_some() {
        end_at_last(FAILURE_NOTICE.min(drain_timeout) + drain_timeout + STOP_GRACE + EXIT_GRACE)?;
    }
    let shut_down = async {
        if failed.is_some() {
            tokio::time::sleep(FAILURE_NOTICE.min(drain_timeout)).await;
        }
        // After a failure clients have been told, and what does not need the engine may finish.
        lifecycle.shut_down(drain_timeout, STOP_GRACE).await
    };
    let shut_down = tokio::select! {
        shut_down = shut_down => shut_down,
        signal = signals.next() => {
            tracing::warn!(signal, requests = lifecycle.num_requests(), "told again: ended without draining");
            return failed.map_or(Ok(()), |reason| Err(engine_failed(&reason)));
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
        return Err(engine_failed(&reason));
    }
    if num_cut > 0 {
        tracing::warn!(requests = num_cut, "still running after the grace time, cut off");
    }
    tracing::info!("ended");
    Ok(())
}

fn engine_failed(reason: &str) -> anyhow::Error {
    anyhow::anyhow!("the engine failed: {reason}")
}

/// Ends the process after this time, whatever hangs.
fn end_at_last(limit: Duration) -> io::Result<()> {
    std::thread::Builder::new().name("end".to_owned()).spawn(move || {
        // Nobody sends: it is a wait with a time-out.
        let (_never, end) = std::sync::mpsc::sync_channel::<()>(1);
        let _ = end.recv_timeout(limit);
        tracing::error!(after_s = limit.as_secs(), "the process does not end by itself: aborted");
        std::process::abort();
    })?;
    Ok(())
}

async fn upkeep(metrics: Metrics, telemetry: &mut Telemetry) -> Infallible {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        metrics.fold();
        telemetry.report_losses();
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
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        // A reader that has seen enough, such as `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What a tool exits with after an error.
pub(crate) fn tool_exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(if error.chain().any(is_interruption) {
        INTERRUPTED
    } else if error.chain().any(is_no_fault_of_the_input) {
        FAILURE
    } else {
        BAD_INPUT
    })
}

fn is_interruption(cause: &(dyn Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(fused_adaptation::Error::Interrupted))
        || matches!(cause.downcast_ref(), Some(fused_vocabulary::Error::Cancelled))
}

/// A server that does not answer, an engine that fails while it is measured or simulated, a disk that is full.
fn is_no_fault_of_the_input(cause: &(dyn Error + 'static)) -> bool {
    use fused_engine::simulation::Error as Simulation;
    let failed_io = cause.downcast_ref::<io::Error>().is_some_and(|error| is_the_machines(error.kind()));
    let failed_json = cause
        .downcast_ref::<serde_json::Error>()
        .and_then(serde_json::Error::io_error_kind)
        .is_some_and(is_the_machines);
    failed_io
        || failed_json
        || cause.is::<reqwest::Error>()
        || cause.is::<tonic::Status>()
        || matches!(cause.downcast_ref(), Some(Simulation::Step(_) | Simulation::Stuck { .. }))
        || matches!(cause.downcast_ref(), Some(fused_vocabulary::Error::Spool { .. }))
        || cause.downcast_ref().is_some_and(fused_checkpoint::Error::is_the_hubs)
}

/// Whether a read or write failed by the machine (a full disk, a broken one, no memory, no descriptors) and not by what
/// was named: a file that is not there, may not be touched or is not what it should be.
fn is_the_machines(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    !matches!(
        kind,
        Kind::NotFound
            | Kind::PermissionDenied
            | Kind::AlreadyExists
            | Kind::InvalidInput
            | Kind::InvalidData
            | Kind::InvalidFilename
            | Kind::UnexpectedEof
            | Kind::IsADirectory
            | Kind::NotADirectory
            | Kind::DirectoryNotEmpty
            | Kind::FileTooLarge
            | Kind::ReadOnlyFilesystem
            | Kind::NotSeekable
            | Kind::Unsupported
            // What is wrapped in it speaks for itself further down the chain.
            | Kind::Other
    )
}

/// Writes an error and its causes to standard error.
pub(crate) fn print_error(error: &anyhow::Error) {
    // Nothing is left to do where standard error is gone.
    let _ = writeln!(io::stderr(), "fused: {error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: impl Into<anyhow::Error>) -> ExitCode {
        tool_exit_code(&error.into().context("cannot write --out x"))
    }

    fn of_kind(kind: io::ErrorKind) -> ExitCode {
        code(io::Error::from(kind))
    }

    #[test]
    fn only_bad_input_is_bad_input() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for failed in [
            code(full()),
            code(serde_json::Error::io(full())),
            code(fused_checkpoint::Error::Write { path: "x".into(), source: full() }),
            code(fused_adaptation::Error::from(fused_checkpoint::Error::Write {
                path: "x".into(),
                source: full(),
            })),
            // EIO and EMFILE have no kind of their own.
            code(io::Error::from_raw_os_error(5)),
            code(io::Error::from_raw_os_error(24)),
            of_kind(io::ErrorKind::QuotaExceeded),
            of_kind(io::ErrorKind::OutOfMemory),
            of_kind(io::ErrorKind::WriteZero),
        ] {
            assert_eq!(failed, ExitCode::from(FAILURE));
        }
        for bad in [
            code(anyhow::anyhow!("--out x is there")),
            of_kind(io::ErrorKind::NotFound),
            of_kind(io::ErrorKind::PermissionDenied),
            of_kind(io::ErrorKind::InvalidData),
            of_kind(io::ErrorKind::IsADirectory),
        ] {
            assert_eq!(bad, ExitCode::from(BAD_INPUT));
        }
        assert_eq!(code(fused_adaptation::Error::Interrupted), ExitCode::from(INTERRUPTED));
    }
}
