//! GPT-2: LayerNorm, learned positions, plain feed-forward. Its matrices are stored input-major, `[inputs, outputs]`.

use super::source::Source;
use super::{Error, FeedForward, Layer, Linear, Model, Positions};

pub(super) fn load<W: Send>(source: &Source<'_, W>) -> Result<Model<W>, Error> {
    let config = source.config;
    let prefix = source.prefix();
    let hidden = config.hidden_size;
    let shape = source.shape(FeedForward::Plain);
    let (embedding, head) = source.embedding_and_head()?;
    let positions = source.matrix(&format!("{prefix}wpe.weight"), config.max_positions, hidden)?;

    let layers = source.layers(|layer_idx| {
        let name = |part: &str| format!("{prefix}h.{layer_idx}.{part}");
        Ok(Layer {
            attention_norm: source.layer_norm(&name("ln_1"), hidden)?,
            qkv: linear(source, &name("attn.c_attn"), hidden, 3 * hidden)?,
            qk_norm: None,
            attention_output: linear(source, &name("attn.c_proj"), hidden, hidden)?,
            feed_forward_norm: source.layer_norm(&name("ln_2"), hidden)?,
            up: linear(source, &name("mlp.c_fc"), hidden, config.intermediate_size)?,
            down: linear(source, &name("mlp.c_proj"), config.intermediate_size, hidden)?,
            window: config.sliding_window[layer_idx],
            attention_scale: source.attention_scale(layer_idx),
        })
    })?;
    Ok(Model {
        shape,
        embedding,
        positions: Positions::Learned(positions.to_f32()),
        layers,
        final_norm: source.layer_norm(&format!("{prefix}ln_f"), hidden)?,
        head,
    })
}

fn linear<W: Send>(
    source: &Source<'_, W>,
    name: &str,
    num_inputs: usize,
    num_outputs: usize,
) -> Result<Linear<W>, Error> {
    let weight = source.matrix(&format!("{name}.weight"), num_inputs, num_outputs)?.transposed();
    source.linear(weight, Some(source.vector(&format!("{name}.bias"), num_outputs)?))
}
