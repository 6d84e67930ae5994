//! Prints, for matrix products of a small and of a large model: time, GFLOP/s, the rate at which weights are read, and
//! how many times as long the `gemm` crate takes on the same weights widened to f32 beforehand.
//!
//! `cargo bench -p fused-kernels`
#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![expect(unsafe_code, reason = "the `gemm` crate takes pointers")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fused_kernels::{Elements, Matrix, instruction_set, linear};
use half::bf16;

/// Outputs and inputs: the demo model's four products of a layer and its head; a square one that fits no cache.
const WEIGHTS: [(&str, usize, usize); 6] = [
    ("demo qkv", 512, 256),
    ("demo o", 256, 256),
    ("demo gate-up", 1408, 256),
    ("demo down", 256, 704),
    ("demo head", 8192, 256),
    ("large", 4096, 4096),
];
const ROWS: [usize; 6] = [1, 4, 16, 64, 100, 512];

fn main() {
    println!("{}, {} threads", instruction_set(), rayon::current_num_threads());
    println!("weights       outputs inputs  rows        µs  GFLOP/s    GB/s  gemm µs  gemm/ours");
    for (name, num_outputs, num_inputs) in WEIGHTS {
        let wide: Vec<f32> =
            (0..num_outputs * num_inputs).map(|at| (at % 251) as f32 / 256.0 - 0.5).collect();
        let narrow: Vec<bf16> = wide.iter().map(|&weight| bf16::from_f32(weight)).collect();
        let Ok(matrix) = Matrix::pack(Elements::Bf16(&narrow), num_outputs, num_inputs) else { continue };
        for num_rows in ROWS {
            let x: Vec<f32> = (0..num_rows * num_inputs).map(|at| (at % 127) as f32 / 128.0 - 0.5).collect();
            let mut y = vec![0.0; num_rows * num_outputs];
            // In the pool, as the engine's step is: a product called from outside would wait to be let in.
            let ours = in_pool(|| best_of(|| linear(black_box(&x), &matrix, None, black_box(&mut y))));
            let theirs =
                in_pool(|| best_of(|| gemm_linear(black_box(&x), &wide, num_inputs, black_box(&mut y))));
            let seconds = ours.as_secs_f64();
            let flops = 2.0 * (num_rows * num_outputs * num_inputs) as f64;
            println!(
                "{name:<13} {num_outputs:>7} {num_inputs:>6} {num_rows:>5} {:>9.1} {:>8.1} {:>7.1} {:>8.1} {:>10.2}",
                seconds * 1e6,
                flops / seconds / 1e9,
                2.0 * (num_outputs * num_inputs) as f64 / seconds / 1e9,
                theirs.as_secs_f64() * 1e6,
                theirs.as_secs_f64() / seconds,
            );
        }
    }
}

fn in_pool<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    // A scope runs in the pool.
    rayon::scope(|_| body())
}

/// The fastest of many runs, of at least a quarter of a second in all.
fn best_of(mut body: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut num_runs = 0;
    while num_runs < 5 || start.elapsed() < Duration::from_millis(250) {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
        num_runs += 1;
    }
    best
}

/// y = x · wᵀ by the `gemm` crate; w [outputs, inputs] row-major in f32.
fn gemm_linear(x: &[f32], weight: &[f32], num_inputs: usize, y: &mut [f32]) {
    let (num_rows, num_outputs) = (x.len() / num_inputs, weight.len() / num_inputs);
    assert_eq!(y.len(), num_rows * num_outputs);
    let inputs = num_inputs.cast_signed();
    // SAFETY: x is [rows, inputs], the weight read by columns [inputs, outputs], y [rows, outputs], all row-major and
    // of exactly these sizes; y overlaps neither.
    unsafe {
        gemm::gemm(
            num_rows,
            num_outputs,
            num_inputs,
            y.as_mut_ptr(),
            1,
            num_outputs.cast_signed(),
            false,
            x.as_ptr(),
            1,
            inputs,
            weight.as_ptr(),
            inputs,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
