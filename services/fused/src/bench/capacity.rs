use std::fmt::Write;

use anyhow::{bail, ensure};
use fused_engine::PolicyName;
use serde::Serialize;

use super::arguments::{Capacity, ServerArgs};
use super::client::Client;
use super::replay::Target;
use super::report;
use super::run::Run;
use super::simulated::Engines;
use super::summary::Summary;
use super::workload::Plan;
use crate::process;
use crate::whole_files::{self, WholeFile};

/// The rate is halved no further below the first.
const MAX_HALVINGS: i32 = 20;

pub(super) fn run(arguments: &Capacity) -> anyhow::Result<()> {
    ensure!(
        arguments.workload.rate.is_none(),
        "--rate: it is what is searched; begin elsewhere with --start-rate"
    );
    ensure!(arguments.start_rate <= arguments.max_rate, "--start-rate is over --max-rate");
    let inputs = arguments.workload.trace.iter().chain(&arguments.engine.machine).cloned();
    whole_files::check(&[arguments.json.as_ref()], inputs)?;
    let plan = Plan::new(&arguments.workload)?;
    ensure!(plan.has_rate(), "--arrivals static: all come at once, at no rate");
    let found = match &arguments.url {
        None => of_simulation(arguments, &plan)?,
        Some(url) => vec![of_server(arguments, url, &plan)?],
    };
    if let Some(path) = &arguments.json {
        let slos: Vec<String> = arguments.slo.iter().map(ToString::to_string).collect();
        let json = serde_json::json!({
            "command": "capacity",
            "version": env!("CARGO_PKG_VERSION"),
            "workload": plan.describe(),
            "slos": slos,
            "capacities": found,
        });
        whole_files::write(&[WholeFile::new(path, serde_json::to_vec_pretty(&json)?)])?;
    }
    Ok(())
}

/// The highest rate that meets the bounds.
#[derive(Debug, Serialize)]
struct Found {
    /// Of the policy, or `server`.
    name: String,
    /// None where the lowest rate that was tried is too high.
    requests_per_s: Option<f64>,
    probes: Vec<Probe>,
}

/// One rate that was tried.
#[derive(Clone, Debug, Serialize)]
struct Probe {
    requests_per_s: f64,
    is_met: bool,
    /// What was measured of each bound, in seconds.
    measured_s: Vec<Option<f64>>,
    num_failed: usize,
    tokens_per_s: f64,
}

fn of_simulation(arguments: &Capacity, plan: &Plan) -> anyhow::Result<Vec<Found>> {
    let engines = Engines::new(&arguments.engine, plan, arguments.workload.seed)?;
    let search = |policy: &PolicyName| {
        find(arguments, policy.name(), |rate, _| engines.run(*policy, &plan.at_rate(rate)))
    };
    engines.policies.iter().map(search).collect()
}

