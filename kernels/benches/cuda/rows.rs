//! The kernels between the products, in the shapes of Llama-8B.

use fused_kernels::Activation;
use fused_kernels::cuda::{
    Activate, Element, Embed, Error, HeadShape, Heads, Kernels, KvLayout, Norm, Slots,
};

use crate::table::{Table, Work};

const ELEMENT: Element = Element::Bf16;
const WIDTH: usize = 4096;
const FEED_FORWARD: usize = 14_336;
const VOCABULARY: usize = 128_256;
const SHAPE: HeadShape = HeadShape { element: ELEMENT, num_heads: 32, num_kv_heads: 8, head_dim: 128 };

pub(crate) fn print(table: &Table, kernels: &Kernels) -> Result<(), Error> {
    for num_rows in [1, 64, 256, 2048] {
        embed(table, kernels, num_rows)?;
        norm(table, kernels, num_rows)?;
        heads(table, kernels, num_rows)?;
        activation(table, kernels, num_rows)?;
        if num_rows <= 256 {}
    }
    Ok(())
}

fn embed(table: &Table, kernels: &Kernels, num_rows: usize) -> Result<(), Error> {
    let embedding = table.random(2 * VOCABULARY * WIDTH)?;
    let tokens = table.indices((0..num_rows).map(|row| row * 7919 % VOCABULARY))?;
    let row_bytes = num_rows * WIDTH * 4;
    let num_places = table.num_places(row_bytes);
    let residual = table.random(num_places * row_bytes)?;
    let work = Work::Bytes((num_rows * WIDTH * 6) as f64);
    table.line("embed", &format!("{num_rows} x {WIDTH}"), work, num_places, |place| {
        kernels.embed(&Embed {
            element: ELEMENT,
            width: WIDTH,
            num_rows,
            embedding: embedding.view(),
            learned: None,
            tokens: tokens.view(),
            drawn: tokens.view(),
            positions: tokens.view(),
            residual: residual.slice(place * row_bytes..(place + 1) * row_bytes)?,
        })
    })?;
    Ok(())
}

fn norm(table: &Table, kernels: &Kernels, num_rows: usize) -> Result<(), Error> {
    let row_bytes = num_rows * WIDTH * 4;
    let num_places = table.num_places(row_bytes);
    let (residual, weight) = (table.random(num_places * row_bytes)?, table.random(4 * WIDTH)?);
    let out = table.random(num_rows * WIDTH * 2)?;
    for is_layer_norm in [false, true] {
        let op = if is_layer_norm { "layer norm" } else { "rms norm" };
        let work = Work::Bytes((num_rows * WIDTH * 6) as f64);
        table.line(op, &format!("{num_rows} x {WIDTH}"), work, num_places, |place| {
            kernels.norm(&Norm {
                element: ELEMENT,
                width: WIDTH,
                num_rows,
                residual: residual.slice(place * row_bytes..(place + 1) * row_bytes)?,
                added: None,
                weight: weight.view(),
                bias: is_layer_norm.then(|| weight.view()),
                rows: None,
                out: out.view(),
                epsilon: 1e-5,
            })
        })?;
    }
    Ok(())
}

fn heads(table: &Table, kernels: &Kernels, num_rows: usize) -> Result<(), Error> {
    let width = SHAPE.num_all() * SHAPE.head_dim;
    let kept_width = 2 * SHAPE.num_kv_heads * SHAPE.head_dim;
    let row_bytes = num_rows * width * 2;
    let num_places = table.num_places(row_bytes);
    let (qkv, angles) = (table.random(num_places * row_bytes)?, table.random(num_rows * SHAPE.head_dim * 4)?);
    let kept = table.random(num_rows * kept_width * 2)?;
    let positions = table.indices(0..num_rows)?;
    let slots = table.gpu.upload(bytemuck::cast_slice(&vec![kept.address(); num_rows]))?;
    let work = Work::Bytes((num_rows * (2 * width + 4 * SHAPE.head_dim) * 2) as f64);
    let shape =
        format!("{num_rows} x ({} + 2 x {}) x {}", SHAPE.num_heads, SHAPE.num_kv_heads, SHAPE.head_dim);
    table.line("heads", &shape, work, num_places, |place| {
        kernels.heads(&Heads {
            shape: SHAPE,
            layout: KvLayout { token_stride: kept_width as u64 * 2, keys_offset: 0 },
            num_rows,
            qkv: qkv.slice(place * row_bytes..(place + 1) * row_bytes)?,
            bias: None,
            query_norm: None,
            key_norm: None,
            angles: Some(angles.view()),
            positions: positions.view(),
            // SAFETY: memory of the bench for every row's tokens, which lives until it has waited for the launches.
            slots: unsafe { Slots::vouched_for(slots.view()) },
            epsilon: 1e-5,
        })
    })?;
    Ok(())
}

fn activation(table: &Table, kernels: &Kernels, num_rows: usize) -> Result<(), Error> {
    let row_bytes = num_rows * FEED_FORWARD * 4;
    let num_places = table.num_places(row_bytes);
    let (x, out) = (table.random(num_places * row_bytes)?, table.random(num_rows * FEED_FORWARD * 2)?);
    let work = Work::Bytes((num_rows * FEED_FORWARD * 6) as f64);
    table.line("gated silu", &format!("{num_rows} x {FEED_FORWARD}"), work, num_places, |place| {
        kernels.activate(&Activate {
            activation: Activation::Silu,
            is_gated: true,
            element: ELEMENT,
            width: FEED_FORWARD,
            num_rows,
            x: x.slice(place * row_bytes..(place + 1) * row_bytes)?,
            bias: None,
            out: out.view(),
        })
    })?;
    Ok(())
}
