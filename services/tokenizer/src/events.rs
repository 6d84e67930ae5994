//! The tokenizer's log lines and metrics. Nothing here runs once a token.

use std::time::Duration;

use fused_status::Error;
use fused_transport::{Fault, Readiness};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::{error, info, warn};

/// The span of one generation, from its arrival to the last byte of its answer.
pub(crate) const GENERATE_SPAN: &str = "tokenizer.generate";

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_histogram!(
        "fused_tokenizer_encode_duration_seconds",
        Unit::Seconds,
        "From a prompt's arrival at the encoding threads to its token ids, waiting included."
    );
    describe_counter!("fused_tokenizer_prompt_tokens_total", "Prompt tokens sent to engines.");
    describe_counter!("fused_tokenizer_completion_tokens_total", "Tokens of finished requests' outputs.");
    describe_counter!(
        "fused_tokenizer_base_tokens_saved_total",
        "Tokens, in and out, that the base vocabulary would have taken beyond ours."
    );
    describe_gauge!("fused_tokenizer_requests_in_flight", "Generations with a response stream.");
    describe_counter!("fused_tokenizer_errors_total", "Failed requests, by code.");
    describe_gauge!("fused_tokenizer_engines_usable", "Engines that requests can go to.");
    describe_counter!("fused_tokenizer_engine_retries_total", "Requests sent to a second engine.");
}

/// Counts a generation for as long as it lives.
#[derive(Debug)]
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn begin() -> Self {
        gauge!("fused_tokenizer_requests_in_flight").increment(1.0);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!("fused_tokenizer_requests_in_flight").decrement(1.0);
    }
}

/// A prompt was encoded.
pub(crate) fn encoded(took: Duration) {
    histogram!("fused_tokenizer_encode_duration_seconds").record(took);
}

/// Work on an encoding thread panicked: a fault of ours or of a library.
pub(crate) fn encoder_panicked() {
    error!("a prompt's template or encoding panicked");
}

/// How requests are sampled that do not say it themselves.
pub(crate) fn generation_defaults(defaults: &str) {
    if defaults.is_empty() {
        info!("no sampling defaults of a generation_config.json are in force");
    } else {
        info!("sampling defaults in force, of generation_config.json: {defaults}");
    }
}

/// A generation ended with its usage known.
pub(crate) fn finished(prompt_tokens: usize, completion_tokens: usize, base_tokens: usize) {
    counter!("fused_tokenizer_prompt_tokens_total").increment(prompt_tokens as u64);
    counter!("fused_tokenizer_completion_tokens_total").increment(completion_tokens as u64);
    let saved = base_tokens.saturating_sub(prompt_tokens + completion_tokens);
    counter!("fused_tokenizer_base_tokens_saved_total").increment(saved as u64);
}

/// A request failed. Only a fault of ours is for the log: the rest is the caller's business, and counted.
pub(crate) fn failed(error: &Error) {
    counter!("fused_tokenizer_errors_total", "code" => error.code().name()).increment(1);
    if error.code().is_fault() {
        error!(code = error.code().name(), detail = error.detail(), "{error}");
    }
}

/// The chat template cannot be compiled: completions work, chats do not.
pub(crate) fn broken_chat_template(name: &str, error: &dyn std::error::Error) {
    warn!(template = name, %error, "the model's chat template cannot be compiled; chats will be refused");
}

/// An engine became usable, or stopped being so.
pub(crate) fn engine_changed(engine: &str, fault: Option<&Fault>) {
    match fault {
        None => info!(engine, "engine ready"),
        Some(fault @ Fault::Misplaced(_)) => error!(engine, "engine refused: it {fault}"),
        Some(fault) => warn!(engine, "engine not ready: it {fault}"),
    }
}

/// So many engines are usable now.
pub(crate) fn engines_usable(num: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge, and few engines")]
    gauge!("fused_tokenizer_engines_usable").set(num as f64);
}

/// The tokenizer became ready, or stopped being so.
pub(crate) fn readiness_changed(readiness: &Readiness) {
    match readiness {
        Readiness::Ready => info!("ready"),
        Readiness::NotReady(reason) => info!(reason, "not ready"),
    }
}

/// A request goes to a second engine because the first one could not give a first answer.
pub(crate) fn retried(engine: &str, error: &Error) {
    counter!("fused_tokenizer_engine_retries_total").increment(1);
    warn!(engine, %error, detail = error.detail(), "engine without a first answer; trying another");
}
