use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spelling::{list, optional_text, secrets, text};

/// The effective settings of a process. Sizes in bytes, times in seconds, as the names say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A model directory or a hub id `ORG/NAME[@REVISION]`; none: the demo model in this binary.
    #[serde(deserialize_with = "optional_text")]
    pub model: Option<String>,
    /// The names clients may use, of which answers tell the first; none: the directory's name or the hub id.
    #[serde(deserialize_with = "list")]
    pub served_model_name: Vec<String>,
    /// Where the sampling comes from that a request leaves open: `auto`, the model's generation_config.json; `none`, no file;
    /// or a directory with such a file.
    #[serde(deserialize_with = "text")]
    pub generation_config: String,
    /// A patch vocabulary file; `none` switches off the one in the model directory.
    #[serde(deserialize_with = "optional_text")]
    pub patch_vocabulary: Option<String>,

    /// `auto`, `cpu` or `cuda:N`.
    #[serde(deserialize_with = "text")]
    pub device: String,
    /// `auto`: the model's own weights; `dummy`: random ones of its shape, made on a GPU, for measurements.
    #[serde(deserialize_with = "text")]
    pub load_format: String,
    /// How requests' keys and values are stored: `fa_vattn` is the only one.
    #[serde(deserialize_with = "text")]
    pub attention_backend: String,
    /// Prompt and output tokens of one sequence; none: what the model was trained for.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once, each in its own slot of KV memory; none: as many as suit the device.
    pub max_num_sequences: Option<usize>,
    /// Who gets how much of a step: `sarathi`, or what it is compared with: `vllm`, `orca`, `fastertransformer`,
    /// `simple-chunking`.
    #[serde(deserialize_with = "text")]
    pub scheduling_policy: String,
    /// Which of two waiting requests is earlier: `fcfs`, or `priority`, the one of lower `priority` number.
    #[serde(deserialize_with = "text")]
    pub scheduling_order: String,
    /// Which prompts share what a step's decodes leave, under `sarathi`: `shortest`, where shorter ones pass the first
    /// in order, which keeps a quarter, or `arrival`, one after the other.
    #[serde(deserialize_with = "text")]
    pub prefill_order: String,
    /// Under `priority`: waiting so many seconds is worth one step of priority.
    pub priority_ageing_s: f64,
    /// Tokens of one step, decodes and prefill chunks together (Sarathi-Serve's token budget); none: what meets
    /// `target_inter_token_latency_ms`, else as many as suit the device, at least `chunk_size_high` and `max_num_sequences`.
    pub token_budget: Option<usize>,
    /// How long a running sequence may wait for its next token: the token budget is what this machine computes in that
    /// time, measured at start. In place of `token_budget`.
    pub target_inter_token_latency_ms: Option<f64>,
    /// Tokens of a prompt's first chunks, where later ones are to be smaller (sarathi-lean's dynamic chunk schedule);
    /// none: chunks are what the token budget leaves. Alone it is enough: the three below have defaults.
    pub chunk_size_high: Option<usize>,
    /// Tokens of its last chunks; 128, or `chunk_size_high` where that is less.
    pub chunk_size_low: Option<usize>,
    /// Prompt tokens over which the size goes down; 4096.
    pub chunk_schedule_max_tokens: Option<usize>,
    /// Steps in which it goes down; 16.
    pub chunk_schedule_stages: Option<usize>,
    /// Whether requests whose prompts begin alike share the memory of that beginning, and compute it once.
    pub prefix_cache: bool,
    /// A request is refused with 429 while the prompt tokens that wait before it would take longer than this; 0: never.
    pub target_time_to_first_token_s: f64,
    /// Physical memory for keys and values; none: all slots full, or half of the machine's memory if that is less.
    pub kv_cache_bytes: Option<u64>,
    /// Part of a GPU's memory that the engine takes in all, where `kv_cache_bytes` is not set.
    pub gpu_memory_utilization: f64,
    /// Bytes of one physical page; none: chosen by the model's size.
    pub page_bytes: Option<usize>,
    /// Requests that wait for a slot; one more is refused with 429.
    pub max_waiting_requests: usize,
    /// Messages a sequence that are buffered for a client that does not read; one more cancels its request.
    pub stream_buffer: usize,
    /// An engine that has work and gets nothing done for so long is given up: its requests end, and the process exits. A step
    /// may take ten times as long as its size says. 0: never.
    pub watchdog_timeout_s: f64,

    /// Engines the tokenizer sends to, `http://HOST:PORT`.
    #[serde(deserialize_with = "list")]
    pub engine: Vec<String>,
    /// Threads that encode.
    pub tokenizer_threads: usize,
    /// Texts waiting to be encoded; one more is refused with 429.
    pub max_waiting_texts: usize,
    /// A chat template in place of the model's: a file of Jinja, or the template itself.
    pub chat_template: Option<String>,
    /// Whether a request may bring its own chat template, a program that the tokenizer runs.
    pub trust_request_chat_template: bool,

    /// Tokenizers the gateway sends to, `http://HOST:PORT`.
    #[serde(deserialize_with = "list")]
    pub tokenizer: Vec<String>,
    /// API keys that are let in; none at all: everybody is.
    #[serde(deserialize_with = "secrets")]
    pub api_key: Vec<String>,
    /// A file with one API key a line; `#` begins a comment. Read again when it changes.
    pub api_key_file: Option<PathBuf>,
    /// A TOML file of tenants: names, API keys or their SHA-256, limits. Read again when it changes.
    pub tenants_file: Option<PathBuf>,
    /// Whether tenants share nothing of the prefix cache; none: where there are several API keys.
    pub isolate_prefix_cache: Option<bool>,
    /// Requests the gateway has in flight; one more is refused with 429.
    pub max_requests_in_flight: usize,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// How long an HTTP connection without a request stays open: longer than the load balancer in front keeps it.
    pub http_keep_alive_s: u64,
    /// Memory that requests and their answers may take in a gateway, and their texts in a tokenizer; none: 256 MiB, or a
    /// quarter of the container's memory if that is less.
    pub max_buffered_bytes: Option<usize>,
    /// Origins whose pages may call the API from a browser; `*` for all.
    #[serde(deserialize_with = "list")]
    pub allowed_origins: Vec<String>,

    /// The address to listen on.
    #[serde(deserialize_with = "text")]
    pub host: String,
    /// The HTTP port; 0 is any free one.
    pub port: u16,
    /// The gRPC port; none: 50051 for the tokenizer, 50052 for the engine, no port in `serve`.
    pub grpc_port: Option<u16>,
    /// The HTTP port for /metrics, without a key; none: no port. The gateway has a route for it too, behind its keys.
    pub metrics_port: Option<u16>,
    /// How long running requests may go on after SIGTERM.
    pub drain_timeout_s: u64,

    /// Which log lines are written, such as `info` or `warn,fused_engine=debug`.
    #[serde(deserialize_with = "text")]
    pub log_filter: String,
    /// `text` or `json`.
    #[serde(deserialize_with = "text")]
    pub log_format: String,
    /// Where spans go, OTLP over gRPC; none: nowhere.
    #[serde(deserialize_with = "optional_text")]
    pub otlp_endpoint: Option<String>,
    /// The share of traces recorded where the caller has not decided it.
    pub trace_sample_ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: None,
            served_model_name: Vec::new(),
            generation_config: "auto".to_owned(),
            patch_vocabulary: None,
            device: "auto".to_owned(),
            load_format: "auto".to_owned(),
            attention_backend: "fa_vattn".to_owned(),
            max_model_len: None,
            max_num_sequences: None,
            scheduling_policy: "sarathi".to_owned(),
            scheduling_order: "fcfs".to_owned(),
            prefill_order: "shortest".to_owned(),
            priority_ageing_s: 10.0,
            token_budget: None,
            target_inter_token_latency_ms: None,
            chunk_size_high: None,
            chunk_size_low: None,
            chunk_schedule_max_tokens: None,
            chunk_schedule_stages: None,
            prefix_cache: true,
            target_time_to_first_token_s: 30.0,
            kv_cache_bytes: None,
            gpu_memory_utilization: 0.9,
            page_bytes: None,
            max_waiting_requests: 1024,
            stream_buffer: 4096,
            watchdog_timeout_s: 30.0,
            engine: Vec::new(),
            tokenizer_threads: 2,
            max_waiting_texts: 1024,
            chat_template: None,
            trust_request_chat_template: false,
            tokenizer: Vec::new(),
            api_key: Vec::new(),
            api_key_file: None,
            tenants_file: None,
            isolate_prefix_cache: None,
            max_requests_in_flight: 1024,
            max_body_bytes: 4 << 20,
            http_keep_alive_s: 75,
            max_buffered_bytes: None,
            allowed_origins: Vec::new(),
            host: "127.0.0.1".to_owned(),
            port: 8000,
            grpc_port: None,
            metrics_port: None,
            drain_timeout_s: 30,
            log_filter: "info".to_owned(),
            log_format: "text".to_owned(),
            otlp_endpoint: None,
            trace_sample_ratio: 1.0,
        }
    }
}

