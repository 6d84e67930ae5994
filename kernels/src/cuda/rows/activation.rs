#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Element, View};

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::{Kernels, Result};
use super::BLOCK;
use crate::Activation;

/// out\[row\] = f(gate + bias) · (up + bias), or f(x + bias) where there is no gate.
#[derive(Clone, Copy, Debug)]
pub struct Activate<'a> {
    /// f.
    pub activation: Activation,
    /// Whether a row of `x` holds its gate, then its up.
    pub is_gated: bool,
    /// The type of `x` and `out`.
    pub element: Element,
    /// Elements of a row of `out`; a multiple of 8.
    pub width: usize,
    /// Tokens.
    pub num_rows: usize,
    /// `[rows, width]`, or `[rows, 2 width]` with a gate.
    pub x: View<'a>,
    /// f32 `[width]`, or `[2 width]` with a gate.
    pub bias: Option<View<'a>>,
    /// `[rows, width]`.
    pub out: View<'a>,
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Params {
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) width: i32,
    pub(super) kind: i32,
    pub(super) is_gated: i32,
}

/// f's number there.
pub(super) fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

impl Kernels {
    /// Applies the function between a feed-forward block's two products.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn activate(&self, activate: &Activate<'_>) -> Result<()> {
        let checked = Checked { kernel: "activation" };
        let (rows, width) = (activate.num_rows, activate.width);
        let num_inputs = width.saturating_mul(if activate.is_gated { 2 } else { 1 });
        let params = Params {
            x: checked.matrix("x", activate.x, rows, num_inputs, ELEMENT_BYTES)?,
            bias: checked.vector("bias", activate.bias, num_inputs)?,
            out: checked.matrix("out", activate.out, rows, width, ELEMENT_BYTES)?,
            width: checked.multiple("width", width, 8)?,
            kind: kind(activate.activation),
            is_gated: i32::from(activate.is_gated),
        };
        let num_pieces = (width / 8).div_ceil(BLOCK as usize);
        let grid = (checked.grid_x(num_pieces.saturating_mul(rows))?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A thread has eight elements of a row and leaves where there
        // are none; rows begin at multiples of 16 bytes. It has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(self.rows.activation.of(activate.element), grid, BLOCK, 0, &params)? };
        Ok(())
    }
}
