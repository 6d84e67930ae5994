use anyhow::{Context, bail};
use fused_checkpoint::ModelFiles;
use fused_engine::{Config, Engine};
use fused_lifecycle::Lifecycle;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;

/// What the engine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    /// Which of the GPUs that the driver shows.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "there is no such backend in this build")
    )]
    Cuda(usize),
}

impl Device {
    /// Reads the setting; `auto` is the first GPU that can be used, or else the CPU.
    pub(crate) fn chosen(setting: &str) -> anyhow::Result<Self> {
        match setting {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::first()),
            cuda if cuda == "cuda" || cuda.starts_with("cuda:") => Self::gpu(cuda),
            other => bail!("setting device: `{other}` is none of auto, cpu, cuda:N"),
        }
    }

    /// Tokens of one step by default: as many as keep the device busy without a step taking long.
    pub(super) fn token_budget(self) -> usize {
        match self {
            Self::Cpu => Config::default().token_budget,
            Self::Cuda(_) => 2048,
        }
    }

    /// Sequences that run at once by default: on a GPU a step of so many takes hardly longer than one of a few.
    pub(super) fn max_num_sequences(self) -> usize {
        match self {
            Self::Cpu => Config::default().max_num_sequences,
            Self::Cuda(_) => 256,
        }
    }

    /// Tokens that each of those must find room for in KV memory, or there are fewer: with less, one after the other would
    /// give way. The host's memory is made for as many as there are.
    pub(super) fn min_tokens_a_sequence(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Cuda(_) => 512,
        }
    }

    /// Starts the engine there.
    pub(crate) fn start(
        self,
        config: Config,
        files: &ModelFiles,
        patch: Option<PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        lifecycle: &Lifecycle,
    ) -> anyhow::Result<Engine> {
        match self {
            Self::Cpu => Ok(Engine::start_cpu(config, files, patch, embeddings, lifecycle)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => Engine::start_cuda(ordinal, config, files, patch, embeddings, lifecycle)
                .with_context(|| format!("setting device: cuda:{ordinal}")),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(ordinal) => Err(anyhow::anyhow!("this binary was built without the CUDA backend"))
                .with_context(|| format!("setting device: cuda:{ordinal}")),
        }
    }

    #[cfg(feature = "cuda")]
    fn first() -> Self {
        if Engine::has_cuda() { Self::Cuda(0) } else { Self::Cpu }
    }

    #[cfg(not(feature = "cuda"))]
    fn first() -> Self {
        Self::Cpu
    }

    #[cfg(feature = "cuda")]
    fn gpu(setting: &str) -> anyhow::Result<Self> {
        let number = setting.strip_prefix("cuda").and_then(|rest| rest.strip_prefix(':')).unwrap_or("0");
        let ordinal = number.parse();
        Ok(Self::Cuda(
            ordinal.with_context(|| format!("setting device: `{setting}` is none of auto, cpu, cuda:N"))?,
        ))
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(setting: &str) -> anyhow::Result<Self> {
        bail!(
            "setting device: `{setting}`: this binary was built without the CUDA backend; use `cpu` or `auto`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_or_found() {
        assert_eq!(Device::chosen("cpu").unwrap(), Device::Cpu);
        assert!(Device::chosen("auto").is_ok());
        assert!(
            Device::chosen("tpu").unwrap_err().to_string().contains("`tpu` is none of auto, cpu, cuda:N")
        );
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_has_a_number() {
        assert_eq!(Device::chosen("cuda").unwrap(), Device::Cuda(0));
        assert_eq!(Device::chosen("cuda:3").unwrap(), Device::Cuda(3));
        assert!(Device::chosen("cuda:x").is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_the_backend_says_so() {
        assert!(Device::chosen("cuda:0").unwrap_err().to_string().contains("without the CUDA backend"));
    }
}
