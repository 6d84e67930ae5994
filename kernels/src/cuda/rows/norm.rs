#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Element, View};

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::{Kernels, Result};
use super::BLOCK;

/// residual\[row\] += added; out\[i\] = norm(residual\[rows\[i\]\]) · weight (+ bias): RMSNorm, or LayerNorm
/// where there is a bias.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// The type of `out`.
    pub element: Element,
    /// Elements of a row; a multiple of 4.
    pub width: usize,
    /// Rows of `out`.
    pub num_rows: usize,
    /// f32 `[*, width]`; changed only where something is added.
    pub residual: View<'a>,
    /// f32 `[width]`: the bias of the product that was added to the residual before. It is added to the rows
    /// named here only, so with `rows` it must not be needed in the others.
    pub added: Option<View<'a>>,
    /// f32 `[width]`.
    pub weight: View<'a>,
    /// f32 `[width]`.
    pub bias: Option<View<'a>>,
    /// i32 `[num_rows]`, no index twice: which rows of the residual; `None`: the first.
    pub rows: Option<View<'a>>,
    /// `[num_rows, width]`, in the element's type.
    pub out: View<'a>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    residual: u64,
    added: u64,
    weight: u64,
    bias: u64,
    rows: u64,
    out: u64,
    width: i32,
    epsilon: f32,
    num_residual_rows: i32,
}

impl Kernels {
    /// Norms the rows of a batch, or some of them.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn norm(&self, norm: &Norm<'_>) -> Result<()> {
        let checked = Checked { kernel: "norm" };
        let (rows, width) = (norm.num_rows, norm.width);
        let num_residual_rows = checked.num_rows("residual", norm.residual, 4 * width)?;
        if norm.rows.is_none() && rows > num_residual_rows as usize {
            return checked.refuse(format!("{rows} rows of a residual of {num_residual_rows}"));
        }
        let params = Params {
            residual: checked.matrix("residual", norm.residual, num_residual_rows as usize, width, 4)?,
            added: checked.vector("added", norm.added, width)?,
            weight: checked.vector("weight", Some(norm.weight), width)?,
            bias: checked.vector("bias", norm.bias, width)?,
            rows: norm.rows.map_or(Ok(0), |indices| checked.matrix("rows", indices, rows, 1, 4))?,
            out: checked.matrix("out", norm.out, rows, width, ELEMENT_BYTES)?,
            width: checked.multiple("width", width, 4)?,
            epsilon: norm.epsilon,
            num_residual_rows,
        };
        let grid = (checked.grid_x(rows)?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block has a row and reads and writes `width` elements of
        // it, of the residual after clamping the row's index, four at a time: every row begins at a multiple of
        // 16 bytes (out's of 8). It has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(self.rows.norm.of(norm.element), grid, BLOCK, 0, &params)? };
        Ok(())
    }
}
