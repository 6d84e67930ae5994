#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::{Output, Product};

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::{Kernels, Result};

/// Rows of a product that this kernel does.
pub const MAX_FEW_ROWS: usize = 4;
/// Outputs of a block.
const OUTPUTS: usize = 4;
/// Threads of a block at most.
const MAX_BLOCK: usize = 256;

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: u64,
    weight: u64,
    out: u64,
    num_inputs: i32,
    num_outputs: i32,
    kind: i32,
}

impl Kernels {
    /// Computes a product of one to [`MAX_FEW_ROWS`] rows, whose inputs are a multiple of 8.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn multiply_few(&self, product: &Product<'_>) -> Result<()> {
        let checked = Checked { kernel: "few" };
        let (shape, rows) = (product.shape, product.num_rows);
        let out_bytes = if shape.output == Output::Element { ELEMENT_BYTES } else { 4 };
        let params = Params {
            x: checked.matrix("x", product.x, rows, shape.num_inputs, ELEMENT_BYTES)?,
            weight: checked.matrix(
                "weight",
                product.weight,
                shape.num_outputs,
                shape.num_inputs,
                ELEMENT_BYTES,
            )?,
            out: checked.matrix("out", product.out, rows, shape.num_outputs, out_bytes)?,
            num_inputs: checked.multiple("num_inputs", shape.num_inputs, 8)?,
            num_outputs: checked.count("num_outputs", shape.num_outputs)?,
            kind: match shape.output {
                Output::Element => 0,
                Output::F32 => 1,
                Output::AddToF32 => 2,
            },
        };
        let kernels = self.rows.few.of(shape.element);
        let Some(kernel) = rows.checked_sub(1).and_then(|idx| kernels.get(idx)) else {
            return checked.refuse(format!("{rows} rows, not 1 to {MAX_FEW_ROWS}"));
        };
        let block = (shape.num_inputs / 8).next_multiple_of(32).min(MAX_BLOCK) as u32;
        let grid = (checked.grid_x(shape.num_outputs.div_ceil(OUTPUTS))?, 1, 1);
        // SAFETY: `Params` is the kernel's struct. A block reads four rows of the weight, the last one in place of those that
        // are not there, and all of x, in pieces of 16 bytes at multiples of that; and writes the outputs that there are. It
        // has at most eight warps, as its shared memory does, and no dynamic one.
        unsafe { self.gpu.launch(kernel, grid, block, 0, &params)? };
        Ok(())
    }
}