impl Settings {
    /// The settings as a TOML file. What is not set stands there as a comment, and so do secrets, without their value.
    ///
    /// # Errors
    /// None that can happen: every setting is a TOML value.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let shown = toml::to_string(&Self { api_key: Vec::new(), ..self.clone() })?;
        let mut shown = shown.replace("api_key = []\n", "");
        let secret = if self.api_key.is_empty() { "is not set" } else { "is set and not shown" };
        let mut comment = |key: &str, state: &str| {
            shown.push_str("# ");
            shown.push_str(key);
            shown.push(' ');
            shown.push_str(state);
            shown.push('\n');
        };
        comment("api_key", secret);
        let unset = [
            ("model", self.model.is_none()),
            ("patch_vocabulary", self.patch_vocabulary.is_none()),
            ("max_model_len", self.max_model_len.is_none()),
            ("max_num_sequences", self.max_num_sequences.is_none()),
            ("token_budget", self.token_budget.is_none()),
            ("target_inter_token_latency_ms", self.target_inter_token_latency_ms.is_none()),
            ("chunk_size_high", self.chunk_size_high.is_none()),
            ("chunk_size_low", self.chunk_size_low.is_none()),
            ("chunk_schedule_max_tokens", self.chunk_schedule_max_tokens.is_none()),
            ("chunk_schedule_stages", self.chunk_schedule_stages.is_none()),
            ("kv_cache_bytes", self.kv_cache_bytes.is_none()),
            ("page_bytes", self.page_bytes.is_none()),
            ("chat_template", self.chat_template.is_none()),
            ("api_key_file", self.api_key_file.is_none()),
            ("tenants_file", self.tenants_file.is_none()),
            ("isolate_prefix_cache", self.isolate_prefix_cache.is_none()),
            ("max_buffered_bytes", self.max_buffered_bytes.is_none()),
            ("grpc_port", self.grpc_port.is_none()),
            ("metrics_port", self.metrics_port.is_none()),
            ("otlp_endpoint", self.otlp_endpoint.is_none()),
        ];
        for (key, _) in unset.into_iter().filter(|(_, is_unset)| *is_unset) {
            comment(key, "is not set: chosen at start, or off");
        }
        Ok(shown)
    }
}
