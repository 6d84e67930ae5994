//! What can be typed behind `fused bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use fused_engine::{PolicyName, PrefillOrder};
use fused_settings::EngineFlags;

use super::engine::{Case, MAX_REQUESTS};
use super::slo::Slo;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    #[command(flatten)]
    pub(crate) figures: Figures,
}

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Measure the whole engine in this process, without gateway, tokenizer and HTTP: what this device does with a model
    Engine(EngineBench),
    /// Run a workload on the engine's core above a model of a device: scheduling and memory, without either
    Simulate(Simulate),
    /// Search the highest rate of requests at which latencies stay within bounds
    Capacity(Capacity),
    /// Run a workload against a server, with the report of `simulate`
    Replay(Replay),
}

/// The whole engine in this process.
#[derive(Args, Debug)]
#[command(
    mut_arg("prefix_cache", |arg| arg.help("Share the memory of prompts' common beginnings [default: false]")),
    mut_arg("target_time_to_first_token_s", |arg| {
        arg.help("Refuse a request that would wait longer for its first token; 0: never [default: 0]")
    }),
    mut_arg("max_waiting_requests", |arg| {
        arg.help(format!("Requests that may wait for a slot [default: {MAX_REQUESTS}]"))
    }),
)]
pub(crate) struct EngineBench {
    /// Requests, prompt tokens and output tokens, as 8x1024x256, and of unequal lengths as 31x128x256+1x100000x256; all are
    /// sent at once; may be repeated [default: 1x128x256 8x128x256 64x128x256 1x1024x1, shorter where the model's context is]
    #[arg(long, value_name = "REQUESTSxPROMPTxOUTPUT[+…]", num_args = 1..)]
    pub(crate) case: Vec<Case>,
    /// Also so many requests of mixed lengths at once: prompts of 128 to 1024 tokens, outputs of 64 to 512
    #[arg(long, value_name = "N", value_parser = num_requests)]
    pub(crate) mixed: Option<usize>,
    /// Repetitions of each case, after one of the first case to warm up; the median is printed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub(crate) runs: usize,
    /// Tokens are drawn at this temperature; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// What prompts, mixed lengths and tokens are drawn from
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Where to write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// As for `fused engine`, from file and environment too; the defaults that differ stand above and in `engine::settings`.
    #[command(flatten)]
    pub(crate) flags: EngineFlags,
}

/// A few figures of a server.
#[derive(Args, Debug)]
pub(crate) struct Figures {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Requests at once in the concurrent part
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub(crate) concurrency: usize,
    /// Output tokens a request
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub(crate) max_tokens: usize,
    /// Repetitions of each part; the median is printed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub(crate) runs: usize,
}

