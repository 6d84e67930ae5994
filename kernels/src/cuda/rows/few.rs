#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Element, Output, Product, View};

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::{Kernels, Result};
use super::heads::Heads;
use super::{activation, heads};
use crate::Activation;

/// Rows of a product that this kernel does.
pub const MAX_FEW_ROWS: usize = 4;
/// Outputs of a product that this kernel does, at least: those of a block.
pub const MIN_FEW_OUTPUTS: usize = OUTPUTS;
/// Outputs that a block has side by side: `FEW_RUN` in `cuda/rows.cu`.
const RUN: usize = 4;
/// Outputs of a block: two runs.
const OUTPUTS: usize = 2 * RUN;
/// Threads of a block at most: eight warps.
const MAX_BLOCK: usize = 256;

/// A product of few rows, and what stands before and behind it in a layer, in one launch.
#[derive(Clone, Copy, Debug)]
pub struct Few<'a> {
    /// The type of the weight, and of whatever is not f32.
    pub element: Element,
    /// Tokens: one to [`MAX_FEW_ROWS`].
    pub num_rows: usize,
    /// A multiple of 8.
    pub num_inputs: usize,
    /// At least [`MIN_FEW_OUTPUTS`].
    pub num_outputs: usize,
    /// What is multiplied.
    pub input: FewInput<'a>,
    /// `[outputs, inputs]`.
    pub weight: View<'a>,
    /// What becomes of the product.
    pub output: FewOutput<'a>,
}

