use half::{bf16, f16};
use rayon::prelude::*;

use crate::element::{Element, Elements};

/// Rows of a weight matrix (outputs) in a panel: four vectors.
pub(crate) const PANEL: usize = 64;

/// A weight matrix `[rows, cols]` (outputs, inputs) in its own precision, laid out for [`linear`](crate::linear()).
///
/// Rows stand in panels of 64: within a panel all rows' first columns come first, then all second columns, and so on;
/// the last panel is filled up with zero rows. A product then reads the weights front to back, each vector holds the
/// same column of 16 outputs, and no sum ever crosses lanes: an output is one chain of multiply-adds along its row
/// whatever the tile, which is what makes products batch-invariant at no cost. (Dot products on the row-major matrix
/// would add about 15 additions and 30 shuffles to every 16 outputs: 18 % of the work at 256 columns.)
#[derive(Clone, Debug)]
pub struct Matrix {
    num_rows: usize,
    num_cols: usize,
    pub(crate) panels: Panels,
}

/// The panels, each `num_cols` times [`PANEL`] elements.
#[derive(Clone, Debug)]
pub(crate) enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// The elements do not fill the shape, or the shape is empty.
#[derive(Debug, thiserror::Error)]
#[error("{num_elements} elements do not make a matrix of {num_rows} rows and {num_cols} columns")]
pub struct MatrixError {
    num_elements: usize,
    num_rows: usize,
    num_cols: usize,
}

impl Matrix {
    /// Lays out a row-major matrix.
    ///
    /// # Errors
    /// The number of elements is not `num_rows * num_cols`, or that is 0.
    pub fn pack(elements: Elements<'_>, num_rows: usize, num_cols: usize) -> Result<Self, MatrixError> {
        let num_elements = elements.len();
        if num_elements == 0 || num_rows.checked_mul(num_cols) != Some(num_elements) {
            return Err(MatrixError { num_elements, num_rows, num_cols });
        }
        let panels = match elements {
            Elements::F32(elements) => Panels::F32(pack(elements, num_cols)),
            Elements::F16(elements) => Panels::F16(pack(elements, num_cols)),
            Elements::Bf16(elements) => Panels::Bf16(pack(elements, num_cols)),
        };
        Ok(Self { num_rows, num_cols, panels })
    }

    /// Rows: outputs of a product.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Columns: inputs of a product.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// Writes one row, widened; an embedding's lookup.
    ///
    /// # Panics
    /// There is no such row, or `row` has not [`num_cols`](Self::num_cols) elements.
    pub fn read_row(&self, row_idx: usize, row: &mut [f32]) {
        assert!(row_idx < self.num_rows && row.len() == self.num_cols, "row {row_idx} of {}", self.num_rows);
        match &self.panels {
            Panels::F32(panels) => read_row(panels, row_idx, row),
            Panels::F16(panels) => read_row(panels, row_idx, row),
            Panels::Bf16(panels) => read_row(panels, row_idx, row),
        }
    }
}

fn pack<T: Element>(elements: &[T], num_cols: usize) -> Vec<T> {
    let num_rows = elements.len() / num_cols;
    let panel_len = PANEL * num_cols;
    let mut panels = vec![T::default(); num_rows.div_ceil(PANEL) * panel_len];
    panels.par_chunks_exact_mut(panel_len).zip(elements.par_chunks(panel_len)).for_each(|(panel, rows)| {
        for (lane, row) in rows.chunks_exact(num_cols).enumerate() {
            for (column, &element) in panel.as_chunks_mut::<PANEL>().0.iter_mut().zip(row) {
                column[lane] = element;
            }
        }
    });
    panels
}

fn read_row<T: Element>(panels: &[T], row_idx: usize, row: &mut [f32]) {
    let panel = &panels[row_idx / PANEL * PANEL * row.len()..][..PANEL * row.len()];
    for (element, column) in row.iter_mut().zip(panel.as_chunks::<PANEL>().0) {
        *element = column[row_idx % PANEL].widen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        for (num_rows, num_cols) in [(1, 1), (63, 5), (64, 7), (65, 3), (200, 17)] {
            let elements: Vec<f32> = (0..num_rows * num_cols).map(|at| at as f32).collect();
            let halves: Vec<bf16> = elements.iter().map(|&element| bf16::from_f32(element)).collect();
            let exact = Matrix::pack(Elements::F32(&elements), num_rows, num_cols).unwrap();
            let narrow = Matrix::pack(Elements::Bf16(&halves), num_rows, num_cols).unwrap();
            let mut row = vec![0.0; num_cols];
            for row_idx in 0..num_rows {
                exact.read_row(row_idx, &mut row);
                assert_eq!(row, elements[row_idx * num_cols..][..num_cols]);
                narrow.read_row(row_idx, &mut row);
                let wanted: Vec<f32> =
                    halves[row_idx * num_cols..][..num_cols].iter().map(|half| half.to_f32()).collect();
                assert_eq!(row, wanted);
            }
        }
    }

    #[test]
    fn a_wrong_shape_is_refused() {
        assert!(Matrix::pack(Elements::F32(&[0.0; 6]), 2, 4).is_err());
        assert!(Matrix::pack(Elements::F32(&[]), 0, 4).is_err());
        assert!(Matrix::pack(Elements::F32(&[0.0; 6]), usize::MAX, 4).is_err());
    }
}
