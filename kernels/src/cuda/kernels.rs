use fused_gpu::Gpu;

use super::Result;
use super::attention::AttentionKernels;
use super::image::{self, Origin};
use super::rows::RowKernels;
use super::sample::SampleKernel;

/// All kernels, loaded on one GPU.
#[derive(Debug)]
pub struct Kernels {
    pub(super) gpu: Gpu,
    pub(super) rows: RowKernels,
    pub(super) attention: AttentionKernels,
    pub(super) sample: SampleKernel,
    origin: Origin,
}

impl Kernels {
    /// Loads the kernels: those compiled with this program, where the GPU's architecture is among them, or from
    /// the cache of an earlier start, or compiled now, which takes some seconds ([`origin`](Self::origin)
    /// tells).
    ///
    /// # Errors
    /// The GPU refuses; where they must be compiled, NVRTC is not there or refuses.
    pub fn load(gpu: &Gpu) -> Result<Self> {
        let (modules, origin) = image::load(gpu)?;
        Ok(Self {
            gpu: gpu.clone(),
            rows: RowKernels::load(&modules.rows)?,
            attention: AttentionKernels::load(gpu, &modules.attention, modules.prefill_hopper.as_ref())?,
            sample: SampleKernel::load(&modules.sample)?,
            origin,
        })
    }

    /// Where the machine code came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The GPU they are loaded on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}
