use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::Error;

/// Seconds of anything that a client waits for. From 0.5 ms, because a small model answers in under one.
const LATENCY_BUCKETS_S: [f64; 20] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0,
    40.0, 80.0, 640.0,
];

/// Seconds that a host works for one step of a device.
const HOST_TIME: &str = "fused_engine_host_time_seconds";
const HOST_TIME_BUCKETS_S: [f64; 10] =
    [0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.1];

/// Token counts: powers of two.
const TOKEN_BUCKETS: [f64; 18] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 65536.0, 131_072.0,
];

/// The process's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder behind the `metrics` macros. Histograms get buckets by the unit in their name,
    /// `_seconds` or `_tokens`; work of microseconds has its own.
    ///
    /// # Errors
    /// [`Error::AlreadySetUp`] where this process has a recorder.
    pub fn install() -> Result<Self, Error> {
        let recorder = || -> Result<_, BuildError> {
            Ok(PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS_S)?
                .set_buckets_for_metric(Matcher::Suffix("_tokens".to_owned()), &TOKEN_BUCKETS)?
                .set_buckets_for_metric(Matcher::Full(HOST_TIME.to_owned()), &HOST_TIME_BUCKETS_S)?
                .build_recorder())
        };
        // The only error is an empty list of buckets.
        let recorder = recorder().map_err(|_| Error::AlreadySetUp)?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| Error::AlreadySetUp)?;
        Ok(Self { handle })
    }

    /// All metrics as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        // Histograms are folded only when asked; without scrapes their samples would pile up, see `fold`.
        self.handle.render()
    }

    /// Folds the samples recorded since the last call; to be called every few seconds, so that memory stays bounded
    /// where nobody scrapes.
    pub fn fold(&self) {
        self.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_get_buckets_by_their_unit() {
        let metrics = Metrics::install().unwrap();
        metrics::histogram!("wait_seconds").record(0.003);
        metrics::histogram!("prompt_tokens").record(100.0);
        metrics.fold();
        let text = metrics.render();
        assert!(text.contains("wait_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("prompt_tokens_bucket{le=\"128\"} 1"), "{text}");
        assert!(matches!(Metrics::install(), Err(Error::AlreadySetUp)));
    }
}
