use fused_gpu::{Output, Product, Products, View};
use fused_kernels::Activation;
use fused_kernels::cuda::{
    Activate, Attention, Decode, DecodeOrder, Embed, Few, FewInput, FewOutput, Heads, Kernels,
    KvLayout as DeviceLayout, MAX_FEW_ROWS, MIN_FEW_OUTPUTS, Norm, Prefill, Sample,
};
use fused_virtual_memory::{CudaMemory, Pinned};

use super::batch::{Batch, OnDevice, PinnedSlots};
use super::wanted::Wanted;
use super::weights::{DeviceLinear, DeviceMatrix, DeviceNorm};
use super::{CudaRunner, Error};
use crate::kv::KvLayout;
use crate::model::FeedForward;

/// Has a batch run: keys and values into the slots, what is wanted into the results.
pub(super) fn run(
    runner: &mut CudaRunner,
    batch: &Batch<'_>,
    layout: &KvLayout,
    pinned: &Pinned<CudaMemory>,
    wanted: &[Wanted<'_>],
) -> Result<(), Error> {
    let slots = PinnedSlots { pinned, token_bytes: layout.token_bytes() };
    if let Some(num_rows) = batch.graph_rows(runner.max_graph_rows()) {
        let on_device = runner.buffers.send(&runner.gpu, batch, &slots, wanted, num_rows)?;
        return replay(runner, on_device, layout);
    }
    let on_device = runner.buffers.send(&runner.gpu, batch, &slots, wanted, batch.num_rows())?;
    layers(runner, on_device, layout)?;
    // In pieces: what is added to the residual with the last norm, is added once to every row.
    let at_once = runner.scratch.max_logit_rows;
    for first in (0..wanted.len()).step_by(at_once) {
        sample(runner, on_device, first, at_once.min(wanted.len() - first))?;
    }
    Ok(())
}

/// Replays the graph for so many rows; runs the step without one where there is none.
fn replay(runner: &mut CudaRunner, on_device: OnDevice, layout: &KvLayout) -> Result<(), Error> {
    match runner.graphs.get(&(on_device.num_rows, on_device.order)) {
        Some(graph) => Ok(graph.launch()?),
        None => {
            layers(runner, on_device, layout)?;
            sample(runner, on_device, 0, on_device.num_rows)
        }
    }
}

/// A step of padding that is not recorded: products of this many rows are timed, and the best way is chosen.
pub(super) fn warm_up(runner: &mut CudaRunner, num_rows: usize, layout: &KvLayout) -> Result<(), Error> {
    let on_device = runner.buffers.send_padding(&runner.gpu, num_rows, DecodeOrder::ByPiece)?;
    layers(runner, on_device, layout)?;
    sample(runner, on_device, 0, num_rows.min(runner.scratch.max_logit_rows))
}

/// Records the graph for so many rows.
pub(super) fn record(
    runner: &mut CudaRunner,
    num_rows: usize,
    order: DecodeOrder,
    layout: &KvLayout,
) -> Result<(), Error> {
    let on_device = runner.buffers.send_padding(&runner.gpu, num_rows, order)?;
    let gpu = runner.gpu.clone();
    let graph = gpu.capture(|| {
        layers(runner, on_device, layout)?;
        sample(runner, on_device, 0, num_rows)
    })?;
    runner.graphs.insert((num_rows, order), graph);
    Ok(())
}

/// All layers: keys and values into the slots, the residual stream of all rows into the scratch.
fn layers(runner: &mut CudaRunner, on_device: OnDevice, layout: &KvLayout) -> Result<(), Error> {
    embed(runner, on_device)?;
    for layer_idx in 0..runner.weights.layers.len() {
        attend(runner, on_device, layer_idx, layout)?;
        feed_forward(runner, on_device, layer_idx)?;
    }
    Ok(())
}

fn embed(runner: &CudaRunner, on_device: OnDevice) -> Result<(), Error> {
    let CudaRunner { weights, scratch, buffers, results, .. } = runner;
    Ok(runner.kernels.embed(&Embed {
        element: weights.element,
        width: weights.shape.hidden_size,
        num_rows: on_device.num_rows,
        embedding: weights.embedding.buffer.view(),
        learned: weights.learned.as_ref().map(|learned| learned.view()),
        tokens: buffers.tokens(on_device)?,
        drawn: results.tokens.view(),
        positions: buffers.positions(on_device)?,
        residual: scratch.residual.view(),
    })?)
}

/// residual += output(attention(turned(qkv(norm(residual))))).
fn attend(
    runner: &mut CudaRunner,
    on_device: OnDevice,
    layer_idx: usize,
    layout: &KvLayout,
) -> Result<(), Error> {
    let CudaRunner { kernels, products, weights, buffers, scratch, .. } = runner;
    let (layer, shape, num_rows) = (&weights.layers[layer_idx], &weights.shape, on_device.num_rows);
    let head_shape = weights.heads();
    let device_layout = DeviceLayout {
        token_stride: layout.token_bytes() as u64,
        keys_offset: layout.keys_offset(layer_idx) as u64,
    };
    let (positions, slots) = (buffers.positions(on_device)?, buffers.slots(on_device)?);
    let heads = Heads {
        shape: head_shape,
        layout: device_layout,
        num_rows,
        qkv: scratch.qkv.view(),
        bias: bias(&layer.qkv),
        query_norm: layer.qk_norm.as_ref().map(|(query, _)| query.view()),
        key_norm: layer.qk_norm.as_ref().map(|(_, key)| key.view()),
        angles: weights.angles.as_ref().map(|angles| angles.view()),
        positions,
        slots,
        epsilon: shape.norm_eps,
    };
    // The bias of the product before is added here, where the residual is read anyway.
    let added = layer_idx.checked_sub(1).and_then(|before| weights.layers[before].down.bias.as_ref());
    let normed = NormStep { norm: &layer.attention_norm, added: added.map(|added| added.view()), num_rows };
    let normed = normed.of(weights, scratch.residual.view(), scratch.normed.view());
    let product = ProductStep { weight: &layer.qkv.weight, output: Output::Element, num_rows };
    let product = product.of(weights.element, scratch.normed.view(), scratch.qkv.view());
    multiply_to_heads(kernels, products, &normed, &product, &heads)?;
    let attention = Attention {
        shape: head_shape,
        layout: device_layout,
        scale: layer.attention_scale,
        window: layer.window,
        num_rows,
        qkv: scratch.qkv.view(),
        out: scratch.attention.view(),
        positions,
        slots,
    };
    if on_device.num_tiles > 0 {
        kernels.prefill(
            &attention,
            &Prefill { tiles: buffers.tiles(on_device)?, num_tiles: on_device.num_tiles },
        )?;
    }
    if on_device.num_pieces > 0 {
        let (pieces, num_parts) = buffers.pieces(on_device)?;
        kernels.decode(
            &attention,
            &Decode {
                pieces,
                num_pieces: on_device.num_pieces,
                order: on_device.order,
                num_parts,
                partial: scratch.partial.view(),
                counters: scratch.counters.view(),
            },
        )?;
    }
    let product = ProductStep { weight: &layer.attention_output.weight, output: Output::AddToF32, num_rows };
    let product = product.of(weights.element, scratch.attention.view(), scratch.residual.view());
    multiply(kernels, products, &product)
}

/// residual += down(f(up(norm(residual)))).
fn feed_forward(runner: &mut CudaRunner, on_device: OnDevice, layer_idx: usize) -> Result<(), Error> {
    let CudaRunner { kernels, products, weights, scratch, .. } = runner;
    let (layer, shape, num_rows) = (&weights.layers[layer_idx], &weights.shape, on_device.num_rows);
    let normed = NormStep { norm: &layer.feed_forward_norm, added: bias(&layer.attention_output), num_rows };
    let normed = normed.of(weights, scratch.residual.view(), scratch.normed.view());
    let product = ProductStep { weight: &layer.up.weight, output: Output::Element, num_rows };
    let product = product.of(weights.element, scratch.normed.view(), scratch.up.view());
    let activate = Activate {
        activation: activation(shape.activation),
        is_gated: shape.feed_forward == FeedForward::Gated,
        element: weights.element,
        width: shape.intermediate_size,
        num_rows,
        x: scratch.up.view(),
        bias: bias(&layer.up),
        out: scratch.inner.view(),
    };
    multiply_and_activate(kernels, products, &normed, &product, &activate)?;
    let product = ProductStep { weight: &layer.down.weight, output: Output::AddToF32, num_rows };
    let product = product.of(weights.element, scratch.inner.view(), scratch.residual.view());
    multiply(kernels, products, &product)
}

/// The logits of `num` wanted rows from the `first` on, and what is made of them.
fn sample(runner: &mut CudaRunner, on_device: OnDevice, first: usize, num: usize) -> Result<(), Error> {
    let CudaRunner { kernels, products, weights, buffers, scratch, results, .. } = runner;
    let added = weights.layers.last().and_then(|layer| bias(&layer.down));
    let normed = NormStep { norm: &weights.final_norm, added, num_rows: num };
    let norm = normed.of(weights, scratch.residual.view(), scratch.last.view());
    kernels.norm(&Norm { rows: Some(buffers.wanted(on_device, first)?), ..norm })?;
    let product = ProductStep { weight: weights.head(), output: Output::F32, num_rows: num };
    multiply(kernels, products, &product.of(weights.element, scratch.last.view(), scratch.logits.view()))?;
    let row_bytes = results.row_bytes();
    Ok(kernels.sample(&Sample {
        vocabulary: weights.shape.vocab_size,
        num_rows: num,
        logits: scratch.logits.view(),
        rows: buffers.sampling(on_device, first)?,
        last_tokens: buffers.tokens(on_device)?,
        tokens: results.tokens.slice(4 * first..4 * (first + num))?,
        logprobs: results.logprobs.slice(row_bytes * first..row_bytes * (first + num))?,
        max_top: results.max_top,
    })?)
}

/// By our own kernel where there are few rows, by the library's where there are more.
fn multiply(kernels: &Kernels, products: &mut Products, product: &Product<'_>) -> Result<(), Error> {
    if is_few(product) {
        return Ok(kernels.multiply_few(&Few::from(product))?);
    }
    Ok(products.multiply(product)?)
}

/// A norm, the product that reads it, and what finishes the heads that it makes: one launch where there are few rows, and no
/// norms of heads, for which a head must be whole.
fn multiply_to_heads(
    kernels: &Kernels,
    products: &mut Products,
    norm: &Norm<'_>,
    product: &Product<'_>,
    heads: &Heads<'_>,
) -> Result<(), Error> {
    if is_few(product) && heads.query_norm.is_none() && heads.key_norm.is_none() {
        let (input, output) = (few_input(kernels, norm)?, FewOutput::Heads(*heads));
        return Ok(kernels.multiply_few(&Few { input, output, ..Few::from(product) })?);
    }
    multiply_normed(kernels, products, norm, product)?;
    Ok(kernels.heads(heads)?)
}

/// A norm, the product that reads it, and the function behind that: one launch where there are few rows.
fn multiply_and_activate(
    kernels: &Kernels,
    products: &mut Products,
    norm: &Norm<'_>,
    product: &Product<'_>,
    activate: &Activate<'_>,
) -> Result<(), Error> {
    if is_few(product) {
        let &Activate { activation, is_gated, bias, out, .. } = activate;
        let output = FewOutput::Activated { activation, is_gated, bias, out };
        let input = few_input(kernels, norm)?;
        return Ok(kernels.multiply_few(&Few { input, output, ..Few::from(product) })?);
    }
    multiply_normed(kernels, products, norm, product)?;
    Ok(kernels.activate(activate)?)
}

/// A norm and the product that reads it.
fn multiply_normed(
    kernels: &Kernels,
    products: &mut Products,
    norm: &Norm<'_>,
    product: &Product<'_>,
) -> Result<(), Error> {
    if is_few(product) {
        let input = few_input(kernels, norm)?;
        return Ok(kernels.multiply_few(&Few { input, ..Few::from(product) })?);
    }
    kernels.norm(norm)?;
    Ok(products.multiply(product)?)
}

fn is_few(product: &Product<'_>) -> bool {
    let shape = product.shape;
    product.num_rows <= MAX_FEW_ROWS
        && shape.num_inputs.is_multiple_of(8)
        && shape.num_outputs >= MIN_FEW_OUTPUTS
}

/// What a product of few rows reads: the residual stream as it is, where the product can norm it itself.
fn few_input<'a>(kernels: &Kernels, norm: &Norm<'a>) -> Result<FewInput<'a>, Error> {
    if norm.bias.is_none() && norm.added.is_none() {
        return Ok(FewInput::RmsNorm { residual: norm.residual, weight: norm.weight, epsilon: norm.epsilon });
    }
    kernels.norm(norm)?;
    Ok(FewInput::Plain(norm.out))
}

