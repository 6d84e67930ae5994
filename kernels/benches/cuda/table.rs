//! Lines of the table, and the ceilings that they are compared with.

use std::time::Duration;

use fused_gpu::{Buffer, Element, Event, Gpu, Output, Product, Products, Shape};
use fused_kernels::cuda::Error;

/// Graphs of each line that are timed; the fastest counts.
const NUM_RUNS: usize = 5;
/// Random numbers that everything is filled with, in bytes: zeros cost a multiplier less power.
const BLOCK: usize = 16 << 20;

pub(crate) struct Table {
    pub(crate) gpu: Gpu,
    bytes_per_second: f64,
    flops_per_second: f64,
}

/// What a launch moves or computes.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Bytes(f64),
    Flops(f64),
}

impl Table {
    pub(crate) fn measure(gpu: &Gpu, products: &mut Products) -> Result<Self, Error> {
        let mut table =
            Self { gpu: gpu.clone(), bytes_per_second: f64::INFINITY, flops_per_second: f64::INFINITY };
        let len = 2 << 30;
        let (from, to) = (table.random(len)?, table.random(len)?);
        let copy = table.time(4, |_| Ok(gpu.copy(from.view(), to.view())?))?;
        drop((from, to));
        table.bytes_per_second = 2.0 * len as f64 / copy.as_secs_f64();

        let size = 8192;
        let shape =
            Shape { num_inputs: size, num_outputs: size, element: Element::Bf16, output: Output::Element };
        let [x, weight, out] = [(); 3].map(|()| table.random(2 * size * size));
        let (x, weight, out) = (x?, weight?, out?);
        let product = Product { shape, num_rows: size, x: x.view(), weight: weight.view(), out: out.view() };
        products.multiply(&product)?;
        let multiply = table.time(4, |_| Ok(products.multiply(&product)?))?;
        table.flops_per_second = shape.flops(size) / multiply.as_secs_f64();
        println!(
            "ceilings: copy {:.0} GB/s (read + written), product of {size} x {size} x {size} {:.0} TFLOP/s",
            table.bytes_per_second / 1e9,
            table.flops_per_second / 1e12
        );
        println!("{:<12} {:<44} {:>9} {:>8}          {:>6}", "op", "shape", "us", "rate", "share");
        Ok(table)
    }

    /// Times a line's launches and prints it. `launch` is given their numbers, from 0 to `num_launches`.
    pub(crate) fn line(
        &self,
        op: &str,
        shape: &str,
        work: Work,
        num_launches: usize,
        launch: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Duration, Error> {
        let time = self.time(num_launches, launch)?;
        let seconds = time.as_secs_f64();
        let (rate, unit, share) = match work {
            Work::Bytes(bytes) => (bytes / seconds / 1e9, "GB/s", bytes / seconds / self.bytes_per_second),
            Work::Flops(flops) => {
                (flops / seconds / 1e12, "TFLOP/s", flops / seconds / self.flops_per_second)
            }
        };
        println!(
            "{op:<12} {shape:<44} {:>9.2} {rate:>8.1} {unit:<8} {:>5.1} %",
            seconds * 1e6,
            share * 100.0
        );
        Ok(time)
    }

    fn time(
        &self,
        num_launches: usize,
        mut launch: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Duration, Error> {
        let graph = self.gpu.capture(|| (0..num_launches).try_for_each(&mut launch))?;
        let (before, after) = (Event::timed(&self.gpu)?, Event::timed(&self.gpu)?);
        graph.launch()?;
        let mut best = Duration::MAX;
        for _ in 0..NUM_RUNS {
            before.record()?;
            graph.launch()?;
            after.record()?;
            after.wait()?;
            best = best.min(after.since(&before)?);
        }
        Ok(best / num_launches as u32)
    }

    /// Device memory full of random bf16 in [-1, 1).
    pub(crate) fn random(&self, len: usize) -> Result<Buffer, Error> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let numbers = std::iter::repeat_with(|| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            half::bf16::from_f32((state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).to_le_bytes()
        });
        let block: Vec<u8> = numbers.take(BLOCK.min(len).div_ceil(2)).flatten().collect();
        let buffer = self.gpu.alloc(len.max(block.len()))?;
        buffer.write(0, &block)?;
        let mut filled = block.len();
        while filled < len {
            let more = filled.min(len - filled);
            self.gpu.copy(buffer.slice(0..more)?, buffer.slice(filled..filled + more)?)?;
            filled += more;
        }
        Ok(buffer)
    }

    /// In how many places something of so many bytes must stand, so that the cache has lost one when its turn comes.
    pub(crate) fn num_places(&self, bytes: usize) -> usize {
        (3 * self.gpu.l2_bytes()).div_ceil(bytes.max(1)).clamp(2, 64)
    }

    pub(crate) fn indices(&self, indices: impl Iterator<Item = usize>) -> Result<Buffer, Error> {
        let indices: Vec<i32> = indices.map(|index| index as i32).collect();
        Ok(self.gpu.upload(bytemuck::cast_slice(&indices))?)
    }
}
