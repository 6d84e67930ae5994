//! Who asks for what and when: lengths and times from a trace, from a distribution, or one from each.

mod arrivals;
mod lengths;
mod random;
mod trace;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use fused_engine::simulation::{Arrival, Prompt, Workload};
use serde::Serialize;

use super::arguments::{ArrivalsArg, LengthsArg, WorkloadArgs};
use arrivals::Pattern;
use lengths::{Lengths, Totals, ZipfOrder};
pub(super) use random::Random;
use trace::Row;

/// Requests, where neither a flag nor a trace says how many.
const DEFAULT_NUM_REQUESTS: usize = 1000;
/// What draws from the seed.
const LENGTHS_STREAM: u64 = 1;
const ARRIVALS_STREAM: u64 = 2;
/// The most requests of a run.
const MAX_REQUESTS: usize = 10_000_000;
/// The longest lengths that are generated.
const MAX_TOTAL: usize = 10_000_000;

/// A workload that can be had at any rate.
#[derive(Debug)]
pub(crate) struct Plan {
    requests: Vec<(Prompt, usize)>,
    pattern: Pattern,
    arrivals: ArrivalsArg,
    /// The rate asked for, or else the trace's own.
    rate: Option<f64>,
    /// For reports.
    source: String,
}

impl Plan {
    /// Reads the trace if there is one, and draws the rest.
    ///
    /// # Errors
    /// A flag or file at fault, by its name.
    pub(crate) fn new(args: &WorkloadArgs) -> anyhow::Result<Self> {
        let mut rows = match &args.trace {
            Some(path) => in_window(trace::read(path).context("--trace")?, args)?,
            None => Vec::new(),
        };
        let arrivals = arrivals_kind(args, &rows)?;
        let num_requests = num_requests(args, arrivals, rows.len())?;
        rows.truncate(num_requests);
        let requests = requests(args, &rows, num_requests)?;
        let (pattern, own_rate) = pattern(args, arrivals, &rows, num_requests)?;
        if args.rate.is_some()
            && (arrivals == ArrivalsArg::Static || args.trace.is_some() && pattern.is_at_once())
        {
            bail!("--rate: all requests come at once");
        }
        let source = match &args.trace {
            Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            None => "generated".to_owned(),
        };
        Ok(Self { requests, pattern, arrivals, rate: args.rate.or(own_rate), source })
    }

    /// Requests.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether its requests can come at another rate.
    pub(crate) fn has_rate(&self) -> bool {
        !self.pattern.is_at_once()
    }

    /// All of them, at the plan's own rate.
    ///
    /// # Errors
    /// It has none, and needs one.
    pub(crate) fn workload(&self) -> anyhow::Result<Workload> {
        match self.rate {
            Some(rate) => Ok(self.at_rate(rate)),
            None if !self.has_rate() => Ok(self.at_rate(1.0)),
            None => bail!("--rate must be given where requests come at random: how many a second?"),
        }
    }

    /// All of them, so many a second.
    pub(crate) fn at_rate(&self, rate: f64) -> Workload {
        let arrivals =
            self.requests.iter().zip(self.pattern.at_s(rate)).map(|((prompt, num_output), at_s)| Arrival {
                at: Duration::try_from_secs_f64(at_s).unwrap_or(Duration::MAX),
                prompt: prompt.clone(),
                num_output: *num_output,
                priority: 0,
            });
        Workload::new(arrivals.collect())
    }

    /// For reports.
    pub(crate) fn describe(&self) -> Description {
        let sum = |of: fn(&(Prompt, usize)) -> usize| self.requests.iter().map(of).sum::<usize>();
        let num = self.requests.len().max(1) as f64;
        let arrivals = self.arrivals.to_possible_value();
        Description {
            source: self.source.clone(),
            arrivals: arrivals.map_or_else(String::new, |value| value.get_name().to_owned()),
            requests_per_s: self.rate,
            num_requests: self.requests.len(),
            mean_prompt_tokens: sum(|(prompt, _)| prompt.num_tokens) as f64 / num,
            mean_output_tokens: sum(|(_, num_output)| *num_output) as f64 / num,
        }
    }
}

/// A workload in few words.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Description {
    /// The trace's name, or `generated`.
    pub(crate) source: String,
    pub(crate) arrivals: String,
    /// None where all come at once.
    pub(crate) requests_per_s: Option<f64>,
    pub(crate) num_requests: usize,
    pub(crate) mean_prompt_tokens: f64,
    pub(crate) mean_output_tokens: f64,
}

/// What lies between --from and --until, with its time scaled.
fn in_window(mut rows: Vec<Row>, args: &WorkloadArgs) -> anyhow::Result<Vec<Row>> {
    let Some(start_s) = rows.first().and_then(|row| row.at_s) else {
        let flags = [("--from", args.from.is_some()), ("--until", args.until.is_some())];
        if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag}: the trace has no times");
        }
        return Ok(rows);
    };
    let within = args.from.unwrap_or(0.0)..args.until.unwrap_or(f64::INFINITY);
    rows.retain(|row| row.at_s.is_some_and(|at_s| within.contains(&(at_s - start_s))));
    ensure!(!rows.is_empty(), "--from, --until: no request of the trace lies between them");
    for row in &mut rows {
        row.at_s = row.at_s.map(|at_s| (at_s - start_s) * args.time_scale);
    }
    Ok(rows)
}

