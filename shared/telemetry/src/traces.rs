use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::logs::OURS;
use crate::{Config, Error};

pub(crate) fn provider(config: &Config) -> Result<Option<SdkTracerProvider>, Error> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| Error::OtlpEndpoint { endpoint: endpoint.clone(), source })?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let root = Sampler::TraceIdRatioBased(config.trace_sample_ratio);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(root)))
        .with_resource(Resource::builder().with_service_name(config.service_name.clone()).build())
        .with_batch_exporter(Watched::new(exporter, endpoint.clone()))
        .build();
    Ok(Some(provider))
}

/// Spans of ours, whatever log lines are written; those of the libraries would tell of the exporter's own calls, too.
pub(crate) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let ours = Targets::new().with_target(OURS, LevelFilter::INFO);
    tracing_opentelemetry::layer().with_tracer(provider.tracer("fused")).with_filter(ours)
}

/// An exporter that says once when spans begin to be lost, once when they arrive again, and counts them.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    endpoint: String,
    is_failing: AtomicBool,
}

impl<E> Watched<E> {
    fn new(exporter: E, endpoint: String) -> Self {
        Self { exporter, endpoint, is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (num_spans, endpoint) = (batch.len(), &self.endpoint);
        let result = self.exporter.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(()) if was_failing => tracing::info!(endpoint, "spans are exported again"),
            Ok(()) => {}
            Err(error) => {
                metrics::counter!("fused_spans_lost_total").increment(num_spans as u64);
                if !was_failing {
                    tracing::warn!(endpoint, %error, "spans cannot be exported and are lost until they can");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use opentelemetry_sdk::error::OTelSdkError;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    /// Fails as long as it is told to.
    #[derive(Debug)]
    struct Flaky(Arc<AtomicBool>);

    impl SpanExporter for Flaky {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            if self.0.load(Ordering::Relaxed) {
                Err(OTelSdkError::InternalFailure("gone".to_owned()))
            } else {
                Ok(())
            }
        }
    }

    struct NumLines(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for NumLines {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_collector_that_is_away_is_said_once() {
        let (is_away, num_lines) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let exporter = Watched::new(Flaky(Arc::clone(&is_away)), "http://collector:4317".to_owned());
        let export = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(exporter.export(Vec::new()))
        };
        let subscriber = tracing_subscriber::registry().with(NumLines(Arc::clone(&num_lines)));
        tracing::subscriber::with_default(subscriber, || {
            (0..5).for_each(|_| assert!(export().is_err()));
            assert_eq!(num_lines.load(Ordering::Relaxed), 1);
            is_away.store(false, Ordering::Relaxed);
            (0..5).for_each(|_| export().unwrap());
            assert_eq!(num_lines.load(Ordering::Relaxed), 2);
            is_away.store(true, Ordering::Relaxed);
            assert!(export().is_err());
            assert_eq!(num_lines.load(Ordering::Relaxed), 3);
        });
    }
}
