//! The kernels between the matrix products, a token a row, and the product of few rows (`cuda/rows.cu`).

mod activation;
mod embed;
mod few;
mod heads;
mod norm;

use fused_gpu::{Kernel, Module};

pub use activation::Activate;
pub use embed::Embed;
pub use few::{Few, FewInput, FewOutput, MAX_FEW_ROWS, MIN_FEW_OUTPUTS};
pub use heads::Heads;
pub use norm::Norm;

use super::Result;
use super::checked::ByElement;

/// Threads of a block that has a row, or a piece of one.
const BLOCK: u32 = 256;

/// The loaded kernels.
#[derive(Debug)]
pub(super) struct RowKernels {
    embed: ByElement<Kernel>,
    norm: ByElement<Kernel>,
    heads: ByElement<Kernel>,
    activation: ByElement<Kernel>,
    /// Of one, two and four rows.
    few: ByElement<[Kernel; 3]>,
    few_normed: ByElement<[Kernel; 3]>,
}

impl RowKernels {
    pub(super) fn load(module: &Module) -> Result<Self> {
        let load = |name: &str| ByElement::load(|element| module.kernel(&format!("{name}_{element}"), 0));
        let few = |name: &str| {
            ByElement::load(|element| {
                let load = |num_rows| module.kernel(&format!("{name}_{element}_{num_rows}"), 0);
                Ok::<_, fused_gpu::Error>([load(1)?, load(2)?, load(4)?])
            })
        };
        Ok(Self {
            embed: load("embed")?,
            norm: load("norm")?,
            heads: load("heads")?,
            activation: load("activation")?,
            few: few("few")?,
            few_normed: few("few_normed")?,
        })
    }
}