fn arrivals_kind(args: &WorkloadArgs, rows: &[Row]) -> anyhow::Result<ArrivalsArg> {
    let has_times = rows.first().is_some_and(|row| row.at_s.is_some());
    match args.arrivals {
        Some(ArrivalsArg::Trace) if args.trace.is_none() => bail!("--arrivals trace: name one with --trace"),
        Some(ArrivalsArg::Trace) if !has_times => {
            bail!("--arrivals trace: the trace has no times; choose poisson, gamma or static")
        }
        Some(kind) => Ok(kind),
        None if has_times => Ok(ArrivalsArg::Trace),
        None => Ok(ArrivalsArg::Poisson),
    }
}

fn num_requests(args: &WorkloadArgs, arrivals: ArrivalsArg, num_rows: usize) -> anyhow::Result<usize> {
    let takes_lengths = lengths_kind(args) == LengthsArg::Trace;
    let takes_rows = takes_lengths || arrivals == ArrivalsArg::Trace;
    match args.num_requests {
        Some(num) if takes_rows && num > num_rows => {
            bail!("--num-requests {num}: the trace has {num_rows}")
        }
        Some(num) if num > MAX_REQUESTS => bail!("--num-requests {num}: at most {MAX_REQUESTS}"),
        Some(num) => Ok(num),
        None if takes_rows => Ok(num_rows.min(MAX_REQUESTS)),
        None => Ok(DEFAULT_NUM_REQUESTS),
    }
}

fn lengths_kind(args: &WorkloadArgs) -> LengthsArg {
    args.lengths.unwrap_or(if args.trace.is_some() { LengthsArg::Trace } else { LengthsArg::Fixed })
}

/// Prompts and numbers of output tokens, scaled and clipped.
fn requests(args: &WorkloadArgs, rows: &[Row], num: usize) -> anyhow::Result<Vec<(Prompt, usize)>> {
    let total =
        Totals { min: args.min_tokens, max: args.max_tokens, prompt_to_output: args.prompt_to_output };
    let kind = lengths_kind(args);
    if matches!(kind, LengthsArg::Uniform | LengthsArg::Zipf) {
        ensure!(
            (2..=total.max).contains(&total.min) && total.max <= MAX_TOTAL,
            "--min-tokens {}, --max-tokens {}: must be from 2 to {MAX_TOTAL}, the first no more than the second",
            total.min,
            total.max
        );
    }
    let lengths = match kind {
        LengthsArg::Trace => {
            ensure!(args.trace.is_some(), "--lengths trace: name one with --trace");
            let scaled = rows.iter().map(|row| clip(args, row.prompt.clone(), row.num_output));
            return Ok(scaled.collect());
        }
        LengthsArg::Fixed => {
            Lengths::Fixed { num_prompt: args.prompt_tokens, num_output: args.output_tokens }
        }
        LengthsArg::Uniform => Lengths::Uniform { total },
        LengthsArg::Zipf => {
            let order = if args.zipf_scramble { ZipfOrder::Scrambled } else { ZipfOrder::ShortestFirst };
            Lengths::Zipf { total, theta: args.zipf_theta, order }
        }
    };
    let lengths = lengths.generate(num, &mut Random::new(args.seed, LENGTHS_STREAM));
    Ok(lengths.into_iter().map(|(prompt, output)| clip(args, Prompt::unique(prompt), output)).collect())
}

/// Scales both, then cuts to what a request may have: the output first, since a prompt can be shortened to anything.
fn clip(args: &WorkloadArgs, mut prompt: Prompt, num_output: usize) -> (Prompt, usize) {
    let scaled = |num: usize, scale: f64| ((num as f64 * scale).round() as usize).max(1);
    let most = args.max_tokens_per_request.unwrap_or(usize::MAX);
    let num_output = scaled(num_output, args.output_scale).min(most - 1);
    prompt.num_tokens = scaled(prompt.num_tokens, args.prompt_scale).min(most - num_output);
    (prompt, num_output)
}

fn pattern(
    args: &WorkloadArgs,
    arrivals: ArrivalsArg,
    rows: &[Row],
    num: usize,
) -> anyhow::Result<(Pattern, Option<f64>)> {
    let mut random = Random::new(args.seed, ARRIVALS_STREAM);
    Ok(match arrivals {
        ArrivalsArg::Trace => {
            let at_s: Vec<f64> = rows.iter().filter_map(|row| row.at_s).collect();
            Pattern::recorded(&at_s)
        }
        ArrivalsArg::Static => (Pattern::at_once(num), None),
        ArrivalsArg::Poisson => (Pattern::poisson(num, &mut random), None),
        ArrivalsArg::Gamma => (Pattern::gamma(num, args.cv, &mut random), None),
    })
}

#[cfg(test)]
mod tests;
