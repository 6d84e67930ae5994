//! Where keys and values are.
#![allow(unsafe_code, reason = "what no check can see, the caller answers for")]

use fused_gpu::{Element, View};

use super::Result;
use super::checked::{Checked, ELEMENT_BYTES};

/// The heads of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// The type of queries, keys and values.
    pub element: Element,
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

/// One layer's place in a token of a slot, in bytes: its keys `[kv head][dim]`, and right behind them its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// From a token to the next.
    pub token_stride: u64,
    /// From a token's start to the layer's keys.
    pub keys_offset: u64,
}

/// For each row of a batch the device address of its sequence's slot, 0 where the row only pads the batch: u64
/// `[rows]`.
///
/// The kernels read and write keys and values there, and no check can see whether they may.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    view: View<'a>,
}

impl<'a> Slots<'a> {
    /// What stands, or will stand when the launch runs, in a view.
    ///
    /// # Safety
    /// Whenever a launch with it runs, a recorded one included, every address in the view but 0 is that of a range of KV
    /// memory, at a multiple of 16, that stays pinned until the launch is done: for reading up to and with the row's position
    /// (attention), and for writing at that (`heads`). No two rows of a batch write to the same bytes.
    #[must_use]
    pub unsafe fn vouched_for(view: View<'a>) -> Self {
        Self { view }
    }

    pub(super) fn address(&self, checked: Checked, num_rows: usize) -> Result<u64> {
        checked.matrix("slots", self.view, num_rows, 1, 8)
    }
}

impl HeadShape {
    /// Heads of a row of queries, keys and values.
    #[must_use]
    pub fn num_all(&self) -> usize {
        self.num_heads + 2 * self.num_kv_heads
    }

    /// Query heads that share a key and value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads.max(1)
    }

    pub(super) fn check(&self, checked: Checked) -> Result<()> {
        checked.count("num_kv_heads", self.num_kv_heads)?;
        checked.multiple("num_heads", self.num_heads, self.num_kv_heads)?;
        // Bounds far beyond any model, so that no product of them can overflow.
        if self.num_heads > 4096 || self.head_dim > 4096 {
            return checked.refuse(format!("{} heads of {} elements", self.num_heads, self.head_dim));
        }
        Ok(())
    }
}

impl KvLayout {
    pub(super) fn check(&self, checked: Checked, shape: &HeadShape) -> Result<()> {
        let bytes = (2 * shape.num_kv_heads * shape.head_dim * ELEMENT_BYTES) as u64;
        let is_inside = self.keys_offset.checked_add(bytes).is_some_and(|end| end <= self.token_stride);
        if !is_inside || !self.token_stride.is_multiple_of(16) || !self.keys_offset.is_multiple_of(16) {
            return checked.refuse(format!(
                "a layer's {bytes} bytes of keys and values at {} of tokens of {} bytes, all multiples of 16",
                self.keys_offset, self.token_stride
            ));
        }
        Ok(())
    }
}
