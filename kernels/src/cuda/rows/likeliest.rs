#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::View;

use super::super::checked::Checked;
use super::super::{Kernels, Result};

/// Threads of a block, which has a row: as many as there can be, since few rows are all that is running.
const BLOCK: u32 = 1024;

/// tokens\[row\] = the index of the largest of logits\[row\], the lowest among equals.
#[derive(Clone, Copy, Debug)]
pub struct Likeliest<'a> {
    /// Logits of a row.
    pub vocabulary: usize,
    /// Sequences.
    pub num_rows: usize,
    /// f32 `[rows, vocabulary]`.
    pub logits: View<'a>,
    /// i32 `[rows]`; 0 where no logit is a number.
    pub tokens: View<'a>,
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    logits: u64,
    tokens: u64,
    vocabulary: i32,
}

impl Kernels {
    /// Samples greedily.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn likeliest(&self, likeliest: &Likeliest<'_>) -> Result<()> {
        let checked = Checked { kernel: "likeliest" };
        let rows = likeliest.num_rows;
        let params = Params {
            logits: checked.matrix("logits", likeliest.logits, rows, likeliest.vocabulary, 4)?,
            tokens: checked.matrix("tokens", likeliest.tokens, rows, 1, 4)?,
            vocabulary: checked.count("vocabulary", likeliest.vocabulary)?,
        };
        let grid = (checked.grid_x(rows)?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block has a row, reads its `vocabulary` logits one by one
        // and writes one token. It has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(&self.rows.likeliest, grid, BLOCK, 0, &params)? };
        Ok(())
    }
}
