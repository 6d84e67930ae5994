//! Llama and what is built like it (Mistral, Qwen2, Qwen3): RMSNorm, rotary positions, gated feed-forward. Biases, head
//! norms and windows are the configuration's.

use fused_checkpoint::Rope;

use super::source::Source;
use super::{Error, FeedForward, Layer, Linear, Model, Positions, QkNorm, Rotary, Tensor, rope};

pub(super) fn load<W: Send>(source: &Source<'_, W>, rope: &Rope) -> Result<Model<W>, Error> {
    let config = source.config;
    let prefix = source.prefix();
    let hidden = config.hidden_size;
    let shape = source.shape(FeedForward::Gated);
    let (num_queries, num_keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let (embedding, head) = source.embedding_and_head()?;
    let order = |num_heads| rope::order(rope, config.head_dim, num_heads);

    let layers = source.layers(|layer_idx| {
        let name = |part: &str| format!("{prefix}layers.{layer_idx}.{part}");
        let attention = |part: &str| name(&format!("self_attn.{part}"));
        let (queries, keys, values) = (attention("q_proj"), attention("k_proj"), attention("v_proj"));
        let qkv = [
            Part { order: order(config.num_heads), ..Part::new(&queries, num_queries) },
            Part { order: order(config.num_kv_heads), ..Part::new(&keys, num_keys) },
            Part::new(&values, num_keys),
        ];
        let output = attention("o_proj");
        let (gate, up, down) = (name("mlp.gate_proj"), name("mlp.up_proj"), name("mlp.down_proj"));
        let gate_up = [&gate, &up].map(|name| Part::new(name, config.intermediate_size));
        let qk_norm = || -> Result<QkNorm, Error> {
            let norm = |part: &str| -> Result<Vec<f32>, Error> {
                Ok(in_order(source.vector(&attention(part), config.head_dim)?, order(1).as_deref()))
            };
            Ok(QkNorm { query: norm("q_norm.weight")?, key: norm("k_norm.weight")? })
        };
        let linear = |parts: &[Part<'_>], num_inputs, has_bias| {
            fused(source, &Projections { parts, num_inputs, has_bias })
        };
        Ok(Layer {
            attention_norm: source.rms_norm(&name("input_layernorm"), hidden)?,
            qkv: linear(&qkv, hidden, config.qkv_bias)?,
            qk_norm: config.qk_norm.then(qk_norm).transpose()?,
            attention_output: linear(
                &[Part::new(&output, hidden)],
                num_queries,
                config.attention_output_bias,
            )?,
            feed_forward_norm: source.rms_norm(&name("post_attention_layernorm"), hidden)?,
            up: linear(&gate_up, hidden, config.mlp_bias)?,
            down: linear(&[Part::new(&down, hidden)], config.intermediate_size, config.mlp_bias)?,
            window: config.sliding_window[layer_idx],
            attention_scale: source.attention_scale(layer_idx),
        })
    })?;
    Ok(Model {
        shape,
        embedding,
        positions: Positions::Rotary(Rotary::new(rope)),
        layers,
        final_norm: source.rms_norm(&format!("{prefix}norm"), hidden)?,
        head,
    })
}

/// Projections of one input.
struct Projections<'a> {
    parts: &'a [Part<'a>],
    num_inputs: usize,
    has_bias: bool,
}

/// One of them.
struct Part<'a> {
    name: &'a str,
    num_outputs: usize,
    /// The outputs' order, where it is not the checkpoint's.
    order: Option<Vec<usize>>,
}

impl<'a> Part<'a> {
    fn new(name: &'a str, num_outputs: usize) -> Self {
        Self { name, num_outputs, order: None }
    }
}

/// Projections of the same input as one matrix, their outputs in order.
fn fused<W: Send>(source: &Source<'_, W>, projections: &Projections<'_>) -> Result<Linear<W>, Error> {
    let mut weight = Tensor::empty(projections.num_inputs);
    let mut bias = Vec::new();
    for Part { name, num_outputs, order } in projections.parts {
        let part = source.matrix(&format!("{name}.weight"), *num_outputs, projections.num_inputs)?;
        weight = weight.stacked(match order {
            Some(order) => part.rows_in(order),
            None => part,
        });
        if projections.has_bias {
            let part = source.vector(&format!("{name}.bias"), *num_outputs)?;
            bias.extend(in_order(part, order.as_deref()));
        }
    }
    source.linear(weight, projections.has_bias.then_some(bias))
}

fn in_order(values: Vec<f32>, order: Option<&[usize]>) -> Vec<f32> {
    match order {
        Some(order) => order.iter().map(|&idx| values[idx]).collect(),
        None => values,
    }
}
