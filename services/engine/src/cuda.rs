//! An engine on an NVIDIA GPU.

use fused_checkpoint::{Checkpoint, ModelConfig, ModelFiles};
use fused_gpu::Gpu;
use fused_lifecycle::Lifecycle;
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;

use crate::config::{KvNeeds, KvPlan, PageRules};
use crate::cpu::{Adapted, Loaded};
use crate::runner::cuda::{CudaRunner, StepLimits};
use crate::{Config, Engine, Error, WeightSource, budget};

/// Pages by default: the driver's granularity, which costs no more calls than smaller ones would.
const PAGE_BYTES: usize = 2 << 20;
/// Pages of the pool: 32 TiB of them.
const MAX_PAGES: usize = 16 << 20;

impl Engine {
    /// Loads a model onto GPU `ordinal`, adapted to `patch` where there is one, and starts an engine for it. As
    /// [`start_cpu`](Self::start_cpu); keys and values take what is free of the GPU's memory, up to
    /// `gpu_memory_utilization` of all of it.
    ///
    /// # Errors
    /// Those of `start_cpu`; there is no such GPU, or no driver.
    pub fn start_cuda(
        ordinal: usize,
        config: Config,
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        config.check()?;
        let gpu = Gpu::open(ordinal)?;
        let device = i32::try_from(ordinal).map_err(|_| Error::setting("device", "is no GPU's number"))?;
        let adapted = Adapted::new(files, patch, config.max_model_len)?;
        let (model_config, patch) = (&adapted.config, adapted.patch.as_ref());
        let limits = StepLimits {
            max_rows: max_rows(&config, model_config),
            max_sequences: config.max_num_sequences,
            max_logprobs: config.max_logprobs as usize,
        };
        let runner = match config.weights {
            WeightSource::Checkpoint => {
                let checkpoint = Checkpoint::open(files)?;
                CudaRunner::load(&gpu, &checkpoint, model_config, (patch, embeddings), limits)?
            }
            WeightSource::Random if patch.is_some() => {
                let problem = "is dummy, and random weights are adapted to no vocabulary: patch_vocabulary must be none";
                return Err(Error::setting("load_format", problem));
            }
            WeightSource::Random => CudaRunner::dummy(&gpu, model_config, 1, limits)?,
        };
        let granularity = CudaMemory::granularity(device)?;
        let needs = KvNeeds {
            layout: runner.kv_layout(),
            model_max_len: runner.shape().max_positions,
            available_bytes: Some(available_bytes(&gpu, config.gpu_memory_utilization)?),
            pages: PageRules {
                granularity,
                default_bytes: Some(PAGE_BYTES.next_multiple_of(granularity)),
                max_pages: MAX_PAGES,
                divisor: 1,
            },
        };
        let (name, vocab_size) = (runner.device(), runner.shape().vocab_size);
        let loaded = Loaded { adapted, runner, needs, device: name, vocab_size };
        let memory = |plan: &KvPlan| Ok(CudaMemory::new(device, plan.page_bytes, plan.size.pool_bytes)?);
        Self::start_loaded(config, loaded, memory, lifecycle)
    }

    /// Whether there is a GPU that an engine can be started on. What else it needs (cuBLASLt)
    /// is found at the start, with an error that names it.
    #[must_use]
    pub fn has_cuda() -> bool {
        Gpu::open(0).is_ok()
    }
}

/// Rows of the largest step.
fn max_rows(config: &Config, model: &ModelConfig) -> usize {
    let max_model_len = config.max_model_len.unwrap_or(usize::MAX).min(model.max_positions);
    let num_sequences = config.max_num_sequences;
    let budget = match config.target_inter_token_latency {
        // As large a one as may be found then.
        Some(_) => config.token_budget.max(budget::largest(max_model_len, num_sequences)),
        None => config.token_budget,
    };
    let whole_prompts =
        if config.policy.computes_whole_prompts() { max_model_len + num_sequences } else { num_sequences };
    budget.max(whole_prompts)
}

/// What is free, less what is to be left alone.
fn available_bytes(gpu: &Gpu, utilization: f64) -> Result<u64, Error> {
    let left_alone = gpu.total_bytes() as f64 * (1.0 - utilization);
    let available = gpu.free_bytes()? as f64 - left_alone;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not below zero, and a size of memory"
    )]
    Ok(available.max(0.0) as u64)
}
