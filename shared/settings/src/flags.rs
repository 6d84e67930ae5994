use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// The flags of every subcommand that runs a service, as typed; what they mean is [`Settings`](crate::Settings), where
/// each is described. Underscored names are those of sarathi-lean and AdaptiVocab.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct Flags {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "FUSED_CONFIG", help_heading = "Process")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Model directory or hub id ORG/NAME@REVISION [default: the demo model in this binary]
    #[arg(long, alias = "model_name", value_name = "DIR_OR_ID", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The name clients use [default: the directory's name or the hub id]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    served_model_name: Option<String>,
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
    /// fa_vattn: contiguous virtual KV memory, the only one [default: fa_vattn]
    #[arg(long, alias = "model_attention_backend", value_name = "NAME", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    attention_backend: Option<String>,
    /// Prompt and output tokens of one sequence [default: the model's]
    #[arg(long, alias = "model_max_model_len", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    /// Sequences that run at once [default: 64]
    #[arg(long, value_name = "N", help_heading = "Engine")]
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
    /// Waiting this long is worth one step of priority [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_ageing_s: Option<f64>,
    /// Tokens of one step, decodes and prefill chunks together [default: 512]
    #[arg(long, alias = "sarathi_chunk_size", value_name = "N", help_heading = "Engine")]
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
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Engine")]
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
    #[arg(long, value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiting_requests: Option<usize>,
    /// Messages buffered for a client that does not read [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_buffer: Option<usize>,

    /// Engine to send to; may be repeated
    #[arg(long, value_name = "URL", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engine: Vec<String>,
    /// Threads that encode [default: 2]
    #[arg(long, value_name = "N", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer_threads: Option<usize>,
    /// Texts that may wait to be encoded [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiting_texts: Option<usize>,

    /// Let requests bring their own chat template [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_request_chat_template: Option<bool>,

    /// Tokenizer to send to
    #[arg(long, value_name = "URL", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<String>,
    /// API key to let in; may be repeated. Visible in the process list: prefer --api-key-file
    #[arg(long, value_name = "KEY", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    api_key: Vec<String>,
    /// File with one API key a line
    #[arg(long, value_name = "FILE", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<PathBuf>,
    /// Requests in flight [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests_in_flight: Option<usize>,
    /// Largest request body, bytes [default: 4194304]
    #[arg(long, value_name = "BYTES", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_body_bytes: Option<usize>,
    /// Origin whose pages may call the API from a browser; may be repeated
    #[arg(long, alias = "allowed-origin", value_name = "ORIGIN", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_origins: Vec<String>,

    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// HTTP port, 0 for any free one [default: 8000]
    #[arg(long, help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// gRPC port, 0 for any free one [default: tokenizer 50051, engine 50052, serve none]
    #[arg(long, value_name = "PORT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_port: Option<u16>,
    /// HTTP port for /metrics of tokenizer and engine [default: none]
    #[arg(long, value_name = "PORT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_port: Option<u16>,
    /// How long running requests may go on after SIGTERM [default: 30]
    #[arg(long, alias = "drain-timeout", value_name = "SECONDS", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout_s: Option<u64>,
    /// Which log lines are written, such as info or warn,fused_engine=debug [default: info]
    #[arg(long, value_name = "DIRECTIVES", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_filter: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
    /// Where spans go, OTLP over gRPC [default: nowhere]
    #[arg(long, value_name = "URL", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<String>,
    /// Share of traces recorded where the caller has not decided it [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_sample_ratio: Option<f64>,
}