#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// Server to measure [default: one in this process, with the demo model]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API key to send
    #[arg(long, value_name = "KEY", env = "FUSED_BENCH_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Simulate {
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Capacity {
    /// A bound: scheduling-delay, ttft, itl (or tbt), tpot or e2e; p50, p99, p99.9 or max; a time, such as 50ms. May be
    /// repeated; all must hold, and every request must be answered
    #[arg(long, value_name = "METRIC:QUANTILE:TIME", required = true)]
    pub(crate) slo: Vec<Slo>,
    /// Search a server's capacity [default: that of the simulated engine]
    #[arg(long, value_name = "URL", conflicts_with = "EngineArgs")]
    pub(crate) url: Option<String>,
    /// API key to send
    #[arg(long, value_name = "KEY", env = "FUSED_BENCH_API_KEY", hide_env_values = true, requires = "url")]
    pub(crate) api_key: Option<String>,
    /// Requests a second to begin with; doubled while the bounds hold
    #[arg(long, value_name = "RATE", default_value_t = 1.0, value_parser = positive)]
    pub(crate) start_rate: f64,
    /// The highest rate to try
    #[arg(long, value_name = "RATE", default_value_t = 1e6, value_parser = positive)]
    pub(crate) max_rate: f64,
    /// How near to come: the search ends when the lowest rate found too high is no more than this share above the highest
    /// that is not
    #[arg(long, value_name = "SHARE", default_value_t = 0.02, value_parser = positive)]
    pub(crate) precision: f64,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Where to write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// Where to write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to write a page with plots, one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Workload")]
pub(crate) struct WorkloadArgs {
    /// Recorded requests: a trace of Azure, vidur, Mooncake or arXiv lengths, told by its first line
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Only requests of the trace from so many seconds after its first on
    #[arg(long, value_name = "SECONDS", value_parser = not_negative, requires = "trace")]
    pub(crate) from: Option<f64>,
    /// Only requests of the trace before so many seconds after its first
    #[arg(long, value_name = "SECONDS", value_parser = positive, requires = "trace")]
    pub(crate) until: Option<f64>,
    /// When requests come [default: as in the trace, else poisson]
    #[arg(long, value_enum)]
    pub(crate) arrivals: Option<ArrivalsArg>,
    /// Requests a second [default: the trace's own]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Coefficient of variation of gamma gaps: 1 is a Poisson process, more is burstier
    #[arg(long, value_name = "CV", default_value_t = 0.5, value_parser = variation)]
    pub(crate) cv: f64,
    /// How long requests are [default: as in the trace, else fixed]
    #[arg(long, value_enum)]
    pub(crate) lengths: Option<LengthsArg>,
    /// Prompt tokens of fixed lengths
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub(crate) prompt_tokens: usize,
    /// Output tokens of fixed lengths
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub(crate) output_tokens: usize,
    /// The fewest tokens, prompt and output, of uniform and zipf lengths
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) min_tokens: usize,
    /// The most tokens, prompt and output, of uniform and zipf lengths
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) max_tokens: usize,
    /// Prompt tokens for each output token in uniform and zipf lengths
    #[arg(long, value_name = "RATIO", default_value_t = 20.0, value_parser = positive)]
    pub(crate) prompt_to_output: f64,
    /// Exponent of zipf lengths
    #[arg(long, value_name = "THETA", default_value_t = 0.6, value_parser = not_negative)]
    pub(crate) zipf_theta: f64,
    /// Whether any lengths may be the frequent ones of zipf, not the shortest
    #[arg(long)]
    pub(crate) zipf_scramble: bool,
    /// Factor on prompt tokens
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    pub(crate) prompt_scale: f64,
    /// Factor on output tokens
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    pub(crate) output_scale: f64,
    /// Factor on the trace's times: below 1 requests come faster
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive, conflicts_with = "rate")]
    pub(crate) time_scale: f64,
    /// Cut longer requests to so many tokens, prompt and output
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub(crate) max_tokens_per_request: Option<usize>,
    /// Requests [default: all of the trace, else 1000]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) num_requests: Option<usize>,
    /// What random lengths and times are drawn from
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub(crate) seed: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArrivalsArg {
    /// At random, independent of each other
    Poisson,
    /// At random, with gaps as variable as --cv says
    Gamma,
    /// All at once
    Static,
    /// As recorded
    Trace,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LengthsArg {
    /// As recorded
    Trace,
    /// All alike
    Fixed,
    /// Each length as likely as any other
    Uniform,
    /// Few lengths are frequent
    Zipf,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Simulated engine")]
#[group(multiple = true)]
pub(crate) struct EngineArgs {
    /// sarathi, vllm, orca, fastertransformer or simple-chunking; may be repeated, to compare [default: sarathi]
    #[arg(long, value_name = "NAME", value_parser = policy)]
    pub(crate) policy: Vec<PolicyName>,
    /// Tokens of one step [default: 512, or more where more sequences may run or chunks be larger]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) token_budget: Option<usize>,
    /// How long a step may take: sets the token budget to what the machine computes in that time
    #[arg(long, value_name = "MS", value_parser = positive, conflicts_with = "token_budget")]
    pub(crate) target_inter_token_latency_ms: Option<f64>,
    /// Tokens of a prompt's first chunks, which shrink as it progresses [default: what the token budget leaves]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) chunk_size_high: Option<usize>,
    /// Tokens of a prompt's last chunks
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value_t = 128, requires = "chunk_size_high")]
    pub(crate) chunk_size_low: usize,
    /// Tokens of a prompt over which chunks shrink
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value_t = 4096, requires = "chunk_size_high")]
    pub(crate) chunk_schedule_max_tokens: usize,
    /// Sizes between the first chunks' and the last ones'
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value_t = 16, requires = "chunk_size_high")]
    pub(crate) chunk_schedule_stages: usize,
    /// Which prompts share a step under sarathi: shortest or arrival [default: shortest]
    #[arg(long, value_name = "NAME", value_parser = prefill_order)]
    pub(crate) prefill_order: Option<PrefillOrder>,
    /// Whether prompts that begin alike share that beginning
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub(crate) prefix_cache: Option<bool>,
    /// Refuse requests before which prompts wait that would take longer [default: refuse none]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) target_time_to_first_token_s: Option<f64>,
    /// The max_tokens that clients send, whose outputs end by themselves [default: as many as each is going to get]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) client_max_tokens: Option<usize>,
    /// Sequences that run at once [default: 128]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_num_sequences: Option<usize>,
    /// Requests that wait; one more is refused [default: no bound]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_waiting_requests: Option<usize>,
    /// Prompt and output tokens of one sequence [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub(crate) max_model_len: Option<usize>,
    /// Memory for keys and values [default: nine tenths of the machine's, less the weights]
    #[arg(long, value_name = "BYTES", value_parser = at_least_one_u64)]
    pub(crate) kv_cache_bytes: Option<u64>,
    /// Bytes of one page [default: 2 MiB]
    #[arg(long, value_name = "BYTES", value_parser = at_least_one)]
    pub(crate) page_bytes: Option<usize>,
    /// Model and device as JSON; --print-machine shows the form [default: Llama-8B on an H200]
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: Option<PathBuf>,
    /// Print what --machine reads, or the default, as JSON and exit
    #[arg(long)]
    pub(crate) print_machine: bool,
}

