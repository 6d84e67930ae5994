use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fused_checkpoint::ModelFiles;
use fused_lifecycle::Lifecycle;
use fused_proto::text::v1::text_generation_server::TextGenerationServer;
use fused_transport::{MAX_MESSAGE_BYTES, Readiness, Replica};
use fused_vocabulary::{PatchVocabulary, TokenId, Vocabulary};
use tokio::sync::watch;

use crate::chat_template::{ChatTemplates, RequestTemplates};
use crate::encode::EncodePool;
use crate::engines::{Engines, Model};
use crate::generation_defaults::GenerationDefaults;
use crate::prompt::{Prompt, PromptEncoder};
use crate::special_tokens::Affixes;
use crate::tokenizer_config::TokenizerConfig;
use crate::tokenizer_info::tokenizer_info;
use crate::{Config, Error, TextService, events};

/// A running tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    pub(crate) core: Arc<Core>,
    lifecycle: Lifecycle,
}

/// What every request needs.
pub(crate) struct Core {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) encoder: Arc<PromptEncoder>,
    pub(crate) pool: EncodePool,
    pub(crate) engines: Engines,
    pub(crate) generation_defaults: GenerationDefaults,
    /// The answer to whoever asks about the tokenizer, JSON.
    pub(crate) info: String,
    /// The model's own name.
    pub(crate) root: String,
    ids: RequestIds,
}

impl Tokenizer {
    /// Loads the model's tokenizer and chat template, and begins to ask the engines for their models; the list of
    /// engines may change at any time. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// A file of the model is missing or refused; the message names it.
    pub fn start(
        config: Config,
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        engines: watch::Receiver<Vec<Replica>>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        events::describe();
        let json = fused_adaptation::tokenizer_json(files)?;
        let vocabulary = Arc::new(Vocabulary::load(&json, patch)?);
        let tokenizer_config = TokenizerConfig::load(files)?;
        let request_templates =
            config.request_template_renderer.map_or(RequestTemplates::Refused, RequestTemplates::Isolated);
        let given = config.chat_template.as_deref();
        let templates = ChatTemplates::load(&tokenizer_config, given, request_templates)
            .map_err(|error| Error::GivenChatTemplate(error.to_string()))?;
        let encoder = PromptEncoder {
            vocabulary: Arc::clone(&vocabulary),
            templates,
            affixes: Affixes::load(&vocabulary, &tokenizer_config)?,
            max_prompt_bytes: config.max_prompt_bytes,
        };
        let pool =
            EncodePool::new(config.encode_threads, config.max_waiting_texts, config.max_text_memory_bytes)?;
        let fingerprint = vocabulary.fingerprint();
        let engines =
            Engines::start(engines, fingerprint, config.model_names, config.engine_check_interval, lifecycle);
        let generation_defaults =
            config.generation_config.as_ref().map(GenerationDefaults::load).transpose()?.unwrap_or_default();
        events::generation_defaults(&generation_defaults.describe());
        let core = Core {
            vocabulary,
            encoder: Arc::new(encoder),
            pool,
            engines,
            generation_defaults,
            info: tokenizer_info(files, &tokenizer_config, config.chat_template.as_deref())?.to_string(),
            root: files.name().to_owned(),
            ids: RequestIds::new(),
        };
        Ok(Self { core: Arc::new(core), lifecycle: lifecycle.clone() })
    }

    /// The gRPC service `fused.text.v1.TextGeneration`.
    #[must_use]
    pub fn service(&self) -> TextGenerationServer<TextService> {
        let service = TextService::new(Arc::clone(&self.core), self.lifecycle.clone());
        TextGenerationServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Whether the model's chat template can be used; else only completions are served.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.core.encoder.templates.has_default()
    }

    /// Whether requests can be served; changes as engines come and go.
    #[must_use]
    pub fn ready(&self) -> watch::Receiver<Readiness> {
        self.core.engines.readiness()
    }
}

impl Core {
    /// Refuses a prompt of ids that the model cannot have.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) fn check_prompt(&self, model: &Model, prompt: &Prompt) -> fused_status::Result<()> {
        match prompt {
            Prompt::Tokens(ids) => self.check_ids(model, "prompt", ids),
            Prompt::Text(_) => Ok(()),
        }
    }

    /// Refuses ids of neither a token nor a row of the embedding. A row behind the tokens, which pads the matrix to a round
    /// size, may be drawn, stands for no text, and may be given back.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) fn check_ids(&self, model: &Model, field: &str, ids: &[TokenId]) -> fused_status::Result<()> {
        let num_ids = self.vocabulary.vocab_size().max(model.vocab_size);
        match ids.iter().find(|id| id.row() >= num_ids) {
            None => Ok(()),
            Some(id) => {
                let message = format!(
                    "token id {id} is out of range: the model's vocabulary has {num_ids} tokens, with ids as /tokenize \
                     gives them"
                );
                Err(fused_status::Error::invalid(field, message))
            }
        }
    }

    /// An id for a request that came without one.
    pub(crate) fn new_request_id(&self) -> String {
        let RequestIds { process, next } = &self.ids;
        format!("req-{process:x}-{}", next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Ids that are unique among the tokenizers of one engine: none is started in the same nanosecond as another on the
/// same process id.
struct RequestIds {
    process: u128,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let process = since.map_or(0, |since| since.as_nanos()) << 32 | u128::from(std::process::id());
        Self { process, next: AtomicU64::new(0) }
    }
}
