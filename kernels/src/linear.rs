//! Matrix products: `y[m, n] = Σ_k x[m, k] · w[n, k] (+ bias[n])`; x and y in f32, w in its own precision.
//!
//! A tile of up to 6 rows of x by 64 outputs (24 vectors of sums) walks along k: each step loads 64 weights, widens them
//! in registers and multiplies them by each row's `x[k]`. A single row runs through the same code at the speed of memory.
//! One output is `((bias + x[0]·w[0]) + x[1]·w[1]) + …` whatever the tile's height, the thread or the cut of k into
//! blocks (a block goes on from the sums that the last one left in y): batch-invariant by construction.
//!
//! A library does not do this: `gemm` has no product of f32 by bf16 (weights would stand in memory as f32: twice the
//! bytes, so half the speed of a decode step), and picks its order of summation by the shape of the whole product.
//! `benches/linear.rs` measures both; on two Zen 4 cores this is 1.3 to 12 times as fast for one row, 1.5 to 10 times for
//! 4 to 16, and between 0.94 and 1.4 times for 512, where both run at the peak of the multipliers.

use crate::element::Element;
use crate::matrix::{Matrix, PANEL, Panels};
use crate::parallel;
use crate::simd::{self, Kernel, LANES, Simd};

/// Rows of x in a tile at most.
const MAX_TILE_ROWS: usize = 6;
/// Inputs in a block: a tile's rows of x (12 KiB) stay in the first cache, a panel's block (64 KiB) in the second.
const BLOCK_COLS: usize = 512;
/// Rows of x that a task takes at least, where rows are split over threads.
const MIN_TASK_ROWS: usize = 4 * MAX_TILE_ROWS;

/// y = x · wᵀ (+ bias): x `[m, cols]`, w `[rows, cols]`, bias `[rows]`, y `[m, rows]`.
///
/// # Panics
/// The shapes disagree.
pub fn linear(x: &[f32], weight: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
    let (num_outputs, num_inputs) = (weight.num_rows(), weight.num_cols());
    let num_rows = x.len() / num_inputs;
    assert!(x.len() == num_rows * num_inputs && y.len() == num_rows * num_outputs, "x and y disagree");
    assert!(bias.is_none_or(|bias| bias.len() == num_outputs), "bias and weight disagree");
    if num_rows == 0 {
        return;
    }
    match &weight.panels {
        Panels::F32(panels) => split(Product { x, panels, bias, num_inputs }, y),
        Panels::F16(panels) => split(Product { x, panels, bias, num_inputs }, y),
        Panels::Bf16(panels) => split(Product { x, panels, bias, num_inputs }, y),
    }
}

/// A product, or the part of one that a task computes: some rows of x, some whole panels.
#[derive(Clone, Copy)]
struct Product<'a, T> {
    x: &'a [f32],
    panels: &'a [T],
    bias: Option<&'a [f32]>,
    num_inputs: usize,
}

/// Splits outputs over threads, so that each weight is read by one thread only, and rows too where panels are few.
fn split<T: Element>(product: Product<'_, T>, y: &mut [f32]) {
    let Product { x, panels, bias, num_inputs } = product;
    let num_rows = x.len() / num_inputs;
    let num_outputs = y.len() / num_rows;
    let num_panels = num_outputs.div_ceil(PANEL);
    let work = num_outputs.saturating_mul(num_inputs).saturating_mul(num_rows);
    let num_tasks = parallel::num_tasks(work, num_panels * num_rows.div_ceil(MIN_TASK_ROWS));
    let panels_per_task = num_panels.div_ceil(num_tasks);
    let tasks_along_rows = num_tasks.div_ceil(num_panels.div_ceil(panels_per_task));
    let rows_per_task = num_rows.div_ceil(tasks_along_rows).next_multiple_of(MAX_TILE_ROWS);

    let mut tasks = Vec::with_capacity(num_tasks);
    for (x, y) in x.chunks(rows_per_task * num_inputs).zip(y.chunks_mut(rows_per_task * num_outputs)) {
        let blocks = parallel::column_blocks(y, num_outputs, panels_per_task * PANEL);
        for (block_idx, y) in blocks.into_iter().enumerate() {
            let first_panel = block_idx * panels_per_task;
            let num_panels = panels_per_task.min(num_panels - first_panel);
            let panels = &panels[first_panel * PANEL * num_inputs..][..num_panels * PANEL * num_inputs];
            let bias = bias.map(|bias| &bias[first_panel * PANEL..][..y[0].len()]);
            tasks.push(Task { product: Product { x, panels, bias, num_inputs }, y });
        }
    }
    parallel::for_each(tasks, simd::run);
}

