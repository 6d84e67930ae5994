use std::fmt::Write;

use super::{About, Report};
use crate::bench::summary::{Engine, Latencies, Summary};

/// A figure's name, and how it reads in each run.
pub(super) type Row = (&'static str, Vec<String>);

/// One line about what was run.
pub(super) fn heading(about: &About) -> String {
    let workload = &about.workload;
    let rate = workload.requests_per_s.map_or(String::new(), |rate| format!(" at {rate:.3}/s"));
    format!(
        "{}: {} requests{rate} ({}, arrivals {}), {:.0} prompt and {:.0} output tokens on average\n\n",
        about.what,
        workload.num_requests,
        workload.source,
        workload.arrivals,
        workload.mean_prompt_tokens,
        workload.mean_output_tokens,
    )
}

/// A column for each run.
pub(super) fn table(reports: &[Report<'_>]) -> String {
    let rows = rows(reports);
    let name_width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let num_columns = reports.len();
    let widths: Vec<usize> = (0..num_columns)
        .map(|idx| rows.iter().filter_map(|(_, cells)| cells.get(idx)).map(|cell| cell.chars().count()).max())
        .map(|width| width.unwrap_or(0))
        .collect();
    let mut table = String::new();
    for (name, cells) in rows {
        // Writing to a string does not fail.
        let _ = write!(table, "{name:<name_width$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(table, "  {cell:>width$}");
        }
        let end = table.trim_end().len();
        table.truncate(end);
        table.push('\n');
    }
    table
}

pub(super) fn rows(reports: &[Report<'_>]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut row = |name, of: &dyn Fn(&Summary) -> String| {
        rows.push((name, reports.iter().map(|report| of(&report.summary)).collect()));
    };
    row("", &|summary| summary.name.clone());
    row("requests answered / failed", &|summary| {
        format!("{} / {}", summary.num_requests - summary.num_failed, summary.num_failed)
    });
    row("duration", &|summary| time(Some(summary.duration_s)));
    row("requests/s", &|summary| format!("{:.3}", summary.requests_per_s));
    row("output tokens/s", &|summary| format!("{:.0}", summary.output_tokens_per_s));
    row("all tokens/s", &|summary| format!("{:.0}", summary.tokens_per_s));
    row("prompt tokens found computed", &|summary| percent(summary.cached_share));
    type Of = fn(&Summary) -> &Latencies;
    let latencies: [(&str, Of); 6] = [
        ("scheduling delay", |summary| &summary.scheduling_delay),
        ("time to first token (TTFT)", |summary| &summary.time_to_first_token),
        ("between tokens (ITL, TBT)", |summary| &summary.inter_token_latency),
        ("mean per output token (TPOT)", |summary| &summary.time_per_output_token),
        ("end to end", |summary| &summary.end_to_end),
        ("end to end per output token", |summary| &summary.end_to_end_per_token),
    ];
    for (name, of) in latencies {
        latency_rows(&mut rows, reports, name, |summary| Some(of(summary)));
    }
    if reports.iter().any(|report| report.summary.engine.is_some()) {
        latency_rows(&mut rows, reports, "step", |summary| Some(&summary.engine.as_ref()?.step_time));
        engine_rows(&mut rows, reports);
    }
    rows
}

fn engine_rows(rows: &mut Vec<Row>, reports: &[Report<'_>]) {
    let mut row = |name, of: &dyn Fn(&Engine) -> String| {
        let cells = reports.iter().map(|report| report.summary.engine.as_ref().map_or(String::new(), of));
        rows.push((name, cells.collect()));
    };
    row("steps", &|engine| engine.num_steps.to_string());
    row("tokens a step / of them decodes", &|engine| {
        format!("{:.1} / {:.1}", engine.mean_tokens, engine.mean_decodes)
    });
    row("running mean / max", &|engine| format!("{:.1} / {}", engine.mean_running, engine.max_running));
    row("waiting max", &|engine| engine.max_waiting.to_string());
    row("KV memory mapped mean / max", &|engine| {
        format!("{} / {}", percent(engine.mapped_share_mean), percent(engine.mapped_share_max))
    });
    row("  of it without a token", &|engine| {
        let max = engine.waste_max.map_or_else(|| "–".to_owned(), percent);
        format!("{} / {max}", percent(engine.waste_mean))
    });
    row("driver calls a step / in the 2nd half", &|engine| {
        format!("{:.4} / {:.4}", engine.driver_calls_per_step, engine.driver_calls_per_step_late)
    });
    row("blocked by the driver in all / at most", &|engine| {
        format!("{} / {}", time(Some(engine.blocked_s)), time(Some(engine.blocked_max_s)))
    });
    row("  share of steps", &|engine| {
        percent(engine.num_blocked_steps as f64 / engine.num_steps.max(1) as f64)
    });
    let cells = reports.iter().map(|report| report.summary.num_preemptions.to_string());
    rows.push(("preemptions", cells.collect()));
}

/// A row for each quantile. Nothing of what nobody has measured, such as a server's scheduling delay.
fn latency_rows<'a>(
    rows: &mut Vec<Row>,
    reports: &'a [Report<'_>],
    name: &'static str,
    of: impl Fn(&'a Summary) -> Option<&'a Latencies>,
) {
    let latencies: Vec<_> = reports.iter().map(|report| of(&report.summary)).collect();
    let quantile =
        |share| latencies.iter().map(move |latencies| latencies.and_then(|all| all.quantile_s(share)));
    if quantile(1.0).all(|max| max.is_none()) {
        return;
    }
    rows.push((name, vec![String::new(); reports.len()]));
    for (name, share) in [("  p50", 0.5), ("  p90", 0.9), ("  p99", 0.99), ("  max", 1.0)] {
        rows.push((name, quantile(share).map(time).collect()));
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Three digits and a unit; a dash for none.
pub(in crate::bench) fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "–".to_owned() };
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s if s > 0.0 => (s * 1e6, "µs"),
        _ => return "0".to_owned(),
    };
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let texts =
            [0.0, 1.5e-5, 0.00123, 0.0999, 0.4567, 1.0, 12.34, 1234.5].map(|seconds| time(Some(seconds)));
        assert_eq!(texts, ["0", "15.0 µs", "1.23 ms", "99.9 ms", "457 ms", "1.00 s", "12.3 s", "1234 s"]);
        assert_eq!(time(None), "–");
    }
}
