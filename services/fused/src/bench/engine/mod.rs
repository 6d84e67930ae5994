//! `fused bench engine`: the whole engine in this process (scheduler, KV memory, forward pass, sampling), without gateway,
//! tokenizer and HTTP.
//!
//! A `case` says how many requests of which lengths are sent at once; the `client` sends them over the engine's own gRPC
//! service in memory and notes when each message comes; the `report` is a table and JSON. Prompts are random token ids, the
//! model's end token does not end an output, and prompts share nothing unless `--prefix-cache true` is given: what vLLM's
//! offline throughput benchmark does, so that the two can stand side by side.

mod case;
mod client;
mod report;

use std::time::{Duration, Instant};

use anyhow::Context;
use fused_checkpoint::{ModelConfig, ModelFiles, Wanted};
use fused_engine::{Config, Engine};
use fused_lifecycle::{Lifecycle, ShutdownSignals};
use fused_settings::Settings;

use super::arguments::EngineBench;
use crate::roles::{Device, engine_config};
use crate::{model, process, whole_files};
use case::Batch;
pub(super) use case::{Case, MAX_REQUESTS};
use client::Client;
use report::{About, Report};

/// How long the engine's tasks get to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(arguments: &EngineBench) -> anyhow::Result<()> {
    whole_files::check(&[arguments.json.as_ref()], arguments.flags.config.iter().cloned())?;
    let settings = settings(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        // As process 1 of a container it would not end by default.
        let mut signals = ShutdownSignals::install()?;
        tokio::select! {
            measured = measure(arguments, settings) => measured,
            _ = signals.next() => Err(fused_adaptation::Error::Interrupted.into()),
        }
    });
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    result
}

/// Those of `fused engine`, but nothing is shared and nobody is refused unless it is asked for.
fn settings(arguments: &EngineBench) -> anyhow::Result<Settings> {
    let defaults = Settings {
        prefix_cache: false,
        target_time_to_first_token_s: 0.0,
        max_waiting_requests: MAX_REQUESTS,
        ..Settings::default()
    };
    Ok(fused_settings::load_engine(defaults, &arguments.flags)?)
}

async fn measure(arguments: &EngineBench, settings: Settings) -> anyhow::Result<()> {
    let (cases, lifecycle) = (Cases::of(arguments), Lifecycle::new());
    let started = {
        let (settings, cases, lifecycle) = (settings.clone(), cases.clone(), lifecycle.clone());
        // Reading and converting weights is work for seconds, in which signals are listened to.
        tokio::task::spawn_blocking(move || Started::new(&settings, &cases, &lifecycle))
    };
    let started = started.await??;
    let batches = cases.batches(started.engine.model_info().max_model_len)?;
    let mut client = Client::new(&started.engine, arguments, &lifecycle);
    let about = About {
        model: started.engine.model_info(),
        settings: &settings,
        config: &started.config,
        ready: started.ready,
        kv_bytes: client.kv_bytes().await?,
        arguments,
    };
    process::print(&report::heading(&about, &batches))?;

    if let Some(first) = batches.first() {
        client.run(first).await.with_context(|| format!("{}, to warm up", first.flag))?;
    }
    let mut reports = Vec::with_capacity(batches.len());
    for batch in &batches {
        let mut runs = Vec::with_capacity(arguments.runs);
        for _ in 0..arguments.runs {
            runs.push(client.run(batch).await.with_context(|| batch.flag.clone())?);
        }
        let report = Report::new(batch, &runs);
        process::print(&report::row(&report))?;
        reports.push(report);
    }
    report::write(&about, &reports)?;
    // Every request has been answered; a task that is late ends with the process.
    let _ = lifecycle.shut_down(Duration::ZERO, STOP_GRACE).await;
    Ok(())
}

/// What is to be measured, as far as it can be said without the model.
#[derive(Clone)]
struct Cases {
    given: Vec<Case>,
    num_mixed: Option<usize>,
    seed: u64,
}

impl Cases {
    fn of(arguments: &EngineBench) -> Self {
        Self { given: arguments.case.clone(), num_mixed: arguments.mixed, seed: arguments.seed }
    }

    /// # Errors
    /// A case is longer than a sequence of the model may be.
    fn batches(&self, max_model_len: usize) -> anyhow::Result<Vec<Batch>> {
        let mut batches: Vec<Batch> = match (&self.given[..], self.num_mixed) {
            ([], None) => {
                Case::defaults().iter().map(|case| Batch::of(&case.within(max_model_len))).collect()
            }
            (cases, _) => cases.iter().map(Batch::of).collect(),
        };
        batches.extend(self.num_mixed.map(|num_requests| Batch::mixed(num_requests, self.seed)));
        batches.iter().try_for_each(|batch| batch.check(max_model_len))?;
        Ok(batches)
    }
}

/// An engine that is ready.
struct Started {
    engine: Engine,
    config: Config,
    /// How long that took, from the model's files on.
    ready: Duration,
}

impl Started {
    fn new(settings: &Settings, cases: &Cases, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        let began = Instant::now();
        let wanted = if settings.load_format == "dummy" { Wanted::NoWeights } else { Wanted::Everything };
        let files = model::files(settings.model.as_deref(), wanted)?;
        // A case that cannot fit is told before weights are read. The engine may shorten the context further.
        cases.batches(max_model_len(settings, &files)?)?;
        let patch = model::patch(settings.patch_vocabulary.as_deref(), &files)?;
        let embeddings = model::patch_embeddings(settings.patch_vocabulary.as_deref())?;
        let device = Device::chosen(&settings.device)?;
        let config = engine_config(settings, model::served_name(settings, &files), device)?;
        let engine = device.start(config.clone(), &files, patch, embeddings.as_ref(), lifecycle)?;
        Ok(Self { engine, config, ready: began.elapsed() })
    }
}

fn max_model_len(settings: &Settings, files: &ModelFiles) -> anyhow::Result<usize> {
    let of_model = ModelConfig::parse(files)?.max_positions;
    Ok(settings.max_model_len.map_or(of_model, |len| len.min(of_model)))
}
