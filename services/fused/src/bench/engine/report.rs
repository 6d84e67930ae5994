//! The table, a row a case, and JSON with every run.

use std::time::Duration;

use fused_engine::{Config, ModelInfo};
use fused_settings::Settings;
use serde::Serialize;
use serde_json::{Value, json};

use super::case::Batch;
use crate::bench::arguments::EngineBench;
use crate::bench::report::time;
use crate::bench::run::Run;
use crate::bench::summary::{Latencies, Summary};
use crate::process;
use crate::whole_files::{self, WholeFile};

/// What is measured.
pub(super) struct About<'a> {
    pub(super) model: &'a ModelInfo,
    pub(super) settings: &'a Settings,
    pub(super) config: &'a Config,
    pub(super) ready: Duration,
    pub(super) kv_bytes: u64,
    pub(super) arguments: &'a EngineBench,
}

/// What a case came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    case: String,
    num_requests: usize,
    num_prompt_tokens: usize,
    num_output_tokens: usize,
    duration_s: Spread,
    output_tokens_per_s: Spread,
    tokens_per_s: Spread,
    /// Which of the runs has the median duration.
    median_run: usize,
    runs: Vec<Summary>,
}

/// A figure over all runs.
#[derive(Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Report {
    pub(super) fn new(batch: &Batch, runs: &[Run]) -> Self {
        let runs: Vec<_> = runs.iter().map(Summary::new).collect();
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by(|a, b| runs[*a].duration_s.total_cmp(&runs[*b].duration_s));
        let median_run = order.get(order.len() / 2).copied().unwrap_or(0);
        let spread = |of: fn(&Summary) -> f64| Spread {
            median: runs.get(median_run).map_or(0.0, of),
            min: runs.iter().map(of).fold(f64::INFINITY, f64::min),
            max: runs.iter().map(of).fold(0.0, f64::max),
        };
        Self {
            case: batch.name.clone(),
            num_requests: batch.lengths.len(),
            num_prompt_tokens: batch.num_prompt(),
            num_output_tokens: batch.num_output(),
            duration_s: spread(|run| run.duration_s),
            output_tokens_per_s: spread(|run| run.output_tokens_per_s),
            tokens_per_s: spread(|run| run.tokens_per_s),
            median_run,
            runs,
        }
    }
}

/// What is measured, and the head of the table.
pub(super) fn heading(about: &About<'_>, batches: &[Batch]) -> String {
    let About { model, settings, arguments, .. } = about;
    let dtype = model.dtype.as_ref().map_or(String::new(), |dtype| format!(" {dtype}"));
    let weights = if settings.load_format == "dummy" { ", random weights" } else { "" };
    let driver = driver(model).map_or(String::new(), |driver| format!(", driver {driver}"));
    let mut text = format!(
        "{} ({}{dtype}{weights}) on {}{driver}: ready in {}\nmax_model_len {}, max_num_sequences {}, {}, KV memory {:.2} \
         GiB, prefix_cache {}, temperature {}; the median of {}\n",
        model.name,
        model.architecture,
        model.device,
        time(Some(about.ready.as_secs_f64())),
        model.max_model_len,
        about.config.max_num_sequences,
        token_budget(about),
        about.kv_bytes as f64 / f64::from(1 << 30),
        settings.prefix_cache,
        arguments.temperature,
        if arguments.runs == 1 { "1 run".to_owned() } else { format!("{} runs", arguments.runs) },
    );
    if batches.iter().any(|batch| batch.lengths.len() > about.config.max_num_sequences) {
        text.push_str(&format!(
            "{} sequences run at once (--max-num-sequences); the others of a case wait for them\n",
            about.config.max_num_sequences
        ));
    }
    text.push_str(&format!(
        "\n{}\n{}",
        line("requests x", ["", "min - max", "output", "all", "TTFT ms", "", "ITL ms", ""]),
        line("prompt x output", ["s", "s", "tokens/s", "tokens/s", "p50", "p99", "p50", "p99"])
    ));
    text
}

fn token_budget(about: &About<'_>) -> String {
    match about.settings.target_inter_token_latency_ms {
        Some(target_ms) => format!("target_inter_token_latency_ms {target_ms}"),
        None => format!("token_budget {}", about.config.token_budget),
    }
}

