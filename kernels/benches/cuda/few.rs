//! Products of one to four rows, with what stands before and behind them, in the shapes of Llama-8B and Llama-1B.

use fused_gpu::Output;
use fused_kernels::Activation;
use fused_kernels::cuda::{
    Element, Error, Few, FewInput, FewOutput, HeadShape, Heads, Kernels, KvLayout, Slots,
};

use crate::table::{Table, Work};

/// What becomes of the product.
#[derive(Clone, Copy)]
enum Then {
    Heads(HeadShape),
    Added,
    Activated,
    Logits,
}

const fn heads(head_dim: usize) -> Then {
    Then::Heads(HeadShape { element: Element::Bf16, num_heads: 32, num_kv_heads: 8, head_dim })
}

/// Outputs and inputs.
const PRODUCTS: [(&str, usize, usize, Then); 10] = [
    ("norm, qkv, heads", 6144, 4096, heads(128)),
    ("o", 4096, 4096, Then::Added),
    ("norm, gate-up, silu", 28_672, 4096, Then::Activated),
    ("down", 4096, 14_336, Then::Added),
    ("head", 128_256, 4096, Then::Logits),
    ("norm, qkv, heads", 3072, 2048, heads(64)),
    ("o", 2048, 2048, Then::Added),
    ("norm, gate-up, silu", 16_384, 2048, Then::Activated),
    ("down", 2048, 8192, Then::Added),
    ("head", 128_256, 2048, Then::Logits),
];

pub(crate) fn print(table: &Table, kernels: &Kernels) -> Result<(), Error> {
    for num_rows in [1, 2, 4] {
        for (name, num_outputs, num_inputs, then) in PRODUCTS {
            let weight_bytes = 2 * num_outputs * num_inputs;
            let num_places = table.num_places(weight_bytes);
            let weights = table.random(num_places * weight_bytes)?;
            let x = table.random(4 * num_rows * num_inputs)?;
            let out = table.random(4 * num_rows * num_outputs)?;
            let vector = table.random(4 * num_inputs)?;
            let kept = table.random(2 * num_rows * num_outputs)?;
            let positions = table.indices(0..num_rows)?;
            let slots = table.gpu.upload(bytemuck::cast_slice(&vec![kept.address(); num_rows]))?;
            let angles = table.random(4 * num_rows * 128)?;
            let input = match then {
                Then::Heads(_) | Then::Activated => {
                    FewInput::RmsNorm { residual: x.view(), weight: vector.view(), epsilon: 1e-5 }
                }
                Then::Added | Then::Logits => FewInput::Plain(x.view()),
            };
            let output = match then {
                Then::Added => FewOutput::Kept(Output::AddToF32, out.view()),
                Then::Logits => FewOutput::Kept(Output::F32, out.view()),
                Then::Activated => FewOutput::Activated {
                    activation: Activation::Silu,
                    is_gated: true,
                    bias: None,
                    out: out.view(),
                },
                Then::Heads(shape) => FewOutput::Heads(Heads {
                    shape,
                    layout: KvLayout {
                        token_stride: (4 * shape.num_kv_heads * shape.head_dim) as u64,
                        keys_offset: 0,
                    },
                    num_rows,
                    qkv: out.view(),
                    bias: None,
                    query_norm: None,
                    key_norm: None,
                    angles: Some(angles.view()),
                    positions: positions.view(),
                    // SAFETY: memory of the bench for every row's tokens, which lives until it has waited for the launches.
                    slots: unsafe { Slots::vouched_for(slots.view()) },
                    epsilon: 0.0,
                }),
            };
            let shape = format!("{num_rows} x {num_outputs} x {num_inputs} {name}");
            let work = Work::Bytes(weight_bytes as f64);
            table.line("few", &shape, work, num_places.max(8), |place| {
                let at = place % num_places * weight_bytes;
                let weight = weights.slice(at..at + weight_bytes)?;
                kernels.multiply_few(&Few {
                    element: Element::Bf16,
                    num_rows,
                    num_inputs,
                    num_outputs,
                    input,
                    weight,
                    output,
                })
            })?;
        }
    }
    Ok(())
}