fn of_server(arguments: &Capacity, url: &str, plan: &Plan) -> anyhow::Result<Found> {
    if let Some(slo) = arguments.slo.iter().find(|slo| !slo.is_seen_by_clients()) {
        bail!("--slo {slo}: a server does not tell its clients; bound ttft instead");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = ServerArgs { url: Some(url.to_owned()), api_key: arguments.api_key.clone() };
    let target = runtime.block_on(async { Target::new(Client::of(&server).await?).await })?;
    find(arguments, "server", |rate, idx| {
        // Other prompts every time: what a server has computed for one probe must not help with the next.
        let seed = arguments.workload.seed.wrapping_add(idx as u64);
        runtime.block_on(target.replay(&plan.at_rate(rate), seed))
    })
}

/// Searches, and prints every probe as it is done.
fn find(
    arguments: &Capacity,
    name: &str,
    mut run: impl FnMut(f64, usize) -> anyhow::Result<Run>,
) -> anyhow::Result<Found> {
    let mut probes: Vec<Probe> = Vec::new();
    let search = Search {
        start_rate: arguments.start_rate,
        max_rate: arguments.max_rate,
        precision: arguments.precision,
    };
    let capacity = search.run(|rate| {
        let summary = Summary::new(&run(rate, probes.len())?);
        let is_met = summary.num_failed == 0 && arguments.slo.iter().all(|slo| slo.is_met(&summary));
        let measured_s: Vec<_> = arguments.slo.iter().map(|slo| slo.measured_s(&summary)).collect();
        let probe = Probe {
            requests_per_s: rate,
            is_met,
            measured_s,
            num_failed: summary.num_failed,
            tokens_per_s: summary.tokens_per_s,
        };
        process::print(&describe(arguments, name, &probe))?;
        probes.push(probe);
        Ok(is_met)
    })?;
    let verdict = match capacity {
        Some(rate) if rate >= arguments.max_rate => {
            format!("{name}: all bounds hold at --max-rate, {rate:.4} requests/s")
        }
        Some(rate) => format!("{name}: capacity {rate:.4} requests/s"),
        None => format!("{name}: no rate that was tried meets the bounds"),
    };
    process::print(&verdict)?;
    Ok(Found { name: name.to_owned(), requests_per_s: capacity, probes })
}

fn describe(arguments: &Capacity, name: &str, probe: &Probe) -> String {
    let mut line = format!("{name}: {:.4} requests/s", probe.requests_per_s);
    for (slo, measured_s) in arguments.slo.iter().zip(&probe.measured_s) {
        // Writing to a string does not fail.
        let _ = write!(line, "  {} {}", slo.name(), report::time(*measured_s));
    }
    if probe.num_failed > 0 {
        let _ = write!(line, "  {} requests failed", probe.num_failed);
    }
    line.push_str(if probe.is_met { "  met" } else { "  not met" });
    line
}

/// Doubles while the bounds hold, or halves until they do; then halves the interval, on a logarithmic scale.
struct Search {
    start_rate: f64,
    max_rate: f64,
    precision: f64,
}

impl Search {
    fn run(&self, mut is_met: impl FnMut(f64) -> anyhow::Result<bool>) -> anyhow::Result<Option<f64>> {
        let least = self.start_rate * 0.5f64.powi(MAX_HALVINGS);
        let (mut met, mut unmet): (Option<f64>, Option<f64>) = (None, None);
        let mut rate = self.start_rate;
        loop {
            if is_met(rate)? {
                met = Some(rate);
            } else {
                unmet = Some(rate);
            }
            rate = match (met, unmet) {
                (Some(met), None) if met >= self.max_rate => return Ok(Some(met)),
                (Some(met), None) => (met * 2.0).min(self.max_rate),
                (Some(met), Some(unmet)) => {
                    let between = (met * unmet).sqrt();
                    // Numbers end somewhere, however precise it is to be.
                    if unmet / met <= 1.0 + self.precision || between <= met || between >= unmet {
                        return Ok(Some(met));
                    }
                    between
                }
                (None, _) if rate / 2.0 < least => return Ok(None),
                (None, _) => rate / 2.0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_found_is_the_border(
            border in 0.001..10_000.0f64,
            start_rate in 0.1..100.0f64,
            precision in 1e-18..0.2f64,
        ) {
            let mut num_probes = 0;
            let search = Search { start_rate, max_rate: 1e6, precision };
            let found = search.run(|rate| {
                num_probes += 1;
                Ok(rate <= border)
            });
            let found = found.unwrap().unwrap();
            prop_assert!(found <= border && border <= found * (1.0 + precision) * (1.0 + 1e-12), "{found}");
            prop_assert!(num_probes < 100, "{num_probes} probes");
        }
    }

    #[test]
    fn no_border_is_no_endless_search() {
        let search = Search { start_rate: 1.0, max_rate: 100.0, precision: 0.02 };
        assert_eq!(search.run(|_| Ok(false)).unwrap(), None);
        assert_eq!(search.run(|_| Ok(true)).unwrap(), Some(100.0));
        assert!(search.run(|_| bail!("no")).is_err());
    }
}
