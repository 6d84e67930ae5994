//! Prints what the CUDA driver's calls take through this crate, by handle size: what `DriverCosts::h200` stands for.
//! Needs a GPU with 16 GiB to spare.
//!
//! `cargo bench -p fused-virtual-memory --features cuda --bench driver_calls`
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

use fused_virtual_memory::{Access, CudaMemory, Error, VirtualMemory};

const MIB: usize = 1 << 20;
const MAX_HANDLES: usize = 64;
const TOTAL_BYTES: usize = 16 << 30;

fn main() -> Result<(), Error> {
    println!(
        "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  us a call",
        "MiB", "reserve", "create", "map", "to write", "to read", "unmap", "release", "free"
    );
    // The first call of each kind is slow: once for warmth, unprinted.
    measure(2 * MIB)?;
    for len in [2, 16, 32, 64, 128, 256, 512, 1024].map(|mib| mib * MIB) {
        let micros = measure(len)?.map(|micros| format!("{micros:9.2}"));
        println!("{:>6} {}", len / MIB, micros.join(" "));
    }
    Ok(())
}

/// Mean microseconds of each call on handles of so many bytes.
fn measure(len: usize) -> Result<[f64; 8], Error> {
    let num = MAX_HANDLES.min(TOTAL_BYTES / len);
    let memory = CudaMemory::new(0, 2 * MIB, TOTAL_BYTES)?;
    let mean = |start: Instant| start.elapsed().as_secs_f64() * 1e6 / num as f64;

    let start = Instant::now();
    let ranges = (0..num).map(|_| memory.reserve(len)).collect::<Result<Vec<_>, _>>()?;
    let reserve = mean(start);

    let start = Instant::now();
    let handles = (0..num).map(|_| memory.create(len)).collect::<Result<Vec<_>, _>>()?;
    let create = mean(start);

    let each = |call: &dyn Fn(usize) -> Result<(), Error>| {
        let start = Instant::now();
        (0..num).try_for_each(call).map(|()| mean(start))
    };
    Ok([
        reserve,
        create,
        each(&|nth| memory.map(ranges[nth], 0, handles[nth]))?,
        each(&|nth| memory.set_access(ranges[nth], 0, len, Access::ReadWrite))?,
        each(&|nth| memory.set_access(ranges[nth], 0, len, Access::Read))?,
        each(&|nth| memory.unmap(ranges[nth], 0, len))?,
        each(&|nth| memory.release(handles[nth]))?,
        each(&|nth| memory.free(ranges[nth]))?,
    ])
}
