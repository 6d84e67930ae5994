//! Prints what each CUDA kernel, and each matrix product of a large model, takes, and its share of what the
//! machine can do: bytes by a copy on the device, operations by a large product, both measured in the same run.
//! (A copy writes as much as it reads, which memory is slower at than at reading alone: what mostly reads can
//! have more than 100 %.)
//!
//! Each line is a graph of launches one after another, over so much memory in turn that the cache has nothing
//! of it: like a model's layers. The time is one launch's, gaps between them included.
//!
//! `cargo bench -p fused-kernels --features cuda --bench cuda`
#![allow(unsafe_code, reason = "addresses that no check can see are vouched for")]
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

mod attention;
mod few;
mod products;
mod rows;
mod sample;
mod table;

use fused_gpu::{Gpu, Products};
use fused_kernels::cuda::{Error, Kernels};

use table::Table;

fn main() -> Result<(), Error> {
    let gpu = Gpu::open(0)?;
    let kernels = Kernels::load(&gpu)?;
    println!(
        "{}, capability {}, driver {}, {} multiprocessors, kernels {:?}",
        gpu.name(),
        gpu.compute_capability(),
        gpu.driver_version(),
        gpu.num_multiprocessors(),
        kernels.origin(),
    );
    let mut products = Products::new(&gpu)?;
    let table = Table::measure(&gpu, &mut products)?;
    rows::print(&table, &kernels)?;
    few::print(&table, &kernels)?;
    sample::print(&table, &kernels)?;
    attention::print(&table, &kernels)?;
    products::print(&table, &mut products)
}
