//! A model without a checkpoint: the shape of a configuration, filled with whatever the device makes up. For measurements.

use fused_checkpoint::{Family, ModelConfig};

use super::source::attention_scale;
use super::{Error, FeedForward, Layer, Linear, Model, Norm, Positions, QkNorm, Rotary, Shape};

impl<W> Model<W> {
    /// A model of this configuration; `matrix` makes a weight of so many outputs and inputs.
    ///
    /// # Errors
    /// The device has no room.
    pub fn dummy(
        config: &ModelConfig,
        matrix: &dyn Fn(usize, usize) -> Result<W, Error>,
    ) -> Result<Self, Error> {
        let is_gpt2 = config.family == Family::Gpt2;
        let feed_forward = if is_gpt2 { FeedForward::Plain } else { FeedForward::Gated };
        let shape = Shape::of(config, config.vocab_size, feed_forward);
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        let (num_queries, num_kv) =
            (shape.num_heads * shape.head_dim, 2 * shape.num_kv_heads * shape.head_dim);
        let norm = || match is_gpt2 {
            true => Norm::Layer { weight: vec![1.0; hidden], bias: vec![0.0; hidden] },
            false => Norm::Rms(vec![1.0; hidden]),
        };
        let linear = |num_outputs: usize, num_inputs: usize, has_bias: bool| -> Result<Linear<W>, Error> {
            let bias = (has_bias || is_gpt2).then(|| vec![0.0; num_outputs]);
            Ok(Linear { weight: matrix(num_outputs, num_inputs)?, bias })
        };
        let num_up = if is_gpt2 { inner } else { 2 * inner };
        let layers = (0..config.num_layers).map(|layer_idx| {
            let ones = || vec![1.0; shape.head_dim];
            Ok(Layer {
                attention_norm: norm(),
                qkv: linear(num_queries + num_kv, hidden, config.qkv_bias)?,
                qk_norm: config.qk_norm.then(|| QkNorm { query: ones(), key: ones() }),
                attention_output: linear(hidden, num_queries, config.attention_output_bias)?,
                feed_forward_norm: norm(),
                up: linear(num_up, hidden, config.mlp_bias)?,
                down: linear(hidden, inner, config.mlp_bias)?,
                window: config.sliding_window.get(layer_idx).copied().flatten(),
                attention_scale: attention_scale(config, layer_idx),
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_, Error>>()?,
            embedding: matrix(shape.vocab_size, hidden)?,
            positions: match &config.rope {
                Some(rope) => Positions::Rotary(Rotary::new(rope)),
                None => Positions::Learned(vec![0.0; shape.max_positions * hidden]),
            },
            final_norm: norm(),
            head: match config.tie_word_embeddings {
                true => None,
                false => Some(matrix(shape.vocab_size, hidden)?),
            },
            shape,
        })
    }
}