struct NormStep<'a> {
    norm: &'a DeviceNorm,
    added: Option<View<'a>>,
    num_rows: usize,
}

impl<'a> NormStep<'a> {
    fn of(&self, weights: &super::Weights, residual: View<'a>, out: View<'a>) -> Norm<'a> {
        Norm {
            element: weights.element,
            width: weights.shape.hidden_size,
            num_rows: self.num_rows,
            residual,
            added: self.added,
            weight: self.norm.weight.view(),
            bias: self.norm.bias.as_ref().map(|bias| bias.view()),
            rows: None,
            out,
            epsilon: weights.shape.norm_eps,
        }
    }
}

struct ProductStep<'a> {
    weight: &'a DeviceMatrix,
    output: Output,
    num_rows: usize,
}

impl<'a> ProductStep<'a> {
    fn of(&self, element: fused_gpu::Element, x: View<'a>, out: View<'a>) -> Product<'a> {
        let shape = fused_gpu::Shape {
            num_inputs: self.weight.num_inputs,
            num_outputs: self.weight.num_outputs,
            element,
            output: self.output,
        };
        Product { shape, num_rows: self.num_rows, x, weight: self.weight.buffer.view(), out }
    }
}

fn bias(linear: &DeviceLinear) -> Option<View<'_>> {
    linear.bias.as_ref().map(|bias| bias.view())
}

fn activation(activation: fused_checkpoint::Activation) -> Activation {
    match activation {
        fused_checkpoint::Activation::Silu => Activation::Silu,
        fused_checkpoint::Activation::Gelu => Activation::Gelu,
        fused_checkpoint::Activation::GeluTanh => Activation::GeluTanh,
        fused_checkpoint::Activation::Relu => Activation::Relu,
    }
}
