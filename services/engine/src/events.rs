//! Everything the engine counts and logs. The metrics' names are a contract with dashboards: they do not change.

use std::time::Duration;

use fused_status::Code;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::ModelInfo;
use crate::config::KvPlan;
use crate::core::{Drawn, Load, Totals};

/// The core's metrics.
pub(crate) struct CoreEvents {
    running_sequences: Gauge,
    waiting_sequences: Gauge,
    slots_in_use: Gauge,
    kv_bytes_total: Gauge,
    kv_bytes_mapped: Gauge,
    kv_bytes_parked: Gauge,
    kv_bytes_free: Gauge,
    kv_bytes_unused: Gauge,
    prompt_tokens: Counter,
    cached_prompt_tokens: Counter,
    computed_tokens: Counter,
    driver_calls: Counter,
    mapper_wait: Counter,
    generation_tokens: Counter,
    preemptions: Counter,
    steps: Counter,
    step_duration: Histogram,
    step_tokens: Histogram,
    host_time: Histogram,
    queue_time: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    totals: Totals,
}

impl CoreEvents {
    pub(crate) fn new() -> Self {
        let kv_bytes = |state| gauge!("fused_engine_kv_bytes", "state" => state);
        Self {
            running_sequences: gauge!("fused_engine_running_sequences"),
            waiting_sequences: gauge!("fused_engine_waiting_sequences"),
            slots_in_use: gauge!("fused_engine_slots_in_use"),
            kv_bytes_total: kv_bytes("total"),
            kv_bytes_mapped: kv_bytes("mapped"),
            kv_bytes_parked: kv_bytes("parked"),
            kv_bytes_free: kv_bytes("free"),
            kv_bytes_unused: gauge!("fused_engine_kv_unused_bytes"),
            prompt_tokens: counter!("fused_engine_prompt_tokens_total"),
            cached_prompt_tokens: counter!("fused_engine_cached_prompt_tokens_total"),
            computed_tokens: counter!("fused_engine_computed_tokens_total"),
            driver_calls: counter!("fused_engine_driver_calls_total"),
            mapper_wait: counter!("fused_engine_mapper_wait_microseconds_total"),
            generation_tokens: counter!("fused_engine_generation_tokens_total"),
            preemptions: counter!("fused_engine_preemptions_total"),
            steps: counter!("fused_engine_steps_total"),
            step_duration: histogram!("fused_engine_step_duration_seconds"),
            step_tokens: histogram!("fused_engine_step_tokens"),
            host_time: histogram!("fused_engine_host_time_seconds"),
            queue_time: histogram!("fused_engine_queue_time_seconds"),
            time_to_first_token: histogram!("fused_engine_time_to_first_token_seconds"),
            inter_token_latency: histogram!("fused_engine_inter_token_latency_seconds"),
            totals: Totals::default(),
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// A prompt has arrived whole.
    pub(crate) fn prompt(&mut self, num_tokens: usize) {
        self.totals.prompt += num_tokens as u64;
        self.prompt_tokens.increment(num_tokens as u64);
    }

    /// A sequence got a slot, in which so many of its tokens are computed already.
    pub(crate) fn admitted(&mut self, num_cached: usize) {
        self.totals.cached += num_cached as u64;
        self.cached_prompt_tokens.increment(num_cached as u64);
    }

    /// Driver calls until now, and how long steps have waited for the mapper.
    pub(crate) fn driver(&self, num_calls: u64, waited: Duration) {
        self.driver_calls.absolute(num_calls);
        self.mapper_wait.absolute(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }

    /// A sequence was scheduled for the first time.
    pub(crate) fn queued(&self, waited: Duration) {
        self.queue_time.record(waited);
    }

    pub(crate) fn preempted(&self) {
        self.preemptions.increment(1);
    }

    /// A token was drawn.
    pub(crate) fn token(&mut self, drawn: Drawn) {
        self.totals.generated += 1;
        self.generation_tokens.increment(1);
        let histogram = if drawn.is_first { &self.time_to_first_token } else { &self.inter_token_latency };
        histogram.record(drawn.latency);
    }

    pub(crate) fn step(&self, took: Duration, num_tokens: usize) {
        self.steps.increment(1);
        self.step_duration.record(took);
        self.step_tokens.record(num_tokens as f64);
        self.computed_tokens.increment(num_tokens as u64);
    }

    /// What the host has worked from one launch to the next, without its waits for the device.
    pub(crate) fn host(&self, took: Duration) {
        self.host_time.record(took);
    }

    /// How things stand after a step.
    pub(crate) fn load(&self, load: &Load) {
        self.running_sequences.set(load.num_running as f64);
        self.waiting_sequences.set(load.num_waiting as f64);
        self.slots_in_use.set(load.kv.live_slots as f64);
        self.kv_bytes_total.set(load.kv.total_bytes as f64);
        self.kv_bytes_mapped.set(load.kv.mapped_bytes as f64);
        self.kv_bytes_parked.set(load.kv.parked_bytes as f64);
        self.kv_bytes_free.set(load.kv.free_bytes as f64);
        self.kv_bytes_unused.set(load.kv.unused_bytes as f64);
    }

    /// A request is over: `stop`, `length`, `aborted`, or the name of the error it ended with.
    pub(crate) fn request_ended(&self, finish_reason: &'static str) {
        request_ended(finish_reason);
    }
}

/// A request was refused before the core saw it.
pub(crate) fn refused(code: Code) {
    request_ended(code.name());
}

fn request_ended(finish_reason: &'static str) {
    counter!("fused_engine_requests_total", "finish_reason" => finish_reason).increment(1);
}

/// The engine is lost; the process must be restarted.
pub(crate) fn failed(reason: &str) {
    tracing::error!(reason, "the engine has failed");
}

/// A core that was given up goes on after all; it is not used any more.
pub(crate) fn came_back() {
    tracing::warn!("the engine's core goes on after it was given up; the process ends all the same");
}

/// The checkpoint's weights are on the GPU.
#[cfg(feature = "cuda")]
pub(crate) fn weights_placed(num_bytes: usize, took: Duration) {
    tracing::info!(
        bytes = num_bytes,
        seconds = took.as_secs_f64(),
        gigabytes_per_s = num_bytes as f64 / 1e9 / took.as_secs_f64().max(1e-9),
        "the weights are on the device"
    );
}

/// How the engine is set up.
pub(crate) fn started(model: &ModelInfo, plan: &KvPlan, token_budget: usize) {
    tracing::info!(
        model = %model.name,
        device = %model.device,
        max_model_len = model.max_model_len,
        max_num_sequences = plan.size.num_sequences,
        token_budget,
        kv_bytes = plan.size.pool_bytes,
        page_bytes = plan.page_bytes,
        "the engine starts"
    );
}

/// The checkpoint holds more than the configuration speaks of: layers, biases, experts.
pub(crate) fn weights_unused(first: &str, num_unused: usize) {
    tracing::warn!(
        first,
        num_unused,
        "the checkpoint holds tensors that config.json does not speak of; they are left out, and the output is wrong if they \
         belong to the model: check num_hidden_layers, attention_bias and mlp_bias"
    );
}

/// The context is shorter than the model's, because KV memory for one sequence of that length is not there.
pub(crate) fn context_shortened(model_max_len: usize, max_model_len: usize) {
    tracing::warn!(
        model_max_len,
        max_model_len,
        "KV memory does not hold one sequence of the model's full context; raise kv_cache_bytes for more"
    );
}

/// KV memory has become less because the system or a neighbour on the device has none, or more again.
pub(crate) fn kv_pool_resized(before_bytes: usize, bytes: usize) {
    if bytes < before_bytes {
        tracing::warn!(
            before_bytes,
            bytes,
            "KV memory shrinks: the device has no more; others there take it"
        );
    } else {
        tracing::info!(before_bytes, bytes, "KV memory grows again");
    }
}

/// What the engine has done in the last seconds, and how it stands.
pub(crate) fn throughput(took: Duration, before: &Totals, load: &Load) {
    let num = |now: u64, before: u64| now.saturating_sub(before);
    let per_s = |num: u64| (num as f64 / took.as_secs_f64().max(1e-3) * 10.0).round() / 10.0;
    let prompt = num(load.totals.prompt, before.prompt);
    let cached = num(load.totals.cached, before.cached);
    let kv_bytes = load.kv.mapped_bytes as f64 / load.kv.total_bytes.max(1) as f64;
    tracing::info!(
        prompt_tokens_per_s = per_s(prompt),
        generated_tokens_per_s = per_s(num(load.totals.generated, before.generated)),
        cached_tokens_per_s = per_s(cached),
        running = load.num_running,
        waiting = load.num_waiting,
        kv_memory_percent = (kv_bytes * 1000.0).round() / 10.0,
        "throughput"
    );
}

/// An aborted request, with the reason its caller gave.
pub(crate) fn aborted(request_id: &str, reason: &str, num_sequences: usize, kv_bytes: usize) {
    tracing::info!(request_id, reason, num_sequences, kv_bytes, "a request was aborted");
}
