#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Element, View};

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::{Kernels, Result};
use super::BLOCK;

/// residual\[row\] = embedding\[tokens\[row\]\] (+ learned\[positions\[row\]\]).
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// The embedding's type.
    pub element: Element,
    /// Elements of a row; a multiple of 8.
    pub width: usize,
    /// Tokens.
    pub num_rows: usize,
    /// `[vocabulary, width]`, in the element's type: as many rows as the view has.
    pub embedding: View<'a>,
    /// Learned positions, f32 `[positions, width]`: as many rows as the view has.
    pub learned: Option<View<'a>>,
    /// i32 `[rows]`; an id beyond the vocabulary counts as the last. A negative one, `!i`, is `drawn[i]`, which is written in
    /// its place.
    pub tokens: View<'a>,
    /// i32: tokens that the step before drew, as many as the view has; an index beyond them counts as the last.
    pub drawn: View<'a>,
    /// i32 `[rows]`; one beyond the learned ones counts as the last. Read only with `learned`.
    pub positions: View<'a>,
    /// f32 `[rows, width]`.
    pub residual: View<'a>,
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    embedding: u64,
    learned: u64,
    tokens: u64,
    drawn: u64,
    positions: u64,
    residual: u64,
    width: i32,
    num_tokens: i32,
    num_drawn: i32,
    num_positions: i32,
}

impl Kernels {
    /// Looks up the rows of a batch.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn embed(&self, embed: &Embed<'_>) -> Result<()> {
        let checked = Checked { kernel: "embed" };
        let (rows, width) = (embed.num_rows, embed.width);
        let num_positions = match embed.learned {
            Some(learned) => checked.num_rows("learned", learned, 4 * width)?,
            None => 0,
        };
        let num_tokens = checked.num_rows("embedding", embed.embedding, ELEMENT_BYTES * width)?;
        let num_drawn = checked.num_rows("drawn", embed.drawn, 4)?;
        let params = Params {
            embedding: checked.matrix(
                "embedding",
                embed.embedding,
                num_tokens as usize,
                width,
                ELEMENT_BYTES,
            )?,
            learned: match embed.learned {
                Some(learned) => checked.matrix("learned", learned, num_positions as usize, width, 4)?,
                None => 0,
            },
            tokens: checked.matrix("tokens", embed.tokens, rows, 1, 4)?,
            drawn: checked.matrix("drawn", embed.drawn, num_drawn as usize, 1, 4)?,
            positions: match embed.learned {
                Some(_) => checked.matrix("positions", embed.positions, rows, 1, 4)?,
                None => 0,
            },
            residual: checked.matrix("residual", embed.residual, rows, width, 4)?,
            width: checked.multiple("width", width, 8)?,
            num_tokens,
            num_drawn,
            num_positions,
        };
        let grid = (checked.grid_x(rows)?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block has a row and reads and writes `width` elements of
        // it in matrices with so many rows, each of whose rows begins at a multiple of 16 bytes; what it looks
        // up it clamps to the tables. It has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(self.rows.embed.of(embed.element), grid, BLOCK, 0, &params)? };
        Ok(())
    }
}
