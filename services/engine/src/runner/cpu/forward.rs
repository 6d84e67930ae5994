use fused_kernels::{
    Attention, AttentionSequence, Matrix, activate, activate_gated, add_assign, attention, for_each_chunk,
    layer_norm, linear, rms_norm, rms_norm_in_place, rope_angles, rotate,
};
use fused_virtual_memory::LinuxMemory;

use super::batch::{Batch, Error};
use super::scratch::Scratch;
use crate::kv::KvCache;
use crate::model::{FeedForward, Layer, Linear, Model, Norm, Positions, Shape};

/// Runs the batch through all layers: keys and values into the slots, the residual stream into `scratch.hidden`.
pub(super) fn forward(
    model: &Model<Matrix>,
    batch: &Batch<'_>,
    kv: &mut KvCache<LinuxMemory>,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    scratch.resize(&model.shape, &model.positions, batch.num_rows);
    embed(model, batch, scratch);
    for (layer_idx, layer) in model.layers.iter().enumerate() {
        attend(model, batch, kv, scratch, layer_idx)?;
        feed_forward(&model.shape, layer, scratch);
    }
    Ok(())
}

/// y = norm(x).
pub(super) fn norm(norm: &Norm, epsilon: f32, x: &[f32], y: &mut [f32]) {
    match norm {
        Norm::Rms(weight) => rms_norm(x, weight, epsilon, y),
        Norm::Layer { weight, bias } => layer_norm(x, weight, bias, epsilon, y),
    }
}

fn apply(layer: &Linear<Matrix>, x: &[f32], y: &mut [f32]) {
    linear(x, &layer.weight, layer.bias.as_deref(), y);
}

fn embed(model: &Model<Matrix>, batch: &Batch<'_>, scratch: &mut Scratch) {
    let width = model.shape.hidden_size;
    for ((token, position), row) in batch.rows().zip(scratch.hidden.chunks_exact_mut(width)) {
        model.embedding.read_row(token.row(), row);
        if let Positions::Learned(rows) = &model.positions {
            add_assign(row, &rows[position * width..][..width]);
        }
    }
    if let Positions::Rotary(frequencies) = &model.positions {
        for ((_, position), angles) in
            batch.rows().zip(scratch.angles.chunks_exact_mut(2 * frequencies.len()))
        {
            rope_angles(frequencies, position, angles);
        }
    }
}

/// hidden += output(attention(norm(hidden))).
fn attend(
    model: &Model<Matrix>,
    batch: &Batch<'_>,
    kv: &mut KvCache<LinuxMemory>,
    scratch: &mut Scratch,
    layer_idx: usize,
) -> Result<(), Error> {
    let (shape, layer) = (&model.shape, &model.layers[layer_idx]);
    norm(&layer.attention_norm, shape.norm_eps, &scratch.hidden, &mut scratch.normed);
    apply(&layer.qkv, &scratch.normed, &mut scratch.qkv);
    turn_heads(shape, layer, &scratch.angles, &mut scratch.qkv);
    store(shape, batch, kv, &scratch.qkv, layer_idx)?;

    let layout = *kv.layout();
    let attention_shape = Attention {
        num_heads: shape.num_heads,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        scale: layer.attention_scale,
        window: layer.window,
        token_stride: layout.token_bytes() / size_of::<f32>(),
        keys_offset: layout.keys_offset(layer_idx) / size_of::<f32>(),
        values_offset: layout.values_offset(layer_idx) / size_of::<f32>(),
    };
    let sequences = batch.sequences.iter().map(|sequence| {
        let num_queries = sequence.tokens.len();
        let slot = kv.slot_bytes(sequence.slot, sequence.context_len + num_queries)?;
        let slot = bytemuck::try_cast_slice(slot).map_err(|_| Error::Slot)?;
        Ok(AttentionSequence { slot, num_queries })
    });
    let sequences = sequences.collect::<Result<Vec<_>, Error>>()?;
    let query_stride = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    attention(&attention_shape, &sequences, &scratch.qkv, query_stride, &mut scratch.attention);

    apply(&layer.attention_output, &scratch.attention, &mut scratch.normed);
    add_assign(&mut scratch.hidden, &scratch.normed);
    Ok(())
}