/// One line of the table: the run of median duration, with the range of durations.
pub(super) fn row(report: &Report) -> String {
    let Spread { median, min, max } = &report.duration_s;
    let run = report.runs.get(report.median_run);
    let ms = |latencies: Option<&Latencies>, share| {
        let quantile_s = latencies.and_then(|latencies| latencies.quantile_s(share));
        quantile_s.map_or_else(|| "-".to_owned(), |s| digits(s * 1e3))
    };
    let ttft = run.map(|run| &run.time_to_first_token);
    let itl = run.map(|run| &run.inter_token_latency);
    line(
        &report.case,
        [
            &digits(*median),
            &format!("{} - {}", digits(*min), digits(*max)),
            &format!("{:.0}", report.output_tokens_per_s.median),
            &format!("{:.0}", report.tokens_per_s.median),
            &ms(ttft, 0.5),
            &ms(ttft, 0.99),
            &ms(itl, 0.5),
            &ms(itl, 0.99),
        ],
    )
}

fn line(name: &str, cells: [&str; 8]) -> String {
    let [s, range, output, all, ttft_p50, ttft_p99, itl_p50, itl_p99] = cells;
    let line = format!(
        "{name:<18} {s:>8} {range:>17} {output:>9} {all:>9} {ttft_p50:>9} {ttft_p99:>9} {itl_p50:>8} {itl_p99:>8}"
    );
    line.trim_end().to_owned()
}

/// Four digits or all before the point.
fn digits(value: f64) -> String {
    let decimals = match value {
        value if value >= 999.5 => 0,
        value if value >= 99.95 => 1,
        value if value >= 9.995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Writes the file that was asked for.
pub(super) fn write(about: &About<'_>, reports: &[Report]) -> anyhow::Result<()> {
    let Some(path) = &about.arguments.json else { return Ok(()) };
    whole_files::write(&[WholeFile::new(path, serde_json::to_vec_pretty(&json(about, reports))?)])?;
    process::print(&format!("wrote {}", path.display()))
}

fn json(about: &About<'_>, reports: &[Report]) -> Value {
    let About { model, settings, config, arguments, .. } = about;
    // Where a target is given, the engine measures how many tokens meet it, and tells nobody.
    let token_budget = settings.target_inter_token_latency_ms.is_none().then_some(config.token_budget);
    json!({
        "command": "engine",
        "version": env!("CARGO_PKG_VERSION"),
        "date": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "dtype": model.dtype,
            "vocab_size": model.vocab_size,
        },
        "device": {"name": model.device, "driver": driver(model)},
        "settings": {
            "load_format": settings.load_format,
            "max_model_len": model.max_model_len,
            "max_num_sequences": config.max_num_sequences,
            "scheduling_policy": config.policy.name(),
            "token_budget": token_budget,
            "target_inter_token_latency_ms": settings.target_inter_token_latency_ms,
            "chunk_size_high": settings.chunk_size_high,
            "prefix_cache": config.prefix_cache,
            "kv_cache_bytes": about.kv_bytes,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "page_bytes": config.page_bytes,
            "max_waiting_requests": config.max_waiting_requests,
            "stream_buffer": config.stream_buffer,
        },
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "ready_s": about.ready.as_secs_f64(),
        "cases": reports,
    })
}

/// The version of NVIDIA's kernel driver, where the model runs on a GPU and the system says it.
fn driver(model: &ModelInfo) -> Option<String> {
    if !model.device.starts_with("cuda") {
        return None;
    }
    driver_version(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word of the first line that is a version.
fn driver_version(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.split('.').count() > 1 && word.split('.').all(|number| number.parse::<u32>().is_ok())
    };
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::Request;

    #[test]
    fn the_median_run_is_shown_with_the_range_of_all() {
        let batch = Batch::of(&"2x10x3".parse().unwrap());
        let run = |ended_s: f64| {
            let request = Request {
                num_prompt: 10,
                num_output: 3,
                first_token_s: Some(ended_s / 2.0),
                ended_s: Some(ended_s),
                inter_token_us: vec![1000, 2000],
                ..Request::default()
            };
            Run { name: batch.name.clone(), requests: vec![request; 2], steps: Vec::new() }
        };
        let report = Report::new(&batch, &[run(3.0), run(1.0), run(2.0)]);
        assert_eq!((report.median_run, report.num_prompt_tokens, report.num_output_tokens), (2, 20, 6));
        let Spread { median, min, max } = report.duration_s;
        assert_eq!((median, min, max), (2.0, 1.0, 3.0));
        let cells: Vec<_> = row(&report).split_whitespace().map(str::to_owned).collect();
        let expected =
            ["2x10x3", "2.000", "1.000", "-", "3.000", "3", "13", "1000", "1000", "1.000", "2.000"];
        assert_eq!(cells, expected);
    }

    #[test]
    fn a_drivers_version_is_found() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: 13.3.0";
        assert_eq!(driver_version(open).as_deref(), Some("580.159.04"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\n";
        assert_eq!(driver_version(closed).as_deref(), Some("570.86.15"));
        assert_eq!(driver_version("NVRM version: none\nGCC version: 13.3.0"), None);
    }
}
