//! When and how work is split over threads. No split changes a result: each number is computed whole by one thread.

use rayon::prelude::*;

/// A task has at least so many multiply-adds, which take about 20 µs: waking another thread costs as much. (With a
/// quarter of this, a decode step of the demo model took 530 µs on two threads and 330 µs on one.)
const MIN_TASK_WORK: usize = 1 << 20;

/// How many tasks are worth it for `work` multiply-adds, at most `max_tasks`.
pub(crate) fn num_tasks(work: usize, max_tasks: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return 1;
    }
    // Some tasks more than threads, so that a thread that is held up does not hold up the others.
    (work / MIN_TASK_WORK).min(4 * threads).min(max_tasks).max(1)
}

/// Runs `body` on each task, on several threads where there are several tasks.
pub(crate) fn for_each<T: Send>(mut tasks: Vec<T>, body: impl Fn(T) + Send + Sync) {
    if tasks.len() == 1 {
        tasks.pop().into_iter().for_each(body);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(body);
    }
}

/// Cuts `data` into rows of `width` and runs `body` on blocks of whole rows, with the index of the block's first row.
/// `row_work` is a row's cost in multiply-adds; small work runs inline.
pub fn for_each_chunk<T: Send>(
    data: &mut [T],
    width: usize,
    row_work: usize,
    body: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    let num_rows = data.len() / width;
    let tasks = num_tasks(num_rows.saturating_mul(row_work), num_rows);
    if tasks <= 1 {
        body(0, data);
        return;
    }
    let rows_per_task = num_rows.div_ceil(tasks);
    data.par_chunks_mut(rows_per_task * width)
        .enumerate()
        .for_each(|(task, rows)| body(task * rows_per_task, rows));
}

/// Cuts a row-major matrix with `num_columns` columns into blocks of at most `width` columns; each block is one slice a
/// row.
pub(crate) fn column_blocks(matrix: &mut [f32], num_columns: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let num_rows = matrix.len() / num_columns;
    let mut blocks: Vec<Vec<&mut [f32]>> =
        (0..num_columns.div_ceil(width)).map(|_| Vec::with_capacity(num_rows)).collect();
    for row in matrix.chunks_exact_mut(num_columns) {
        for (block, columns) in blocks.iter_mut().zip(row.chunks_mut(width)) {
            block.push(columns);
        }
    }
    blocks
}
