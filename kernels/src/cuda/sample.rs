#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Kernel, Module, View};

use super::checked::Checked;
use super::{Kernels, Result};
use crate::RowSampling;

/// Threads of a block, which has a row.
const BLOCK: u32 = 1024;
/// How many of the likeliest tokens a row can be told: half of those that a block sorts.
pub const MAX_TOP: usize = 1024;
/// Ids have 20 bits, and the weights of so many tokens a sum of 64: of one more it would be 0.
const MAX_VOCABULARY: usize = (1 << 20) - 1;

/// Draws a token from each row of logits, and says how likely tokens are (`crate::sample` defines it).
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Logits of a row.
    pub vocabulary: usize,
    /// Rows.
    pub num_rows: usize,
    /// f32 `[rows, vocabulary]`; penalties and biases change them, and log-probabilities change them back.
    pub logits: View<'a>,
    /// What each row is sampled with.
    pub rows: SampledRows<'a>,
    /// i32 `[batch rows]`: the token of each row of the batch; read where a row [`FOLLOWS`](RowSampling::FOLLOWS).
    pub last_tokens: View<'a>,
    /// i32 `[rows]`: the tokens drawn, or given.
    pub tokens: View<'a>,
    /// `[rows, 1 + 2 · max_top]` words, written where a row [wants them](RowSampling::WANTS_LOGPROBS): the f32
    /// log-probability of its token; then for each of the `num_top` likeliest in descending order (no more than `max_top`,
    /// and than there are) its id, u32, and its log-probability, f32.
    pub logprobs: View<'a>,
    /// At most [`MAX_TOP`].
    pub max_top: usize,
}

/// For each row a [`RowSampling`]: `[rows]`.
///
/// The kernel reads the lists whose addresses stand there, and writes where they say `untouched`, and no check can see
/// whether it may.
#[derive(Clone, Copy, Debug)]
pub struct SampledRows<'a> {
    view: View<'a>,
}

impl<'a> SampledRows<'a> {
    /// What stands, or will stand when the launch runs, in a view.
    ///
    /// # Safety
    /// Whenever a launch with it runs, a recorded one included, each list of each row in the view is allocated device memory
    /// of at least so many entries, at a multiple of 4, that nobody else reads or writes until the launch is done.
    #[must_use]
    pub unsafe fn vouched_for(view: View<'a>) -> Self {
        Self { view }
    }
}

/// As in `cuda/sample.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    logits: u64,
    rows: u64,
    last_tokens: u64,
    tokens: u64,
    logprobs: u64,
    vocabulary: i32,
    num_last_tokens: i32,
    max_top: i32,
}

/// The loaded kernel.
#[derive(Debug)]
pub(super) struct SampleKernel(Kernel);

impl SampleKernel {
    pub(super) fn load(module: &Module) -> Result<Self> {
        Ok(Self(module.kernel("sample", 0)?))
    }
}

impl Kernels {
    /// Samples from the rows of a batch. Every parameter but those of `rows` is fixed: a recorded launch does whatever
    /// stands there when it runs.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn sample(&self, sample: &Sample<'_>) -> Result<()> {
        let checked = Checked { kernel: "sample" };
        let (rows, vocabulary) = (sample.num_rows, sample.vocabulary);
        if vocabulary > MAX_VOCABULARY || sample.max_top > MAX_TOP {
            return checked.refuse(format!(
                "a vocabulary of {vocabulary} and {} likeliest tokens, where there can be {MAX_VOCABULARY} and {MAX_TOP}",
                sample.max_top
            ));
        }
        let params = Params {
            logits: checked.matrix("logits", sample.logits, rows, vocabulary, 4)?,
            rows: checked.matrix("rows", sample.rows.view, rows, size_of::<RowSampling>() / 8, 8)?,
            last_tokens: sample.last_tokens.address(),
            tokens: checked.matrix("tokens", sample.tokens, rows, 1, 4)?,
            logprobs: checked.matrix("logprobs", sample.logprobs, rows, 1 + 2 * sample.max_top, 4)?,
            vocabulary: checked.count("vocabulary", vocabulary)?,
            num_last_tokens: checked.num_rows("last_tokens", sample.last_tokens, 4)?,
            max_top: sample.max_top as i32,
        };
        checked.matrix("last_tokens", sample.last_tokens, params.num_last_tokens as usize, 1, 4)?;
        let grid = (checked.grid_x(rows)?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block has a row: its logits, of which it reads the pieces of 16 bytes at
        // multiples of that four at a time and the others one by one; its `RowSampling`, whose lists its maker answers for; the
        // last token of a row of the batch, which it clamps to those that there are; its token; and its words of
        // log-probabilities, of which it writes one and twice `max_top` at most. Tokens in lists are compared with the
        // vocabulary before they index. It has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(&self.sample.0, grid, BLOCK, 0, &params)? };
        Ok(())
    }
}
