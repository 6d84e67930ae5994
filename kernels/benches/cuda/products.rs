//! The products of Llama-8B.

use fused_gpu::{Element, Output, Product, Products, Shape};
use fused_kernels::cuda::Error;

use crate::table::{Table, Work};

/// Outputs, inputs, and what becomes of the result.
const PRODUCTS: [(&str, usize, usize, Output); 5] = [
    ("qkv", 6144, 4096, Output::Element),
    ("o", 4096, 4096, Output::AddToF32),
    ("gate-up", 28_672, 4096, Output::Element),
    ("down", 4096, 14_336, Output::AddToF32),
    ("head", 128_256, 4096, Output::F32),
];
const LAYERS: f64 = 32.0;

pub(crate) fn print(table: &Table, products: &mut Products) -> Result<(), Error> {
    for num_rows in [1, 8, 16, 32, 64, 128, 256, 2048, 8192] {
        let mut step = 0.0;
        for (name, num_outputs, num_inputs, output) in PRODUCTS {
            // No model multiplies all rows of a large prefill by its head.
            if name == "head" && num_rows > 256 {
                continue;
            }
            let shape = Shape { num_inputs, num_outputs, element: Element::Bf16, output };
            let weight_bytes = 2 * num_outputs * num_inputs;
            let num_places = table.num_places(weight_bytes);
            let weights = table.random(num_places * weight_bytes)?;
            let x = table.random(2 * num_rows * num_inputs)?;
            let out = table.random(shape.out_bytes(num_rows)?)?;
            let mut multiply = |place: usize| -> Result<(), Error> {
                let at = place % num_places * weight_bytes;
                let weight = weights.slice(at..at + weight_bytes)?;
                Ok(products.multiply(&Product { shape, num_rows, x: x.view(), weight, out: out.view() })?)
            };
            multiply(0)?;
            let bytes = weight_bytes + 2 * num_rows * num_inputs + shape.out_bytes(num_rows)?;
            let flops = shape.flops(num_rows);
            let work = if num_rows < 256 { Work::Bytes(bytes as f64) } else { Work::Flops(flops) };
            let shape = format!("{num_rows} x {num_outputs} x {num_inputs} {name}");
            let time = table.line("product", &shape, work, num_places.max(8), multiply)?;
            step += time.as_secs_f64() * if name == "head" { 1.0 } else { LAYERS };
        }
        println!(
            "{:<12} {num_rows} rows: {:.2} ms for the products of {LAYERS} layers and head",
            "step",
            step * 1e3
        );
    }
    Ok(())
}
