#![allow(unsafe_code, reason = "a kernel's launch, whose demands are answered one by one")]

use fused_gpu::View;

use super::super::checked::{Checked, ELEMENT_BYTES};
use super::super::slots::{HeadShape, KvLayout, Slots};
use super::super::{Kernels, Result};
use super::BLOCK;

/// Elements of a head at most: a lane has two pairs.
const MAX_DIM: usize = 128;

/// What happens between the product that makes queries, keys and values, and attention: bias, norm and rotation
/// of each head; queries back in place, keys and values into their slot.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The heads; their dimension is even and at most 128.
    pub shape: HeadShape,
    /// The layer's place in a token of a slot.
    pub layout: KvLayout,
    /// Tokens.
    pub num_rows: usize,
    /// `[rows, (heads + 2 kv_heads) · dim]`: queries, keys, values, in the element's type.
    pub qkv: View<'a>,
    /// f32 `[(heads + 2 kv_heads) · dim]`.
    pub bias: Option<View<'a>>,
    /// f32 `[dim]`: the weights of each query head's RMSNorm.
    pub query_norm: Option<View<'a>>,
    /// f32 `[dim]`: the weights of each key head's RMSNorm.
    pub key_norm: Option<View<'a>>,
    /// f32 `[positions, dim]`, cosines, then sines: the rotation of queries and keys.
    pub angles: Option<View<'a>>,
    /// i32 `[rows]`; for the rotation, one beyond the angles counts as the last.
    pub positions: View<'a>,
    /// Where keys and values go.
    pub slots: Slots<'a>,
    /// Added to a head's variance.
    pub epsilon: f32,
}

/// As in `cuda/rows.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Params {
    qkv: u64,
    bias: u64,
    query_norm: u64,
    key_norm: u64,
    angles: u64,
    positions: u64,
    slots: u64,
    token_stride: u64,
    keys_offset: u64,
    num_heads: i32,
    num_kv_heads: i32,
    dim: i32,
    epsilon: f32,
    num_positions: i32,
}

impl Kernels {
    /// Finishes the heads of a batch.
    ///
    /// # Errors
    /// Shapes or buffers disagree; whatever the driver refuses.
    pub fn heads(&self, heads: &Heads<'_>) -> Result<()> {
        let checked = Checked { kernel: "heads" };
        let params = heads.params(checked)?;
        let num_pieces = heads.shape.num_all().div_ceil(BLOCK as usize / 32);
        let grid = (checked.grid_x(heads.num_rows)?, checked.grid_yz(num_pieces)?, 1);
        // SAFETY: `Params` is the kernel's struct. A block has some heads of a row of `qkv` and touches nothing
        // but these; angles are looked up after clamping the position; a warp has one head, whose `dim`
        // elements its lanes hold. Keys and values go to `position · token_stride + keys_offset` and `plane`
        // behind that, inside the token's bytes as checked, of the slots that whoever made them answers for. It
        // has no dynamic shared memory, and waits first of all.
        unsafe { self.gpu.launch_early(self.rows.heads.of(heads.shape.element), grid, BLOCK, 0, &params)? };
        Ok(())
    }
}

impl Heads<'_> {
    pub(super) fn params(&self, checked: Checked) -> Result<Params> {
        let (shape, rows) = (self.shape, self.num_rows);
        shape.check(checked)?;
        self.layout.check(checked, &shape)?;
        let dim = shape.head_dim;
        if dim > MAX_DIM {
            return checked.refuse(format!("a head of {dim} elements, more than {MAX_DIM}"));
        }
        let width = shape.num_all() * dim;
        let num_positions = match self.angles {
            Some(angles) => checked.num_rows("angles", angles, 4 * dim)?,
            None => 0,
        };
        Ok(Params {
            qkv: checked.matrix("qkv", self.qkv, rows, width, ELEMENT_BYTES)?,
            bias: checked.vector("bias", self.bias, width)?,
            query_norm: checked.vector("query_norm", self.query_norm, dim)?,
            key_norm: checked.vector("key_norm", self.key_norm, dim)?,
            angles: match self.angles {
                Some(angles) => checked.matrix("angles", angles, num_positions as usize, dim, 4)?,
                None => 0,
            },
            positions: checked.matrix("positions", self.positions, rows, 1, 4)?,
            slots: self.slots.address(checked, rows)?,
            token_stride: self.layout.token_stride,
            keys_offset: self.layout.keys_offset,
            num_heads: checked.count("num_heads", shape.num_heads)?,
            num_kv_heads: checked.count("num_kv_heads", shape.num_kv_heads)?,
            dim: checked.multiple("head_dim", dim, 2)?,
            epsilon: self.epsilon,
            num_positions,
        })
    }
}