/// Rows that are multiplied.
#[derive(Clone, Copy, Debug)]
pub enum FewInput<'a> {
    /// `[rows, inputs]`.
    Plain(View<'a>),
    /// The RMSNorm of rows of the residual stream, which is not rounded before it is multiplied.
    RmsNorm {
        /// f32 `[rows, inputs]`.
        residual: View<'a>,
        /// f32 `[inputs]`.
        weight: View<'a>,
        /// Added to the variance.
        epsilon: f32,
    },
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug)]
pub enum FewOutput<'a> {
    /// It is kept in, or added to, `[rows, outputs]`.
    Kept(Output, View<'a>),
    /// What [`Activate`](super::Activate) makes of it is kept; the product itself is not rounded before.
    Activated {
        /// f.
        activation: Activation,
        /// Whether the outputs are a gate, then its up.
        is_gated: bool,
        /// f32 `[outputs]`.
        bias: Option<View<'a>>,
        /// `[rows, width]`, where width, a multiple of 8, is the number of outputs, or half of it with a gate.
        out: View<'a>,
    },
    /// The outputs are queries, keys and values of so many rows, which are finished; of `qkv` only the queries are
    /// written. There are no norms of heads, and their dimension is a multiple of 8.
    Heads(Heads<'a>),
}

impl<'a> From<&Product<'a>> for Few<'a> {
    fn from(product: &Product<'a>) -> Self {
        let shape = product.shape;
        Self {
            element: shape.element,
            num_rows: product.num_rows,
            num_inputs: shape.num_inputs,
            num_outputs: shape.num_outputs,
            input: FewInput::Plain(product.x),
            weight: product.weight,
            output: FewOutput::Kept(shape.output, product.out),
        }
    }
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Params {
    x: u64,
    norm: u64,
    weight: u64,
    out: u64,
    num_rows: i32,
    num_inputs: i32,
    num_outputs: i32,
    kind: i32,
    num_blocks: i32,
    span: i32,
    distance: i32,
    epsilon: f32,
    activation: activation::Params,
    heads: heads::Params,
}

impl Kernels {
    /// Computes a product of few rows.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn multiply_few(&self, few: &Few<'_>) -> Result<()> {
        let checked = Checked { kernel: "few" };
        let params = few.params(checked)?;
        let kernels = match few.input {
            FewInput::Plain(_) => &self.rows.few,
            FewInput::RmsNorm { .. } => &self.rows.few_normed,
        };
        // Three rows are done as four, of which the last is the third again, and is not written.
        let [one, two, four] = kernels.of(few.element);
        let kernel = match few.num_rows {
            1 => one,
            2 => two,
            _ => four,
        };
        // As many pieces of eight inputs for every thread, as far as that goes.
        let num_pieces = few.num_inputs / 8;
        let block = num_pieces.div_ceil(num_pieces.div_ceil(MAX_BLOCK)).next_multiple_of(32) as u32;
        let grid = (checked.grid_x(few.runs().grid)?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block reads the rows of the weight for two runs of outputs, which
        // lie inside it as a test of `runs` shows, and all of x, in pieces of 16 bytes at multiples of that. It writes its
        // outputs, or what is made of them, in `out` or where `heads` may write; of angles it reads rows after clamping the
        // position. It has at most eight warps, as its shared memory does, and no dynamic one. Before it waits it reads
        // weights, biases, angles, and the rows' positions, which come with the batch.
        unsafe { self.gpu.launch_early(kernel, grid, block, 0, &params)? };
        Ok(())
    }
}

/// Which outputs the blocks have: two runs each, the second one `distance` behind the first. The first runs of
/// `num_blocks` blocks lie side by side; those of the next so many begin `span` behind them.
#[derive(Clone, Copy, Debug)]
struct Runs {
    grid: usize,
    num_blocks: usize,
    span: usize,
    distance: usize,
}

impl Runs {
    /// All outputs side by side. The last block's, where it has less, are also those of the block before.
    fn plain(num_outputs: usize) -> Self {
        Self { grid: num_outputs.div_ceil(OUTPUTS), num_blocks: 1, span: OUTPUTS, distance: RUN }
    }

    /// A gate and its up.
    fn gated(width: usize) -> Self {
        Self { grid: width / RUN, num_blocks: width / RUN, span: width, distance: width }
    }

    /// Both halves of a head, which are turned together.
    fn heads(num_heads: usize, head_dim: usize) -> Self {
        Self {
            grid: num_heads * head_dim / OUTPUTS,
            num_blocks: head_dim / OUTPUTS,
            span: head_dim,
            distance: head_dim / 2,
        }
    }
}

impl Few<'_> {
    fn runs(&self) -> Runs {
        match self.output {
            FewOutput::Activated { is_gated: true, .. } => Runs::gated(self.num_outputs / 2),
            FewOutput::Heads(Heads { shape, .. }) => Runs::heads(shape.num_all(), shape.head_dim),
            FewOutput::Kept(..) | FewOutput::Activated { .. } => Runs::plain(self.num_outputs),
        }
    }

    fn params(&self, checked: Checked) -> Result<Params> {
        let &Self { num_rows, num_inputs, num_outputs, .. } = self;
        if !(1..=MAX_FEW_ROWS).contains(&num_rows) || num_outputs < MIN_FEW_OUTPUTS {
            return checked.refuse(format!(
                "{num_rows} rows, not 1 to {MAX_FEW_ROWS}, of {num_outputs} outputs, {MIN_FEW_OUTPUTS} or more"
            ));
        }
        let mut params = Params {
            weight: checked.matrix("weight", self.weight, num_outputs, num_inputs, ELEMENT_BYTES)?,
            num_rows: checked.count("num_rows", num_rows)?,
            num_inputs: checked.multiple("num_inputs", num_inputs, 8)?,
            num_outputs: checked.count("num_outputs", num_outputs)?,
            ..Params::default()
        };
        match self.input {
            FewInput::Plain(x) => params.x = checked.matrix("x", x, num_rows, num_inputs, ELEMENT_BYTES)?,
            FewInput::RmsNorm { residual, weight, epsilon } => {
                params.x = checked.matrix("residual", residual, num_rows, num_inputs, 4)?;
                params.norm = checked.vector("norm", Some(weight), num_inputs)?;
                params.epsilon = epsilon;
            }
        }
        match self.output {
            FewOutput::Kept(output, out) => {
                let (kind, out_bytes) = match output {
                    Output::Element => (0, ELEMENT_BYTES),
                    Output::F32 => (1, 4),
                    Output::AddToF32 => (2, 4),
                };
                params.kind = kind;
                params.out = checked.matrix("out", out, num_rows, num_outputs, out_bytes)?;
            }
            FewOutput::Activated { activation, is_gated, bias, out } => {
                let width = if is_gated { num_outputs / 2 } else { num_outputs };
                checked.multiple("num_outputs", num_outputs, if is_gated { 16 } else { 8 })?;
                params.kind = 3;
                params.activation = activation::Params {
                    bias: checked.vector("bias", bias, num_outputs)?,
                    out: checked.matrix("out", out, num_rows, width, ELEMENT_BYTES)?,
                    width: checked.count("width", width)?,
                    kind: activation::kind(activation),
                    is_gated: i32::from(is_gated),
                    ..activation::Params::default()
                };
            }
            FewOutput::Heads(heads) => {
                params.kind = 4;
                params.heads = heads.params(checked)?;
                let (shape, dim) = (heads.shape, heads.shape.head_dim);
                let is_product = heads.num_rows == num_rows && shape.num_all() * dim == num_outputs;
                if !is_product || shape.element != self.element || !dim.is_multiple_of(OUTPUTS) {
                    return checked.refuse(format!("{num_rows} rows of {num_outputs} outputs as {shape:?}"));
                }
                if heads.query_norm.is_some() || heads.key_norm.is_some() {
                    return checked.refuse("norms of heads".to_owned());
                }
            }
        }
        let runs = self.runs();
        params.num_blocks = checked.count("num_blocks", runs.num_blocks)?;
        params.span = checked.count("span", runs.span)?;
        params.distance = checked.count("distance", runs.distance)?;
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the blocks have, as the kernel computes it: every output once, and no row that the weight has not.
    #[track_caller]
    fn check(runs: Runs, num_outputs: usize) {
        let mut num_times = vec![0; num_outputs];
        for block in 0..runs.grid {
            let begin = block / runs.num_blocks * runs.span + block % runs.num_blocks * RUN;
            let first = begin.min(num_outputs - runs.distance - RUN);
            for output in (first..first + RUN).chain(first + runs.distance..first + runs.distance + RUN) {
                num_times[output] += usize::from(output >= begin);
            }
        }
        assert!(num_times.iter().all(|&num| num == 1), "{runs:?} of {num_outputs}: {num_times:?}");
    }

    #[test]
    fn every_output_is_some_blocks() {
        for num_outputs in (8..40).chain([768, 1023, 4096, 50_257, 128_256]) {
            check(Runs::plain(num_outputs), num_outputs);
        }
        for width in (8..80).step_by(8).chain([8192, 14_336]) {
            check(Runs::gated(width), 2 * width);
        }
        for (num_heads, head_dim) in [(3, 8), (1, 32), (5, 96), (48, 64), (48, 128)] {
            check(Runs::heads(num_heads, head_dim), num_heads * head_dim);
        }
    }
}
