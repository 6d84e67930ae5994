use fused_checkpoint::Dtype;
use fused_kernels::Elements;
use half::{bf16, f16};

/// A weight matrix `[rows, cols]`, row-major, in the checkpoint's precision.
#[derive(Clone, Debug)]
pub struct Tensor {
    num_rows: usize,
    num_cols: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// An element type: computed with in f32.
trait Element: Copy {
    fn widen(self) -> f32;
}

/// The same expression on the elements, whatever their type, wrapped up as it came.
macro_rules! map_data {
    ($data:expr, $elements:ident => $result:expr) => {
        match $data {
            Data::F32($elements) => Data::F32($result),
            Data::F16($elements) => Data::F16($result),
            Data::Bf16($elements) => Data::Bf16($result),
        }
    };
}

impl Tensor {
    /// A copy of a checkpoint's tensor, which has `num_rows * num_cols` elements.
    pub(super) fn read(tensor: &fused_checkpoint::Tensor<'_>, num_rows: usize, num_cols: usize) -> Self {
        let (pairs, _) = tensor.bytes.as_chunks::<2>();
        let (quads, _) = tensor.bytes.as_chunks::<4>();
        let data = match tensor.dtype {
            Dtype::F32 => Data::F32(quads.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            Dtype::F16 => Data::F16(pairs.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect()),
            Dtype::Bf16 => Data::Bf16(pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect()),
        };
        Self { num_rows, num_cols, data }
    }

    /// Whether every element is a number.
    pub(super) fn is_finite(&self) -> bool {
        // Piece by piece, without a branch an element, so that many are looked at in one instruction.
        fn all<T: Copy>(elements: &[T], is_finite: impl Fn(T) -> bool) -> bool {
            let is_piece_finite =
                |piece: &[T]| piece.iter().fold(true, |so_far, &element| so_far & is_finite(element));
            elements.chunks(4096).all(is_piece_finite)
        }
        match &self.data {
            Data::F32(elements) => all(elements, f32::is_finite),
            Data::F16(elements) => all(elements, f16::is_finite),
            Data::Bf16(elements) => all(elements, bf16::is_finite),
        }
    }

    /// No rows as yet.
    pub(super) fn empty(num_cols: usize) -> Self {
        Self { num_rows: 0, num_cols, data: Data::F32(Vec::new()) }
    }

    /// Rows: outputs of a product, or tokens of an embedding.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Columns: inputs of a product.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// The elements, row by row.
    #[must_use]
    pub fn elements(&self) -> Elements<'_> {
        match &self.data {
            Data::F32(elements) => Elements::F32(elements),
            Data::F16(elements) => Elements::F16(elements),
            Data::Bf16(elements) => Elements::Bf16(elements),
        }
    }

    /// All elements in f32.
    pub(super) fn to_f32(&self) -> Vec<f32> {
        fn widen<T: Element>(elements: &[T]) -> Vec<f32> {
            elements.iter().map(|element| element.widen()).collect()
        }
        match &self.data {
            Data::F32(elements) => elements.clone(),
            Data::F16(elements) => widen(elements),
            Data::Bf16(elements) => widen(elements),
        }
    }

    /// Rows become columns.
    pub(super) fn transposed(&self) -> Self {
        let (num_rows, num_cols) = (self.num_cols, self.num_rows);
        let data = map_data!(&self.data, elements => transposed(elements, self.num_cols));
        Self { num_rows, num_cols, data }
    }

    /// Rows in another order: row `i` is what row `order[i]` was.
    pub(super) fn rows_in(&self, order: &[usize]) -> Self {
        fn pick<T: Copy>(elements: &[T], order: &[usize], num_cols: usize) -> Vec<T> {
            order.iter().flat_map(|&row| &elements[row * num_cols..][..num_cols]).copied().collect()
        }
        let data = map_data!(&self.data, elements => pick(elements, order, self.num_cols));
        Self { num_rows: order.len(), num_cols: self.num_cols, data }
    }

    /// The rows of one after the other's, which has as many columns. Where the precisions differ, all become f32.
    pub(super) fn stacked(mut self, below: Self) -> Self {
        debug_assert_eq!(self.num_cols, below.num_cols, "stacked tensors have as many columns");
        if self.num_rows == 0 {
            return below;
        }
        self.num_rows += below.num_rows;
        match (&mut self.data, below.data) {
            (Data::F32(above), Data::F32(below)) => above.extend(below),
            (Data::F16(above), Data::F16(below)) => above.extend(below),
            (Data::Bf16(above), Data::Bf16(below)) => above.extend(below),
            (_, below_data) => {
                let mut rows = self.to_f32();
                rows.extend(Self { data: below_data, ..below }.to_f32());
                self.data = Data::F32(rows);
            }
        }
        self
    }
}

fn transposed<T: Copy>(elements: &[T], num_cols: usize) -> Vec<T> {
    let num_rows = elements.len() / num_cols;
    (0..num_cols).flat_map(|col| (0..num_rows).map(move |row| elements[row * num_cols + col])).collect()
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, num_rows: usize, values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        };
        let read = fused_checkpoint::Tensor { dtype, shape: &[], bytes: &bytes };
        Tensor::read(&read, num_rows, values.len() / num_rows)
    }

    const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    #[test]
    fn rows_become_columns_in_every_precision() {
        for dtype in ALL {
            let turned = tensor(dtype, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).transposed();
            assert_eq!((turned.num_rows(), turned.num_cols()), (3, 2));
            assert_eq!(turned.to_f32(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        }
    }

    #[test]
    fn stacking_keeps_one_precision_and_widens_several() {
        for above in ALL {
            for below in ALL {
                let stacked = tensor(above, 1, &[1.0, 2.0]).stacked(tensor(below, 2, &[3.0, 4.0, 5.0, 6.0]));
                assert_eq!((stacked.num_rows(), stacked.num_cols()), (3, 2));
                assert_eq!(stacked.to_f32(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
                let is_wide = matches!(stacked.elements(), Elements::F32(_));
                assert_eq!(is_wide, above != below || above == Dtype::F32);
            }
        }
    }
}
