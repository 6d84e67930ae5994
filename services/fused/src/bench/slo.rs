use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::arguments;
use super::summary::Summary;

/// A bound on a quantile of a latency.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slo {
    metric: Metric,
    quantile: Quantile,
    bound: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    SchedulingDelay,
    TimeToFirstToken,
    InterToken,
    TimePerOutputToken,
    EndToEnd,
}

/// From 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Quantile(f64);

impl Slo {
    /// What was measured of it, in seconds; none where nothing was, which is no breach.
    pub(super) fn measured_s(&self, summary: &Summary) -> Option<f64> {
        let latencies = match self.metric {
            Metric::SchedulingDelay => &summary.scheduling_delay,
            Metric::TimeToFirstToken => &summary.time_to_first_token,
            Metric::InterToken => &summary.inter_token_latency,
            Metric::TimePerOutputToken => &summary.time_per_output_token,
            Metric::EndToEnd => &summary.end_to_end,
        };
        latencies.quantile_s(self.quantile.0)
    }

    pub(super) fn is_met(&self, summary: &Summary) -> bool {
        self.measured_s(summary).is_none_or(|measured_s| measured_s <= self.bound.as_secs_f64())
    }

    /// Whether a client can see it.
    pub(super) fn is_seen_by_clients(&self) -> bool {
        self.metric != Metric::SchedulingDelay
    }

    /// Its metric and quantile, as they are typed.
    pub(super) fn name(&self) -> String {
        let metric = NAMES.iter().find(|(_, metric)| *metric == self.metric).map_or("", |(name, _)| name);
        match self.quantile.0 {
            1.0 => format!("{metric}:max"),
            share => format!("{metric}:p{}", (share * 1e6).round() / 1e4),
        }
    }
}

/// The first of a metric's names is the one that is printed.
const NAMES: [(&str, Metric); 6] = [
    ("scheduling-delay", Metric::SchedulingDelay),
    ("ttft", Metric::TimeToFirstToken),
    ("itl", Metric::InterToken),
    ("tbt", Metric::InterToken),
    ("tpot", Metric::TimePerOutputToken),
    ("e2e", Metric::EndToEnd),
];

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let [metric, quantile, bound] = parts[..] else {
            return Err("a bound has three parts, such as itl:p99:50ms".to_owned());
        };
        let known = NAMES.iter().find(|(name, _)| *name == metric);
        let (_, metric) = known.ok_or_else(|| {
            format!("`{metric}` is not one of scheduling-delay, ttft, itl, tbt, tpot and e2e")
        })?;
        let share = match quantile {
            "max" => Some(1.0),
            _ => {
                quantile.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok()).map(|p| p / 100.0)
            }
        };
        let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
        let share =
            share.ok_or_else(|| format!("`{quantile}` is not a quantile such as p50, p99.9 or max"))?;
        let bound =
            arguments::time(bound).ok_or_else(|| format!("`{bound}` is not a time such as 50ms or 1.5s"))?;
        Ok(Self { metric: *metric, quantile: Quantile(share), bound })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:?}", self.name(), self.bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_they_are_written() {
        for (text, printed) in [
            ("ttft:p50:1s", "ttft:p50:1s"),
            ("tbt:p99:50ms", "itl:p99:50ms"),
            ("e2e:p99.9:1.5s", "e2e:p99.9:1.5s"),
            ("scheduling-delay:max:800us", "scheduling-delay:max:800µs"),
        ] {
            let slo: Slo = text.parse().unwrap();
            assert_eq!(slo.to_string(), printed);
            assert_eq!(slo, printed.parse().unwrap());
        }
        for (text, message) in [
            ("ttft:p50", "three parts"),
            ("latency:p50:1s", "`latency` is not one of"),
            ("ttft:p0:1s", "`p0` is not a quantile"),
            ("ttft:p101:1s", "`p101` is not a quantile"),
            ("ttft:50:1s", "`50` is not a quantile"),
            ("ttft:p50:1", "`1` is not a time"),
            ("ttft:p50:-1s", "`-1s` is not a time"),
        ] {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
