//! The gateway's log lines and metrics. Requests are counted, never tokens.

use std::sync::Arc;
use std::time::Duration;

use fused_status::Error;
use fused_transport::{Fault, Readiness};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::{debug, error, info, warn};

use crate::identity::RequestContext;

/// The span of one request, from its first header to the last byte of its answer.
pub(crate) const REQUEST_SPAN: &str = "gateway.request";

/// Counted in place of a status when the client went away first, as web servers do.
const CLIENT_GONE: &str = "499";

/// Routes of those who look after the process.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_counter!(
        "fused_gateway_requests_total",
        "Requests by route and HTTP status; 499: the client went away before the answer's end."
    );
    describe_counter!("fused_gateway_errors_total", "Errors sent, in event streams too, by code.");
    describe_counter!("fused_gateway_unknown_fields_total", "Fields of requests that mean nothing here.");
    describe_histogram!(
        "fused_gateway_request_duration_seconds",
        Unit::Seconds,
        "From a request's headers to the last byte of its answer."
    );
    describe_histogram!(
        "fused_gateway_time_to_first_chunk_seconds",
        Unit::Seconds,
        "From a streaming request's headers to its first piece of text."
    );
    describe_gauge!("fused_gateway_requests_in_flight", "Requests with work behind them.");
    describe_gauge!("fused_gateway_tokenizers_usable", "Tokenizers that requests can go to.");
    describe_counter!("fused_gateway_tokenizer_retries_total", "Requests sent a second time.");
    describe_gauge!(
        "fused_gateway_tenant_requests_in_flight",
        "The same by tenant, those whose body still comes too."
    );
    describe_counter!("fused_gateway_tenant_requests_total", "Requests let in, by tenant.");
    describe_counter!(
        "fused_gateway_tenant_refusals_total",
        "Requests refused, by tenant and the limit reached."
    );
    describe_counter!(
        "fused_gateway_tenant_tokens_total",
        "Tokens by tenant and kind, of requests that have ended."
    );
    describe_counter!(
        "fused_gateway_key_reload_failures_total",
        "Files of keys that were changed and cannot be used."
    );
}

/// Counts a request in or out of flight.
pub(crate) fn in_flight(change: f64) {
    gauge!("fused_gateway_requests_in_flight").increment(change);
}

/// Counts a tenant's request in or out of flight. Tenants are the operator's to name, so labels are bounded by the file.
pub(crate) fn tenant_in_flight(tenant: &Arc<str>, change: f64) {
    gauge!("fused_gateway_tenant_requests_in_flight", "tenant" => Arc::clone(tenant)).increment(change);
    if change > 0.0 {
        counter!("fused_gateway_tenant_requests_total", "tenant" => Arc::clone(tenant)).increment(1);
    }
}

/// A tenant is at one of its limits.
pub(crate) fn tenant_refused(tenant: &Arc<str>, limit: &'static str) {
    counter!("fused_gateway_tenant_refusals_total", "tenant" => Arc::clone(tenant), "limit" => limit)
        .increment(1);
}

/// A tenant's request has ended.
pub(crate) fn tenant_tokens(tenant: &Arc<str>, prompt: u64, output: u64) {
    const NAME: &str = "fused_gateway_tenant_tokens_total";
    counter!(NAME, "tenant" => Arc::clone(tenant), "kind" => "prompt").increment(prompt);
    counter!(NAME, "tenant" => Arc::clone(tenant), "kind" => "completion").increment(output);
}

/// Files of keys have changed.
pub(crate) fn keys_reloaded(num_keys: usize) {
    info!(keys = num_keys, "API keys read again");
}

/// Files of keys have changed and cannot be used.
pub(crate) fn keys_refused(problem: &str) {
    counter!("fused_gateway_key_reload_failures_total").increment(1);
    warn!(problem, "the changed API keys cannot be used; those from before stay");
}

/// Counts a request whose answer has ended; `status` is `None` where the client went away before.
pub(crate) fn ended(context: &RequestContext, status: Option<http::StatusCode>) {
    let endpoint = context.endpoint.to_string();
    let code = status.map_or_else(|| CLIENT_GONE.to_owned(), |status| status.as_str().to_owned());
    let took = context.started.elapsed();
    log_request(context, &endpoint, &code, took);
    counter!("fused_gateway_requests_total", "endpoint" => endpoint.clone(), "code" => code).increment(1);
    histogram!("fused_gateway_request_duration_seconds", "endpoint" => endpoint).record(took);
}

/// One line a request, without its texts. Those who only ask how things are ask every second.
fn log_request(context: &RequestContext, endpoint: &str, code: &str, took: Duration) {
    let request_id = &*context.request_id;
    let took_ms = millis(took);
    if PROBES.contains(&endpoint) {
        return debug!(request_id, endpoint, code, took_ms, "request ended");
    }
    let tokens = context.served.tokens();
    info!(
        request_id,
        endpoint,
        code,
        tenant = tokens.and_then(|tokens| tokens.tenant.as_deref()),
        prompt_tokens = tokens.map(|tokens| tokens.prompt),
        completion_tokens = tokens.map(|tokens| tokens.completion),
        first_text_ms = context.served.first_text().map(millis),
        took_ms,
        "request ended"
    );
}

/// Milliseconds to a tenth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// The first piece of a streamed text is there.
pub(crate) fn first_chunk(endpoint: &str, after: Duration) {
    histogram!("fused_gateway_time_to_first_chunk_seconds", "endpoint" => endpoint.to_owned()).record(after);
}

/// An error goes to the client. Only a fault of ours is for the log: the rest is the caller's business, and counted.
pub(crate) fn failed(error: &Error) {
    counter!("fused_gateway_errors_total", "code" => error.code().name()).increment(1);
    if error.code().is_fault() {
        error!(code = error.code().name(), detail = error.detail(), "{error}");
    } else {
        debug!(code = error.code().name(), param = error.param(), detail = error.detail(), "{error}");
    }
}

/// Fields of a request were ignored.
pub(crate) fn unknown_fields(names: &[&str]) {
    counter!("fused_gateway_unknown_fields_total").increment(names.len() as u64);
    debug!(?names, "unknown fields ignored");
}

/// The gateway became ready or stopped being so.
pub(crate) fn readiness_changed(readiness: &Readiness) {
    match readiness {
        Readiness::Ready => info!("ready"),
        Readiness::NotReady(reason) => info!(reason, "not ready"),
    }
}

/// A tokenizer became usable, or stopped being so.
pub(crate) fn tokenizer_changed(tokenizer: &str, fault: Option<&Fault>) {
    match fault {
        None => info!(tokenizer, "tokenizer ready"),
        Some(fault) => warn!(tokenizer, "tokenizer not ready: it {fault}"),
    }
}

/// So many tokenizers are usable now.
pub(crate) fn tokenizers_usable(num: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge, and few tokenizers")]
    gauge!("fused_gateway_tokenizers_usable").set(num as f64);
}

/// A request is sent a second time because the first tokenizer gave no first answer.
pub(crate) fn retried(tokenizer: &str, error: &Error) {
    counter!("fused_gateway_tokenizer_retries_total").increment(1);
    warn!(tokenizer, %error, detail = error.detail(), "tokenizer without a first answer; trying again");
}