/// Norms (where the model does) and turns queries and keys in place.
fn turn_heads(shape: &Shape, layer: &Layer<Matrix>, angles: &[f32], qkv: &mut [f32]) {
    let num_queries = shape.num_heads * shape.head_dim;
    let num_keys = shape.num_kv_heads * shape.head_dim;
    let width = num_queries + 2 * num_keys;
    // Where positions are learned there are no angles, and nothing to turn.
    let angles_width = angles.len() / (qkv.len() / width);
    for_each_chunk(qkv, width, 4 * (num_queries + num_keys), |first_row, rows| {
        for (row, row_idx) in rows.chunks_exact_mut(width).zip(first_row..) {
            if let Some(qk_norm) = &layer.qk_norm {
                rms_norm_in_place(&mut row[..num_queries], &qk_norm.query, shape.norm_eps);
                rms_norm_in_place(&mut row[num_queries..][..num_keys], &qk_norm.key, shape.norm_eps);
            }
            if angles_width > 0 {
                rotate(&angles[row_idx * angles_width..][..angles_width], &mut row[..num_queries + num_keys]);
            }
        }
    });
}

/// Writes the new tokens' keys and values of one layer into their slots.
fn store(
    shape: &Shape,
    batch: &Batch<'_>,
    kv: &mut KvCache<LinuxMemory>,
    qkv: &[f32],
    layer_idx: usize,
) -> Result<(), Error> {
    let layout = *kv.layout();
    let num_queries = shape.num_heads * shape.head_dim;
    let num_kv = 2 * shape.num_kv_heads * shape.head_dim;
    let offset = layout.keys_offset(layer_idx) / size_of::<f32>();
    let mut rows = qkv.chunks_exact(num_queries + num_kv);
    for sequence in batch.sequences {
        let tokens = sequence.context_len..sequence.context_len + sequence.tokens.len();
        let bytes = kv.slot_bytes_mut(sequence.slot, tokens)?;
        let slot: &mut [f32] = bytemuck::try_cast_slice_mut(bytes).map_err(|_| Error::Slot)?;
        let tokens = slot.chunks_exact_mut(layout.token_bytes() / size_of::<f32>());
        for (token, row) in tokens.zip(&mut rows) {
            // Keys, then values, in the slot as in the row.
            token[offset..][..num_kv].copy_from_slice(&row[num_queries..]);
        }
    }
    Ok(())
}

/// hidden += down(f(up(norm(hidden)))).
fn feed_forward(shape: &Shape, layer: &Layer<Matrix>, scratch: &mut Scratch) {
    norm(&layer.feed_forward_norm, shape.norm_eps, &scratch.hidden, &mut scratch.normed);
    apply(&layer.up, &scratch.normed, &mut scratch.up);
    let activation = activation(shape.activation);
    let inner = match shape.feed_forward {
        FeedForward::Plain => {
            activate(activation, &mut scratch.up);
            &scratch.up
        }
        FeedForward::Gated => {
            activate_gated(activation, &scratch.up, shape.intermediate_size, &mut scratch.gated);
            &scratch.gated
        }
    };
    apply(&layer.down, inner, &mut scratch.normed);
    add_assign(&mut scratch.hidden, &scratch.normed);
}

fn activation(activation: fused_checkpoint::Activation) -> fused_kernels::Activation {
    match activation {
        fused_checkpoint::Activation::Silu => fused_kernels::Activation::Silu,
        fused_checkpoint::Activation::Gelu => fused_kernels::Activation::Gelu,
        fused_checkpoint::Activation::GeluTanh => fused_kernels::Activation::GeluTanh,
        fused_checkpoint::Activation::Relu => fused_kernels::Activation::Relu,
    }
}
