use cudarc::cublaslt::sys::cudaDataType_t;

use crate::gpu::Context;
use crate::{Error, Result, View};

/// Where a view of a product begins: at a multiple of so many bytes.
pub(super) const ALIGNMENT: usize = 16;

/// The type of what is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Brain float: the upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// What becomes of the sums, which are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// They are rounded to the element's type.
    Element,
    /// They are written as they are.
    F32,
    /// They are added to the f32 that are there.
    AddToF32,
}

/// A kind of product; all matrices are row-major and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Columns of x and of the weight.
    pub num_inputs: usize,
    /// Rows of the weight, columns of out.
    pub num_outputs: usize,
    /// The type of x and the weight.
    pub element: Element,
    /// The type of out.
    pub output: Output,
}

/// out`[rows, outputs]` = x`[rows, inputs]` · weight`[outputs, inputs]`ᵀ.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Which kind.
    pub shape: Shape,
    /// Rows of x and out.
    pub num_rows: usize,
    /// The left side; may be longer than its rows.
    pub x: View<'a>,
    /// The right side.
    pub weight: View<'a>,
    /// Where the result goes; may be longer than its rows. Overlaps neither of the others.
    pub out: View<'a>,
}

impl Shape {
    /// Products of up to so many rows, a power of two, share an algorithm.
    #[must_use]
    pub fn bucket(num_rows: usize) -> usize {
        num_rows.next_power_of_two()
    }

    /// Multiplications and additions of a product.
    #[must_use]
    pub fn flops(&self, num_rows: usize) -> f64 {
        2.0 * num_rows as f64 * self.num_inputs as f64 * self.num_outputs as f64
    }

    /// Bytes of out.
    ///
    /// # Errors
    /// More than there are.
    pub fn out_bytes(&self, num_rows: usize) -> Result<usize> {
        self.bytes(num_rows, self.num_outputs, self.output.bytes())
    }

    fn bytes(&self, num_rows: usize, num_cols: usize, element_bytes: usize) -> Result<usize> {
        let bytes = num_rows.checked_mul(num_cols).and_then(|num| num.checked_mul(element_bytes));
        bytes.ok_or_else(|| Error::Illegal(format!("a matrix of {num_rows} rows by {num_cols} of {self:?}")))
    }
}

impl Element {
    pub(super) fn data_type(self) -> cudaDataType_t {
        match self {
            Self::Bf16 => cudaDataType_t::CUDA_R_16BF,
            Self::F16 => cudaDataType_t::CUDA_R_16F,
        }
    }
}

impl Output {
    pub(super) fn data_type(self, element: Element) -> cudaDataType_t {
        match self {
            Self::Element => element.data_type(),
            Self::F32 | Self::AddToF32 => cudaDataType_t::CUDA_R_32F,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Element => 2,
            Self::F32 | Self::AddToF32 => 4,
        }
    }
}

impl Product<'_> {
    /// That every byte the library will touch is there.
    pub(super) fn check(&self, context: &Context) -> Result<()> {
        let shape = self.shape;
        // The library takes leading dimensions as i32 in places.
        let sizes = [shape.num_inputs, shape.num_outputs, self.num_rows.max(1)];
        if sizes.iter().any(|&size| size == 0 || size > i32::MAX as usize) {
            return Err(Error::Illegal(format!("a product of {} rows of {shape:?}", self.num_rows)));
        }
        let wanted = [
            ("x", self.x, shape.bytes(self.num_rows, shape.num_inputs, 2)?),
            ("weight", self.weight, shape.bytes(shape.num_outputs, shape.num_inputs, 2)?),
            ("out", self.out, shape.out_bytes(self.num_rows)?),
        ];
        for (name, view, bytes) in wanted {
            context.is(view.buffer().context())?;
            if view.len() < bytes || !view.address().is_multiple_of(ALIGNMENT as u64) {
                return Err(Error::Illegal(format!(
                    "{name} of a product of {} rows of {shape:?} needs {bytes} bytes at a multiple of \
                     {ALIGNMENT}, and has \
                     {} at {:#x}",
                    self.num_rows,
                    view.len(),
                    view.address(),
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let buckets: Vec<usize> = [1, 2, 3, 64, 65, 8192].map(Shape::bucket).to_vec();
        assert_eq!(buckets, [1, 2, 4, 64, 128, 8192]);
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let shape =
            Shape { num_inputs: 8, num_outputs: 1 << 40, element: Element::Bf16, output: Output::F32 };
        assert_eq!(shape.out_bytes(2).unwrap(), 8 << 40);
        assert!(shape.out_bytes(1 << 30).is_err());
    }
}
