//! An engine on this machine's processors.

use fused_checkpoint::{Checkpoint, Dtype, ModelConfig, ModelFiles};
use fused_lifecycle::Lifecycle;
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::{Fingerprint, PatchVocabulary, TokenId};

use crate::config::KvNeeds;
use crate::engine::unix_seconds;
use crate::kv::KvCache;
use crate::runner::cpu::CpuRunner;
use crate::{Config, Engine, Error, ModelInfo, events, memory};

const TOKENIZER_FILE: &str = "tokenizer.json";

impl Engine {
    /// Loads a model, adapted to `patch` where there is one, and starts an engine for it. Takes seconds, and needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// A setting that cannot hold, by its name; a model that cannot be read, or does not belong to the patch vocabulary;
    /// a machine without the memory.
    pub fn start_cpu(
        config: Config,
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        config.check()?;
        let model_config = ModelConfig::parse(files)?;
        let fingerprint = vocabulary_fingerprint(files, patch.as_ref())?;
        let runner = CpuRunner::load(&Checkpoint::open(files)?, &model_config, patch.as_ref())?;
        // Asked now: what the weights take is available no more.
        let available_bytes = memory::available_bytes();
        let needs = KvNeeds {
            layout: runner.kv_layout(),
            model_max_len: runner.shape().max_positions,
            available_bytes,
        };
        let plan = config.kv_plan(needs)?;
        let memory = LinuxMemory::new(plan.page_bytes, plan.size.pool_bytes)?;
        let kv = KvCache::new(memory, needs.layout, plan.size)?;
        let model = ModelInfo {
            name: config.model_name.clone(),
            vocabulary_fingerprint: fingerprint.to_string(),
            max_model_len: plan.size.max_model_len,
            vocab_size: runner.shape().vocab_size,
            eos_token_ids: eos_token_ids(&model_config, patch.as_ref()),
            architecture: model_config.family.model_type().to_owned(),
            dtype: model_config.dtype.map(|dtype| dtype_name(dtype).to_owned()),
            device: runner.device(),
            max_logprobs: config.max_logprobs,
            created_unix_s: unix_seconds(),
        };
        events::started(&model, &plan);
        Self::start(&config, model, runner, kv, lifecycle)
    }
}

fn vocabulary_fingerprint(files: &ModelFiles, patch: Option<&PatchVocabulary>) -> Result<Fingerprint, Error> {
    let tokenizer = files.read(TOKENIZER_FILE)?.ok_or_else(|| fused_checkpoint::Error::MissingFile {
        model: files.name().to_owned(),
        file: TOKENIZER_FILE.to_owned(),
    })?;
    Ok(fused_vocabulary::fingerprint(&tokenizer, patch)?)
}

/// The model's own ids. A checkpoint that was saved adapted already names those; an unadapted one names base ids.
fn eos_token_ids(config: &ModelConfig, patch: Option<&PatchVocabulary>) -> Vec<TokenId> {
    let patch = patch.filter(|_| config.vocabulary_fingerprint.is_none());
    let named = config.eos_token_ids.iter().copied().map(TokenId);
    // The builder never removes a special token, so that none is lost here.
    named.filter_map(|id| patch.map_or(Some(id), |patch| patch.model_id(id))).collect()
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}