struct Task<'a, T> {
    product: Product<'a, T>,
    /// One slice a row of x, as long as the task has outputs.
    y: Vec<&'a mut [f32]>,
}

impl<T: Element> Kernel for Task<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Product { x, panels, bias, num_inputs } = self.product;
        for (panel_idx, panel) in panels.chunks_exact(PANEL * num_inputs).enumerate() {
            let (panel, _) = panel.as_chunks::<PANEL>();
            for (block_idx, block) in panel.chunks(BLOCK_COLS).enumerate() {
                let first_input = block_idx * BLOCK_COLS;
                for (tile_idx, rows) in self.y.chunks_mut(MAX_TILE_ROWS).enumerate() {
                    let place = Place {
                        x: &x[tile_idx * MAX_TILE_ROWS * num_inputs + first_input..],
                        num_inputs,
                        bias,
                        first_output: panel_idx * PANEL,
                        is_first_block: block_idx == 0,
                    };
                    match rows.len() {
                        1 => tile::<S, T, 1>(simd, &place, block, rows),
                        2 => tile::<S, T, 2>(simd, &place, block, rows),
                        3 => tile::<S, T, 3>(simd, &place, block, rows),
                        4 => tile::<S, T, 4>(simd, &place, block, rows),
                        5 => tile::<S, T, 5>(simd, &place, block, rows),
                        _ => tile::<S, T, MAX_TILE_ROWS>(simd, &place, block, rows),
                    }
                }
            }
        }
    }
}

/// Where a tile stands in its task.
struct Place<'a> {
    /// From the tile's first row and the block's first input on.
    x: &'a [f32],
    /// From one row of x to the next.
    num_inputs: usize,
    bias: Option<&'a [f32]>,
    first_output: usize,
    is_first_block: bool,
}

/// ROWS rows by one panel. With few registers, one vector of outputs after the other.
#[inline(always)]
fn tile<S: Simd, T: Element, const ROWS: usize>(
    simd: S,
    place: &Place<'_>,
    block: &[[T; PANEL]],
    y: &mut [&mut [f32]],
) {
    if S::MANY_REGISTERS || ROWS == 1 {
        vectors::<S, T, ROWS, { PANEL / LANES }>(simd, place, block, y, 0);
    } else {
        for first in 0..PANEL / LANES {
            vectors::<S, T, ROWS, 1>(simd, place, block, y, first);
        }
    }
}

/// ROWS rows by VECTORS vectors of a panel's outputs, from the panel's vector `first` on.
#[inline(always)]
fn vectors<S: Simd, T: Element, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    place: &Place<'_>,
    block: &[[T; PANEL]],
    y: &mut [&mut [f32]],
    first: usize,
) {
    let mut x = [[].as_slice(); ROWS];
    for (row, x) in x.iter_mut().enumerate() {
        *x = &place.x[row * place.num_inputs..][..block.len()];
    }
    let first_output = place.first_output + first * LANES;

    let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
    for (y, sums) in y.iter().zip(&mut sums) {
        for (vector, sum) in sums.iter_mut().enumerate() {
            let at = first_output + vector * LANES;
            match (place.is_first_block, place.bias) {
                (true, None) => {}
                (true, Some(bias)) => *sum = simd.load_partial(vector_at(bias, at)),
                (false, _) => *sum = simd.load_partial(vector_at(y, at)),
            }
        }
    }
    for (input, column) in block.iter().enumerate() {
        let (column, _) = column.as_chunks::<LANES>();
        let mut weights = [simd.splat(0.0); VECTORS];
        for (vector, weight) in weights.iter_mut().enumerate() {
            *weight = T::load(simd, &column[first + vector]);
        }
        for (x, sums) in x.iter().zip(&mut sums) {
            let x = simd.splat(x[input]);
            for (weight, sum) in weights.iter().zip(sums) {
                *sum = simd.mul_add(x, *weight, *sum);
            }
        }
    }
    for (y, sums) in y.iter_mut().zip(&sums) {
        for (vector, sum) in sums.iter().enumerate() {
            let at = (first_output + vector * LANES).min(y.len());
            let end = (at + LANES).min(y.len());
            simd.store_partial(&mut y[at..end], *sum);
        }
    }
}

