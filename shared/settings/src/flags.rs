use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// The flags of whatever runs an engine, as typed: which model, and how it is run. What they mean is
/// [`Settings`](crate::Settings), where each is described. Aliases are the names of other servers for the same thing;
/// underscored ones those of sarathi-lean and AdaptiVocab.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct EngineFlags {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "FUSED_CONFIG", help_heading = "Process")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Model directory or hub id ORG/NAME@REVISION [default: the demo model in this binary]
    #[arg(long, aliases = ["model_name", "model-name", "model-path", "model-id"], value_name = "DIR_OR_ID", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Names clients may use; answers tell the first [default: the directory's name or the hub id]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', help_heading = "Model")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    served_model_name: Vec<String>,
    /// Sampling defaults: auto, the model's generation_config.json; none; or a directory with one [default: auto]
    #[arg(long, value_name = "auto|none|DIR", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_config: Option<String>,
    /// Patch vocabulary; `none` switches off the one in the model directory
    #[arg(long, alias = "patch_tokenizer_path", value_name = "FILE", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_vocabulary: Option<String>,

    /// auto, cpu or cuda:N [default: auto]
    #[arg(long, help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// auto, or dummy: random weights of the model's shape, made on a GPU [default: auto]
    #[arg(long, alias = "model_load_format", value_name = "FORMAT", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load_format: Option<String>,
    /// auto: weights are computed in the type that they are stored in
    #[arg(long, hide = true, value_parser = only_auto)]
    #[serde(skip)]
    dtype: Option<()>,
    /// fa_vattn: contiguous virtual KV memory, the only one [default: fa_vattn]
    #[arg(long, alias = "model_attention_backend", value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    attention_backend: Option<String>,
    /// Prompt and output tokens of one sequence [default: the model's]
    #[arg(long, aliases = ["model_max_model_len", "context-length", "ctx-size"], value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    /// Sequences that run at once [default: 64; on a GPU 256, fewer where KV memory is short]
    #[arg(long, aliases = ["max-num-seqs", "max-running-requests"], value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_num_sequences: Option<usize>,
    /// sarathi, or to compare with: vllm, orca, fastertransformer, simple-chunking [default: sarathi]
    #[arg(long, alias = "replica_scheduler_provider", value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling_policy: Option<String>,
    /// fcfs, or priority: lower numbers are earlier [default: fcfs]
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling_order: Option<String>,
    /// Which prompts share a step under sarathi: shortest, or arrival, one after the other [default: shortest]
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_order: Option<String>,
    /// Waiting this long is worth one step of priority [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_ageing_s: Option<f64>,
    /// Tokens of one step, decodes and prefill chunks together [default: 512; on a GPU 2048]
    #[arg(long, aliases = ["sarathi_chunk_size", "max-num-batched-tokens", "chunked-prefill-size"], value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    token_budget: Option<usize>,
    /// Time for one step; the token budget is measured to meet it [default: none]
    #[arg(long, value_name = "MS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_inter_token_latency_ms: Option<f64>,
    /// Size of a prompt's first chunks, where later ones shall be smaller [default: none]
    #[arg(long, alias = "sarathi_high_chunk_size", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_size_high: Option<usize>,
    /// Size of a prompt's last chunks [default: 128 with --chunk-size-high]
    #[arg(long, alias = "sarathi_low_chunk_size", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_size_low: Option<usize>,
    /// Prompt tokens over which chunks get smaller [default: 4096 with --chunk-size-high]
    #[arg(long, alias = "sarathi_chunk_schedule_max_tokens", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_schedule_max_tokens: Option<usize>,
    /// Steps in which chunks get smaller [default: 16 with --chunk-size-high]
    #[arg(long, alias = "sarathi_chunk_schedule_stages", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_schedule_stages: Option<usize>,
    /// Share the memory of prompts' common beginnings [default: true]
    #[arg(long, alias = "enable-prefix-caching", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix_cache: Option<bool>,
    /// Refuse a request that would wait longer for its first token; 0: never [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_time_to_first_token_s: Option<f64>,
    /// Physical memory for keys and values, bytes [default: enough for all slots, at most half of memory]
    #[arg(long, value_name = "BYTES", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cache_bytes: Option<u64>,
    /// Part of a GPU's memory to take in all, where --kv-cache-bytes is not given [default: 0.9]
    #[arg(long, alias = "gpu_memory_utilization", value_name = "PART", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_memory_utilization: Option<f64>,
    /// Size of a physical page, bytes [default: by the model's size]
    #[arg(long, alias = "model_block_size", value_name = "BYTES", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    page_bytes: Option<usize>,
    /// Requests that may wait for a slot [default: 1024]
    #[arg(long, alias = "max-queued-requests", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiting_requests: Option<usize>,
    /// Messages a sequence that are buffered for a client that does not read [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_buffer: Option<usize>,
    /// Time without progress after which the engine is given up; 0: never [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    watchdog_timeout_s: Option<f64>,
}

/// What other servers let choose; a command line that leaves it to the model is right here, too.
fn only_auto(dtype: &str) -> Result<(), String> {
    match dtype {
        "auto" => Ok(()),
        _ => {
            Err("weights are computed in the type that they are stored in: leave it out, or give auto"
                .to_owned())
        }
    }
}

impl EngineFlags {
    /// These flags, with the model that was named without one.
    pub(crate) fn with_model(self, model: Option<String>) -> Self {
        Self { model: model.or(self.model), ..self }
    }
}
