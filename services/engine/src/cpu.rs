//! An engine on this machine's processors.

use fused_checkpoint::{Checkpoint, Dtype, ModelConfig, ModelFiles};
use fused_lifecycle::Lifecycle;
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::import::PatchEmbeddings;
use fused_vocabulary::{Fingerprint, PatchVocabulary, TokenId};

use crate::config::{KvNeeds, KvPlan, PageRules};
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
        let fingerprint = vocabulary_fingerprint(files, patch.as_ref())?;
        let eos_token_ids = eos_token_ids(&config, patch.as_ref())?;
        Ok(Self { config, patch, fingerprint, eos_token_ids })
    }
}

fn vocabulary_fingerprint(files: &ModelFiles, patch: Option<&PatchVocabulary>) -> Result<Fingerprint, Error> {
    let tokenizer = fused_adaptation::tokenizer_json(files)?;
    Ok(fused_vocabulary::fingerprint(&tokenizer, patch)?)
}

/// The model's own ids. A checkpoint that was saved adapted already names those; an unadapted one names base ids.
fn eos_token_ids(config: &ModelConfig, patch: Option<&PatchVocabulary>) -> Result<Vec<TokenId>, Error> {
    let named = config.eos_token_ids.iter().copied().map(TokenId);
    let Some(patch) = patch.filter(|_| config.vocabulary_fingerprint.is_none()) else {
        return Ok(named.collect());
    };
    // The builder never removes a special token; a file made by others may.
    let removed = |id| {
        let problem =
            format!("has no token for {id}, which ends the model's output; build it without removing that");
        Error::setting("patch_vocabulary", problem)
    };
    named.map(|id| patch.model_id(id).ok_or_else(|| removed(id))).collect()
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use fused_vocabulary::{Mode, NToken, PatchContent, Removed, Segmentation};

    use super::*;

    /// Removes the base token 3.
    fn patch() -> PatchVocabulary {
        let parts = vec![TokenId(0), TokenId(1)];
        let content = PatchContent {
            base_tokenizer: fused_vocabulary::fingerprint(&tokenizer(), None).unwrap(),
            mode: Mode::Replace,
            segmentation: Segmentation::Greedy,
            model_ids: [Some(0), Some(1), Some(2), None, Some(4)].map(|id| id.map(TokenId)).into(),
            removed: vec![Removed { id: TokenId(3), parts: parts.clone(), text: String::new() }],
            n_tokens: vec![NToken { id: TokenId(3), base: parts, text: String::new() }],
        };
        PatchVocabulary::new(content).unwrap()
    }

    fn files() -> ModelFiles {
        ModelFiles::open(&fused_testkit::model_dir("demo-llama")).unwrap()
    }

    fn tokenizer() -> Vec<u8> {
        files().read("tokenizer.json").unwrap().unwrap().to_vec()
    }

    #[test]
    fn a_patch_without_the_models_end_of_sequence_is_refused_by_its_id() {
        let ends_with =
            |ids: &[u32]| ModelConfig { eos_token_ids: ids.into(), ..ModelConfig::parse(&files()).unwrap() };
        assert_eq!(eos_token_ids(&ends_with(&[0, 4]), Some(&patch())).unwrap(), [TokenId(0), TokenId(4)]);
        let error = eos_token_ids(&ends_with(&[0, 3]), Some(&patch())).unwrap_err();
        assert!(error.to_string().starts_with("patch_vocabulary has no token for 3,"), "{error}");
        // An adapted checkpoint names its own ids: 3 is the n-token there.
        let adapted = ModelConfig { vocabulary_fingerprint: Some(String::new()), ..ends_with(&[3]) };
        assert_eq!(eos_token_ids(&adapted, Some(&patch())).unwrap(), [TokenId(3)]);
        assert_eq!(eos_token_ids(&ends_with(&[3]), None).unwrap(), [TokenId(3)]);
    }
}
