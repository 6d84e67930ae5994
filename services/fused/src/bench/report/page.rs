//! The page: distributions of all runs in one plot each, and each run over time. Names come from flags and files, so that
//! the template escapes everything but the plots, which escape what they are given.

use minijinja::value::Serde;
use minijinja::{Value, context};

use super::series::Series as Steps;
use super::{About, Report, table};
use crate::page::figures::{short, signed};
use crate::page::plot::{self, Axis, Series};
use crate::page::{self, safe};

const TEMPLATE: &str = include_str!("page.html");
/// Latencies that differ by more than this factor stand on a logarithmic axis.
const MAX_LINEAR_RATIO: f64 = 10.0;
/// What takes less is drawn as this: logarithms do not know zero.
const MIN_MS: f64 = 0.01;

pub(super) fn to_html(about: &About, reports: &[Report<'_>]) -> Result<String, minijinja::Error> {
    let environment = page::environment()?;
    let template = environment.template_from_named_str("page.html", TEMPLATE)?;
    template.render(context! {
        version => env!("CARGO_PKG_VERSION"),
        what => about.what.as_str(),
        command => about.command,
        workload => Value::from(Serde(&about.workload)),
        names => reports.iter().map(|report| report.summary.name.clone()).collect::<Vec<_>>(),
        figures => figures(reports),
        details => serde_json::to_string_pretty(&about.details).unwrap_or_default(),
        distributions => distributions(reports),
        runs => reports.iter().filter_map(over_time).collect::<Vec<_>>(),
    })
}

fn figures(reports: &[Report<'_>]) -> Vec<Value> {
    let rows = table::rows(reports).into_iter().skip(1);
    rows.map(|(name, cells)| context! { name => name.trim_start(), is_part => name.starts_with(' '), cells })
        .collect()
}

fn distributions(reports: &[Report<'_>]) -> Vec<Value> {
    type Points = for<'a> fn(&'a Report<'_>) -> &'a [(f64, f64)];
    let kinds: [(&str, Points); 4] = [
        ("Time to first token", |report| &report.distributions.time_to_first_token),
        ("Between two tokens", |report| &report.distributions.inter_token_latency),
        ("End to end", |report| &report.distributions.end_to_end),
        ("Scheduling delay", |report| &report.distributions.scheduling_delay),
    ];
    let plots = kinds.iter().filter_map(|(title, points)| {
        let lines: Vec<(&str, &[(f64, f64)])> =
            reports.iter().map(|report| (report.summary.name.as_str(), points(report))).collect();
        let plot = distribution(title, &lines)?;
        Some(context! { title => *title, plot => safe(plot) })
    });
    plots.collect()
}

/// None where nothing was measured.
fn distribution(title: &str, lines: &[(&str, &[(f64, f64)])]) -> Option<String> {
    let ms = |seconds: f64| (seconds * 1e3).max(MIN_MS);
    let all = || lines.iter().flat_map(|(_, points)| points.iter()).map(|(_, seconds)| ms(*seconds));
    let (min, max) = (all().reduce(f64::min)?, all().reduce(f64::max)?);
    let is_linear = max / min <= MAX_LINEAR_RATIO;
    let x = if is_linear {
        Axis { title: "milliseconds", range: (0.0, max * 1.02), num_ticks: 6, format: short_ms }
    } else {
        let range = (min.log10().floor(), max.log10().ceil());
        let num_ticks = (range.1 - range.0) as usize;
        Axis { title: "milliseconds", range, num_ticks, format: power_of_ten }
    };
    let y = Axis { title: "share that takes no longer", range: (0.0, 1.0), num_ticks: 5, format: percent };
    let series: Vec<Series<'_>> = lines
        .iter()
        .map(|(name, points)| {
            let at = |seconds: f64| if is_linear { ms(seconds) } else { ms(seconds).log10() };
            Series { name, points: points.iter().map(|(share, seconds)| (at(*seconds), *share)).collect() }
        })
        .collect();
    Some(plot::lines(&format!("{title}: the share that takes no longer, by time"), &x, &y, &series))
}

fn over_time(report: &Report<'_>) -> Option<Value> {
    let steps = report.series.as_ref()?;
    let gib = |bytes: &[f64]| bytes.iter().map(|bytes| bytes / (1u64 << 30) as f64).collect::<Vec<_>>();
    let (mapped, unused, parked) =
        (gib(&steps.mapped_bytes), gib(&steps.unused_bytes), gib(&steps.parked_bytes));
    let plots = [
        (
            "Sequences",
            "sequences",
            vec![("running", &steps.num_running[..]), ("waiting", &steps.num_waiting)],
        ),
        ("Tokens of a step", "tokens", vec![("prefill", &steps.num_prefill), ("decode", &steps.num_decode)]),
        (
            "KV memory",
            "GiB",
            vec![("mapped", &mapped), ("of it without a token", &unused), ("parked", &parked)],
        ),
        ("Driver calls of a step", "calls", vec![("calls", &steps.num_driver_calls)]),
    ];
    let plots = plots.map(|(title, unit, lines)| {
        let names: Vec<_> = lines.iter().map(|(name, _)| *name).collect();
        context! { title, names, plot => safe(line_over_time(title, unit, steps, &lines)) }
    });
    Some(context! { name => report.summary.name.as_str(), plots => plots.to_vec() })
}

fn line_over_time(title: &str, unit: &str, steps: &Steps, lines: &[(&str, &[f64])]) -> String {
    let last_s = steps.at_s.last().copied().unwrap_or(0.0).max(1.0);
    let x = Axis { title: "seconds", range: (0.0, last_s), num_ticks: 6, format: short };
    let max = lines.iter().flat_map(|(_, values)| values.iter()).copied().fold(0.0, f64::max);
    let y = Axis { title: unit, range: (0.0, (max * 1.05).max(0.05)), num_ticks: 5, format: short_decimals };
    let series: Vec<Series<'_>> = lines
        .iter()
        .map(|(name, values)| {
            let points = steps.at_s.iter().copied().zip(values.iter().copied());
            Series { name, points: points.collect() }
        })
        .collect();
    plot::lines(&format!("{title} over time"), &x, &y, &series)
}

fn percent(share: f64) -> String {
    format!("{:.0}\u{202F}%", share * 100.0)
}

fn short_ms(ms: f64) -> String {
    short_decimals(ms)
}

fn short_decimals(value: f64) -> String {
    if value.fract().abs() > 1e-9 { signed(value, 2) } else { short(value) }
}

fn power_of_ten(exponent: f64) -> String {
    let value = 10f64.powi(exponent.round() as i32);
    if value < 1.0 { format!("{value}") } else { short(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::{Request, Run};
    use crate::bench::workload::Description;

    #[test]
    fn names_are_escaped_and_empty_runs_are_no_fault() {
        let about = About {
            command: "replay",
            what: "<script>".to_owned(),
            workload: Description { source: "</title>".to_owned(), ..Description::default() },
            details: serde_json::Value::Null,
        };
        let run = Run { name: "<b>".to_owned(), requests: vec![Request::default()], steps: Vec::new() };
        for runs in [vec![], vec![run]] {
            let reports: Vec<_> = runs.iter().map(Report::new).collect();
            let html = to_html(&about, &reports).unwrap();
            assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("NaN"));
        }
    }

    #[test]
    fn far_apart_latencies_stand_on_a_logarithmic_axis() {
        let near = distribution("", &[("", &[(0.0, 0.010), (1.0, 0.020)])]).unwrap();
        let far = distribution("", &[("", &[(0.0, 0.0), (1.0, 100.0)])]).unwrap();
        assert!(near.contains(">20<") && far.contains(">0.01<") && far.contains(">100\u{202F}k<"), "{far}");
        assert_eq!(distribution("", &[("", &[])]), None);
    }
}
