//! An engine on this machine's processors.

use fused_checkpoint::{Checkpoint, Dtype, ModelConfig, ModelFiles};
use fused_lifecycle::Lifecycle;
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::import::PatchEmbeddings;
use fused_vocabulary::{Fingerprint, PatchVocabulary, TokenId};

use crate::config::{KvNeeds, KvPlan, PageRules};
use crate::end_tokens::end_tokens;
use crate::engine::unix_seconds;
use crate::kv::KvCache;
use crate::runner::Runner;
use crate::runner::cpu::CpuRunner;
use crate::{Config, Engine, Error, ModelInfo, WeightSource, budget, events, memory};

impl Engine {
    /// Loads a model, adapted to `patch` where there is one, and starts an engine for it. Takes seconds, and needs a
    /// tokio runtime. `embeddings` are taken in place of rows computed from the model's; weights that were saved adapted
    /// have their own.
    ///
    /// # Errors
    /// A setting that cannot hold, by its name; a model that cannot be read, or does not belong to the patch vocabulary;
    /// a machine without the memory.
    pub fn start_cpu(
        config: Config,
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        config.check()?;
        if config.weights == WeightSource::Random {
            return Err(Error::setting("load_format", "is dummy: random weights are made on a GPU only"));
        }
        let adapted = Adapted::new(files, patch, config.max_model_len)?;
        let checkpoint = Checkpoint::open(files)?;
        let runner = CpuRunner::load(&checkpoint, &adapted.config, adapted.patch.as_ref(), embeddings)?;
        let needs = KvNeeds {
            layout: runner.kv_layout(),
            model_max_len: runner.shape().max_positions,
            // Asked now: what the weights take is available no more.
            available_bytes: memory::available_bytes(),
            pages: PageRules::host(),
        };
        let (device, vocab_size) = (runner.device(), runner.shape().vocab_size);
        let loaded = Loaded { adapted, runner, needs, device, vocab_size };
        let memory = |plan: &KvPlan| Ok(LinuxMemory::new(plan.page_bytes, plan.size.pool_bytes)?);
        Self::start_loaded(config, loaded, memory, lifecycle)
    }

    /// Makes KV memory for a loaded model and starts.
    pub(crate) fn start_loaded<R: Runner>(
        mut config: Config,
        loaded: Loaded<R>,
        memory: impl FnOnce(&KvPlan) -> Result<R::Memory, Error>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        let Loaded { adapted, mut runner, needs, device, vocab_size } = loaded;
        let plan = config.kv_plan(needs)?;
        config.max_num_sequences = plan.size.num_sequences;
        let mut kv = KvCache::new(memory(&plan)?, needs.layout, plan.size)?;
        if let Some(target) = config.target_inter_token_latency {
            config.token_budget = budget::measure(&mut runner, &mut kv, vocab_size, target)?;
            config.check()?;
        }
        kv.start_mapper()?;
        let model = ModelInfo {
            name: config.model_name.clone(),
            vocabulary_fingerprint: adapted.fingerprint.to_string(),
            max_model_len: plan.size.max_model_len,
            vocab_size,
            eos_token_ids: adapted.eos_token_ids,
            architecture: adapted.config.family.model_type().to_owned(),
            dtype: adapted.config.dtype.map(|dtype| dtype_name(dtype).to_owned()),
            device,
            max_logprobs: config.max_logprobs,
            created_unix_s: unix_seconds(),
        };
        events::started(&model, &plan, config.token_budget);
        Self::start(&config, model, runner, kv, lifecycle)
    }
}

/// A model's files, understood, with the vocabulary it is adapted to.
pub(crate) struct Adapted {
    pub(crate) config: ModelConfig,
    pub(crate) patch: Option<PatchVocabulary>,
    fingerprint: Fingerprint,
    eos_token_ids: Vec<TokenId>,
}

/// A model on its device.
pub(crate) struct Loaded<R> {
    pub(crate) adapted: Adapted,
    pub(crate) runner: R,
    pub(crate) needs: KvNeeds,
    pub(crate) device: String,
    pub(crate) vocab_size: usize,
}

impl Adapted {
    /// # Errors
    /// Files that are missing or make no sense together.
    pub(crate) fn new(
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        max_model_len: Option<usize>,
    ) -> Result<Self, Error> {
        let mut config = ModelConfig::parse(files)?;
        if let Some(max_model_len) = max_model_len {
            config.limit_context(max_model_len);
        }
        let tokenizer = fused_adaptation::tokenizer_json(files)?;
        let fingerprint = fused_vocabulary::fingerprint(&tokenizer, patch.as_ref())?;
        let eos_token_ids = end_tokens(files, &config, patch.as_ref(), &tokenizer)?;
        Ok(Self { config, patch, fingerprint, eos_token_ids })
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}
