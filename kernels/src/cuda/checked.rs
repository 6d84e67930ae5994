//! What a launcher asks of its arguments.

use fused_gpu::{Element, View};

use super::{Error, Result};

/// Blocks of a launch at most, in its second and third direction.
const MAX_GRID_YZ: usize = 65_535;
/// Kernels count with i32.
const MAX_COUNT: usize = i32::MAX as usize;

/// The checks of one launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    pub(super) kernel: &'static str,
}

impl Checked {
    /// The address of a matrix with at least so many rows of so many columns of so many bytes, at a multiple of 16.
    pub(super) fn matrix(
        self,
        name: &str,
        view: View<'_>,
        num_rows: usize,
        num_cols: usize,
        element_bytes: usize,
    ) -> Result<u64> {
        let bytes = num_rows.checked_mul(num_cols).and_then(|num| num.checked_mul(element_bytes));
        let is_long_enough = bytes.is_some_and(|bytes| view.len() >= bytes);
        // Wide loads, and not a byte more than a kernel needs where it has but 4 of them.
        let alignment = if num_cols == 1 { element_bytes as u64 } else { 16 };
        if !is_long_enough || !view.address().is_multiple_of(alignment) {
            return self.refuse(format!(
                "{name} needs {num_rows} rows of {num_cols} times {element_bytes} bytes at a multiple of \
                 {alignment}, and has \
                 {} bytes at {:#x}",
                view.len(),
                view.address()
            ));
        }
        Ok(view.address())
    }

    /// [`matrix`](Self::matrix) of a thing that may not be there: 0 then.
    pub(super) fn vector(self, name: &str, view: Option<View<'_>>, len: usize) -> Result<u64> {
        view.map_or(Ok(0), |view| self.matrix(name, view, 1, len, 4))
    }

    /// Whole rows of so many bytes: how many a table has, at least one.
    pub(super) fn num_rows(self, name: &str, view: View<'_>, row_bytes: usize) -> Result<i32> {
        let num_rows = view.len() / row_bytes.max(1);
        if num_rows == 0 {
            return self.refuse(format!("{name} has {} bytes, less than a row of {row_bytes}", view.len()));
        }
        // More than an i32 can index are never asked for.
        Ok(num_rows.min(MAX_COUNT) as i32)
    }

    /// A number that kernels count with.
    pub(super) fn count(self, name: &str, count: usize) -> Result<i32> {
        match i32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => self.refuse(format!("{name} is {count}")),
        }
    }

    /// A multiple of something, not 0.
    pub(super) fn multiple(self, name: &str, count: usize, of: usize) -> Result<i32> {
        if !count.is_multiple_of(of) {
            return self.refuse(format!("{name} is {count}, and no multiple of {of}"));
        }
        self.count(name, count)
    }

    /// Blocks in the first direction of a launch.
    pub(super) fn grid_x(self, num_blocks: usize) -> Result<u32> {
        self.count("the number of blocks", num_blocks).map(|num_blocks| num_blocks as u32)
    }

    /// Blocks in another direction of a launch.
    pub(super) fn grid_yz(self, num_blocks: usize) -> Result<u32> {
        if num_blocks > MAX_GRID_YZ {
            return self
                .refuse(format!("{num_blocks} blocks in one direction, of which {MAX_GRID_YZ} can be"));
        }
        self.grid_x(num_blocks)
    }

    pub(super) fn refuse<T>(self, reason: String) -> Result<T> {
        Err(Error::Argument { kernel: self.kernel, reason })
    }
}

/// Bytes of an element.
pub(super) const ELEMENT_BYTES: usize = 2;

/// One thing for each element type.
#[derive(Debug)]
pub(super) struct ByElement<T> {
    pub(super) bf16: T,
    pub(super) f16: T,
}

impl<T> ByElement<T> {
    pub(super) fn load<E>(mut load: impl FnMut(&str) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { bf16: load("bf16")?, f16: load("f16")? })
    }

    pub(super) fn of(&self, element: Element) -> &T {
        match element {
            Element::Bf16 => &self.bf16,
            Element::F16 => &self.f16,
        }
    }
}