fn policy(text: &str) -> Result<PolicyName, String> {
    text.parse().map_err(|error: fused_engine::Error| error.to_string())
}

fn prefill_order(text: &str) -> Result<PrefillOrder, String> {
    text.parse().map_err(|error: fused_engine::Error| error.to_string())
}

fn num_requests(text: &str) -> Result<usize, String> {
    let is_few = |number: &usize| *number <= MAX_REQUESTS;
    let number = at_least_one(text).ok().filter(is_few);
    number.ok_or_else(|| format!("`{text}` is not a number from 1 to {MAX_REQUESTS}"))
}

fn temperature(text: &str) -> Result<f32, String> {
    let temperature = text.parse().ok().filter(|temperature| (0.0..=2.0).contains(temperature));
    temperature.ok_or_else(|| format!("`{text}` is not a temperature from 0 to 2"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    whole(text, 1)
}

fn at_least_two(text: &str) -> Result<usize, String> {
    whole(text, 2)
}

fn at_least_one_u64(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("`{text}` is not a number from 1 on"))
}

fn whole(text: &str, least: usize) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| format!("`{text}` is not a number from {least} on"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).filter(|number| *number > 0.0).ok_or_else(|| format!("`{text}` is not a number over 0"))
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).filter(|number| *number >= 0.0).ok_or_else(|| format!("`{text}` is not a number from 0 on"))
}

/// What a gamma distribution can be drawn with.
fn variation(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|number| (0.01..=10.0).contains(number))
        .ok_or_else(|| format!("`{text}` is not a number from 0.01 to 10"))
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// `50ms`, `1.5s`, `800us`.
pub(super) fn time(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (number, unit_s) =
        units.iter().find_map(|(unit, unit_s)| Some((text.strip_suffix(unit)?, unit_s)))?;
    let seconds = number.parse::<f64>().ok()? * unit_s;
    Duration::try_from_secs_f64(seconds).ok()
}