/// The at most [`LANES`] numbers from `at` on; none past the end.
#[inline(always)]
fn vector_at(numbers: &[f32], at: usize) -> &[f32] {
    let at = at.min(numbers.len());
    &numbers[at..(at + LANES).min(numbers.len())]
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::element::Elements;
    use crate::testing::{assert_close, numbers};

    fn reference(x: &[f32], weight: &[f32], bias: Option<&[f32]>, num_inputs: usize) -> Vec<f64> {
        let rows = x.chunks(num_inputs).map(|x| {
            weight.chunks(num_inputs).enumerate().map(move |(output, weight)| {
                let products = x.iter().zip(weight).map(|(&x, &weight)| f64::from(x) * f64::from(weight));
                products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[output]))
            })
        });
        rows.flatten().collect()
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (1, 64, 512),
        (2, 65, 513),
        (7, 130, 31),
        (5, 63, 1100),
        (13, 257, 96),
        (100, 512, 256),
        (3, 1000, 700),
        (26, 40, 2048),
    ];

    #[test]
    fn products_agree_with_the_reference_in_every_precision() {
        for (num_rows, num_outputs, num_inputs) in SHAPES {
            let (x, bias) = (numbers(num_rows * num_inputs, 1), numbers(num_outputs, 2));
            let single = numbers(num_outputs * num_inputs, 3);
            let half: Vec<f16> = single.iter().map(|&weight| f16::from_f32(weight)).collect();
            let brain: Vec<bf16> = single.iter().map(|&weight| bf16::from_f32(weight)).collect();
            let widened_half: Vec<f32> = half.iter().map(|weight| weight.to_f32()).collect();
            let widened_brain: Vec<f32> = brain.iter().map(|weight| weight.to_f32()).collect();
            let precisions = [
                (Elements::F32(&single), &single),
                (Elements::F16(&half), &widened_half),
                (Elements::Bf16(&brain), &widened_brain),
            ];
            for (elements, widened) in precisions {
                let matrix = Matrix::pack(elements, num_outputs, num_inputs).unwrap();
                for bias in [None, Some(bias.as_slice())] {
                    let mut y = vec![f32::NAN; num_rows * num_outputs];
                    linear(&x, &matrix, bias, &mut y);
                    assert_close(&y, &reference(&x, widened, bias, num_inputs), 1e-4);
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_batch_nor_on_the_threads() {
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let five_threads = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        for (num_rows, num_outputs, num_inputs) in SHAPES {
            let x = numbers(num_rows * num_inputs, 4);
            let weight: Vec<bf16> =
                numbers(num_outputs * num_inputs, 5).iter().map(|&weight| bf16::from_f32(weight)).collect();
            let matrix = Matrix::pack(Elements::Bf16(&weight), num_outputs, num_inputs).unwrap();
            let mut together = vec![0.0; num_rows * num_outputs];
            five_threads.install(|| linear(&x, &matrix, None, &mut together));
            let mut again = vec![0.0; together.len()];
            one_thread.install(|| linear(&x, &matrix, None, &mut again));
            assert_eq!(together, again);
            for rows_at_once in [1, 2, 3, 4, 5, 6, 11] {
                let chunks = x.chunks(rows_at_once * num_inputs);
                for (x, y) in chunks.zip(again.chunks_mut(rows_at_once * num_outputs)) {
                    linear(x, &matrix, None, y);
                }
                assert_eq!(together, again, "{rows_at_once} rows at once");
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_reference() {
        for (num_rows, num_outputs, num_inputs) in SHAPES {
            let (x, weight) = (numbers(num_rows * num_inputs, 6), numbers(num_outputs * num_inputs, 7));
            let wanted = reference(&x, &weight, None, num_inputs);
            let matrix = Matrix::pack(Elements::F32(&weight), num_outputs, num_inputs).unwrap();
            let Panels::F32(panels) = &matrix.panels else { unreachable!() };
            for set in simd::InstructionSet::available() {
                let mut y = vec![f32::NAN; num_rows * num_outputs];
                set.run(Task {
                    product: Product { x: &x, panels, bias: None, num_inputs },
                    y: y.chunks_mut(num_outputs).collect(),
                });
                assert_close(&y, &wanted, 1e-4);
            }
        }
    }
}
