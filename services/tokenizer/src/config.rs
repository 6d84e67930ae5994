use std::path::PathBuf;
use std::time::Duration;

use fused_checkpoint::ModelFiles;

/// Settings of the tokenizer.
#[derive(Clone, Debug)]
pub struct Config {
    /// The names the model is served under, of which answers tell the first; none: what the engines call it.
    pub model_names: Vec<String>,
    /// Whose `generation_config.json` says how requests are sampled that do not say it themselves; none: no file's.
    pub generation_config: Option<ModelFiles>,
    /// Threads that render chat templates and encode.
    pub encode_threads: usize,
    /// Texts waiting for such a thread; one more is refused with 429.
    pub max_waiting_texts: usize,
    /// What all texts that wait or are encoded, and the tokens of those that are only tokenized, may take together, half of
    /// it for prompts; one more is refused with 429.
    pub max_text_memory_bytes: usize,
    /// The largest prompt text, after the chat template.
    pub max_prompt_bytes: usize,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
    /// The program that renders the chat templates of requests, called with [`RENDER_COMMAND`](crate::RENDER_COMMAND)
    /// once for each; none: a request may not bring one. A template is a program, too: whoever writes one can make a
    /// short request cost much memory and time.
    pub request_template_renderer: Option<PathBuf>,
    /// How soon an engine that cannot be used is tried again; one that can be tells by itself when that changes.
    pub engine_check_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_names: Vec::new(),
            generation_config: None,
            encode_threads: 2,
            max_waiting_texts: 1024,
            max_text_memory_bytes: 256 << 20,
            max_prompt_bytes: 4 << 20,
            chat_template: None,
            request_template_renderer: None,
            engine_check_interval: Duration::from_secs(1),
        }
    }
}
