use fused_kernels::{
    Attention, AttentionSequence, Matrix, activate, activate_gated, add_assign, attention, for_each_chunk,
    layer_norm, linear, rms_norm, rms_norm_in_place, rope_angles, rotate,
};
use fused_virtual_memory::{LinuxMemory, Pinned};

use super::batch::{Batch, Error, num_wanted};
use super::scratch::Scratch;
use crate::kv::{KvCache, KvLayout};
use crate::model::{FeedForward, Layer, Linear, Model, Norm, Positions, Rotary, Shape};
use crate::runner::SequenceStep;

/// Runs the batch through all layers: keys and values into the slots, the residual stream of the rows that outputs are
/// made from ([`num_wanted`]) into `scratch.hidden`.
pub(super) fn forward(
    model: &Model<Matrix>,
    batch: &Batch<'_>,
    kv: &KvCache<LinuxMemory>,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    scratch.resize(&model.shape, &model.positions, batch.num_rows);
    embed(model, batch, scratch);
    let mut slots = kv.pin(batch.sequences.iter().map(SequenceStep::slot_use))?;
    let mut pass = Pass { model, batch, scratch, num_queries: |sequence| sequence.tokens.len() };
    for (layer_idx, layer) in model.layers.iter().enumerate() {
        pass.project(layer);
        store(kv.layout(), batch, &mut slots, &pass.scratch.qkv, layer_idx)?;
        if layer_idx + 1 == model.layers.len() {
            pass.keep_wanted();
        }
        pass.attend(layer, layer_idx, kv.layout(), &slots)?;
        pass.feed_forward(layer);
    }
    Ok(())
}

/// A batch on its way through the layers.
struct Pass<'a> {
    model: &'a Model<Matrix>,
    batch: &'a Batch<'a>,
    scratch: &'a mut Scratch,
    /// How many of a sequence's last rows are still in the scratch.
    num_queries: fn(&SequenceStep<'_>) -> usize,
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
    if let Positions::Rotary(Rotary { frequencies, scale, .. }) = &model.positions {
        let rows = scratch.angles.chunks_exact_mut(model.shape.head_dim);
        for ((_, position), angles) in batch.rows().zip(rows) {
            rope_angles(frequencies, *scale, position, angles);
        }
    }
}

impl Pass<'_> {
    /// qkv = turned(projections(norm(hidden))).
    fn project(&mut self, layer: &Layer<Matrix>) {
        let Self { model, scratch, .. } = self;
        norm(&layer.attention_norm, model.shape.norm_eps, &scratch.hidden, &mut scratch.normed);
        apply(&layer.qkv, &scratch.normed, &mut scratch.qkv);
        turn_heads(&model.shape, layer, &scratch.angles, &mut scratch.qkv);
    }

    /// Goes on with the wanted rows only: in the last layer the others have done their part with their keys and values.
    /// Of a prompt that is one row of many.
    fn keep_wanted(&mut self) {
        let Self { model, batch, scratch, num_queries } = self;
        let mut end = 0;
        let rows = batch.sequences.iter().flat_map(|sequence| {
            end += sequence.tokens.len();
            end - num_wanted(sequence)..end
        });
        scratch.keep(&model.shape, rows);
        *num_queries = num_wanted;
    }

    /// hidden += output(attention(qkv)).
    fn attend(
        &mut self,
        layer: &Layer<Matrix>,
        layer_idx: usize,
        layout: &KvLayout,
        slots: &Pinned<LinuxMemory>,
    ) -> Result<(), Error> {
        let Self { model, batch, scratch, num_queries } = self;
        let shape = &model.shape;
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
        let sequences = batch.sequences.iter().enumerate().map(|(nth, sequence)| {
            let slot = bytemuck::try_cast_slice(slots.bytes(nth)).map_err(|_| Error::Slot)?;
            Ok(AttentionSequence { slot, num_queries: num_queries(sequence) })
        });
        let sequences = sequences.collect::<Result<Vec<_>, Error>>()?;
        let query_stride = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
        attention(&attention_shape, &sequences, &scratch.qkv, query_stride, &mut scratch.attention);
        apply(&layer.attention_output, &scratch.attention, &mut scratch.normed);
        add_assign(&mut scratch.hidden, &scratch.normed);
        Ok(())
    }

    /// hidden += down(f(up(norm(hidden)))).
    fn feed_forward(&mut self, layer: &Layer<Matrix>) {
        let Self { model, scratch, .. } = self;
        let shape = &model.shape;
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
    layout: &KvLayout,
    batch: &Batch<'_>,
    slots: &mut Pinned<LinuxMemory>,
    qkv: &[f32],
    layer_idx: usize,
) -> Result<(), Error> {
    let num_kv = 2 * layout.plane_bytes() / size_of::<f32>();
    let token_bytes = layout.token_bytes();
    let offset = layout.keys_offset(layer_idx) / size_of::<f32>();
    let mut rows = qkv.chunks_exact(qkv.len() / batch.num_rows);
    for (nth, sequence) in batch.sequences.iter().enumerate() {
        let end = sequence.context_len + sequence.tokens.len();
        let bytes = slots.bytes_mut(nth, sequence.context_len * token_bytes..end * token_bytes)?;
        let slot: &mut [f32] = bytemuck::try_cast_slice_mut(bytes).map_err(|_| Error::Slot)?;
        let tokens = slot.chunks_exact_mut(token_bytes / size_of::<f32>());
        for (token, row) in tokens.zip(&mut rows) {
            // Keys, then values, in the slot as at the end of the row.
            token[offset..][..num_kv].copy_from_slice(&row[row.len() - num_kv..]);
        }
    }
    Ok(())
}

fn activation(activation: fused_checkpoint::Activation) -> fused_kernels::Activation {
    match activation {
        fused_checkpoint::Activation::Silu => fused_kernels::Activation::Silu,
        fused_checkpoint::Activation::Gelu => fused_kernels::Activation::Gelu,
        fused_checkpoint::Activation::GeluTanh => fused_kernels::Activation::GeluTanh,
        fused_checkpoint::Activation::Relu => fused_kernels::Activation::Relu,
    }
}
