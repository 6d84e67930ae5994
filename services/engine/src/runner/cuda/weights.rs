use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use fused_gpu::{Buffer, Element, Gpu, Pinned, Result};
use fused_kernels::Elements;
use fused_kernels::cuda::HeadShape;
use half::{bf16, f16};

use super::in_turn::InTurn;
use crate::model::{Layer, Linear, Model, Norm, Positions, Rotary, Shape, Tensor};

/// A weight matrix `[outputs, inputs]` on the device.
#[derive(Debug)]
pub(super) struct DeviceMatrix {
    pub(super) buffer: Buffer,
    pub(super) num_outputs: usize,
    pub(super) num_inputs: usize,
}

/// A model on the device.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) shape: Shape,
    pub(super) element: Element,
    pub(super) embedding: DeviceMatrix,
    /// f32 `[positions, hidden]`.
    pub(super) learned: Option<Buffer>,
    /// f32 `[positions, dim]`: cosines, then sines.
    pub(super) angles: Option<Buffer>,
    pub(super) layers: Vec<DeviceLayer>,
    pub(super) final_norm: DeviceNorm,
    pub(super) head: Option<DeviceMatrix>,
}

#[derive(Debug)]
pub(super) struct DeviceLayer {
    pub(super) attention_norm: DeviceNorm,
    pub(super) qkv: DeviceLinear,
    /// Of queries, and of keys.
    pub(super) qk_norm: Option<(Buffer, Buffer)>,
    pub(super) attention_output: DeviceLinear,
    pub(super) feed_forward_norm: DeviceNorm,
    pub(super) up: DeviceLinear,
    pub(super) down: DeviceLinear,
    pub(super) window: Option<usize>,
    pub(super) attention_scale: f32,
}

/// Vectors in f32.
#[derive(Debug)]
pub(super) struct DeviceNorm {
    pub(super) weight: Buffer,
    pub(super) bias: Option<Buffer>,
}

#[derive(Debug)]
pub(super) struct DeviceLinear {
    pub(super) weight: DeviceMatrix,
    pub(super) bias: Option<Buffer>,
}

/// Takes matrices to the device, from several threads at once: each writes into page-locked memory, from which the device
/// copies while the thread goes on.
#[derive(Debug)]
pub(super) struct Stager<'a> {
    gpu: &'a Gpu,
    element: Element,
    /// Of threads that have nothing to place at the moment.
    stages: Mutex<Vec<Stage>>,
}

/// Page-locked memory of one thread.
type Stage = InTurn<Pinned>;

impl<'a> Stager<'a> {
    const STAGE_BYTES: usize = 8 << 20;

    pub(super) fn new(gpu: &'a Gpu, element: Element) -> Self {
        Self { gpu, element, stages: Mutex::default() }
    }

    /// Copies a matrix to the device in the element's type. It is there when the stream comes to it.
    pub(super) fn place(&self, tensor: &Tensor) -> Result<DeviceMatrix> {
        let (num_outputs, num_inputs) = (tensor.num_rows(), tensor.num_cols());
        let buffer = self.gpu.alloc(2 * num_outputs * num_inputs)?;
        let idle = self.stages.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut stage = match idle {
            Some(stage) => stage,
            None => Stage::new(|| self.gpu.pinned(Self::STAGE_BYTES))?,
        };
        match (self.element, tensor.elements()) {
            (Element::Bf16, Elements::Bf16(elements)) => {
                self.send(elements, bf16::to_bits, &buffer, &mut stage)
            }
            (Element::Bf16, Elements::F16(elements)) => {
                self.send(elements, |x| bf16::from_f32(x.to_f32()).to_bits(), &buffer, &mut stage)
            }
            (Element::Bf16, Elements::F32(elements)) => {
                self.send(elements, |x| bf16::from_f32(x).to_bits(), &buffer, &mut stage)
            }
            (Element::F16, Elements::F16(elements)) => self.send(elements, f16::to_bits, &buffer, &mut stage),
            (Element::F16, Elements::Bf16(elements)) => {
                self.send(elements, |x| f16::from_f32(x.to_f32()).to_bits(), &buffer, &mut stage)
            }
            (Element::F16, Elements::F32(elements)) => {
                self.send(elements, |x| f16::from_f32(x).to_bits(), &buffer, &mut stage)
            }
        }?;
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage);
        Ok(DeviceMatrix { buffer, num_outputs, num_inputs })
    }

    fn send<T: Copy>(
        &self,
        elements: &[T],
        narrow: impl Fn(T) -> u16,
        buffer: &Buffer,
        stage: &mut Stage,
    ) -> Result<()> {
        let at_once = Self::STAGE_BYTES / 2;
        for (piece, nth) in elements.chunks(at_once).zip(0..) {
            let words: &mut [u16] = bytemuck::cast_slice_mut(stage.next().as_mut_slice()?);
            for (word, element) in words.iter_mut().zip(piece) {
                *word = narrow(*element);
            }
            self.gpu.copy_to_device(stage.current(), 0..2 * piece.len(), buffer, 2 * at_once * nth)?;
        }
        Ok(())
    }
}

/// Random weights, a block of which is copied from one end of the model to the other.
#[derive(Debug)]
pub(super) struct RandomWeights<'a> {
    gpu: &'a Gpu,
    block: Buffer,
    num_made: Cell<usize>,
}

impl<'a> RandomWeights<'a> {
    const BLOCK_BYTES: usize = 16 << 20;

    pub(super) fn new(gpu: &'a Gpu, element: Element, seed: u64) -> Result<Self> {
        let mut state = seed | 1;
        // Uniform, with the deviation that models are initialised with.
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.07
        };
        let num = Self::BLOCK_BYTES / 2;
        let block = match element {
            Element::Bf16 => {
                let elements: Vec<bf16> = (0..num).map(|_| bf16::from_f32(next())).collect();
                gpu.upload(bytemuck::cast_slice(&elements))?
            }
            Element::F16 => {
                let elements: Vec<f16> = (0..num).map(|_| f16::from_f32(next())).collect();
                gpu.upload(bytemuck::cast_slice(&elements))?
            }
        };
        Ok(Self { gpu, block, num_made: Cell::new(0) })
    }

    /// A matrix that begins somewhere else in the block than the one before.
    pub(super) fn matrix(&self, num_outputs: usize, num_inputs: usize) -> Result<DeviceMatrix> {
        let len = 2 * num_outputs * num_inputs;
        let buffer = self.gpu.alloc(len)?;
        let nth = self.num_made.replace(self.num_made.get() + 1);
        let mut from = (nth * 1_048_576 * 7 + nth * 4096) % Self::BLOCK_BYTES;
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(Self::BLOCK_BYTES - from);
            self.gpu.copy(self.block.slice(from..from + piece)?, buffer.slice(done..done + piece)?)?;
            (done, from) = (done + piece, 0);
        }
        Ok(DeviceMatrix { buffer, num_outputs, num_inputs })
    }
}

fn vector(gpu: &Gpu, values: &[f32]) -> Result<Buffer> {
    gpu.upload(bytemuck::cast_slice(values))
}

impl Weights {
    /// The heads of every layer.
    pub(super) fn heads(&self) -> HeadShape {
        let Shape { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        HeadShape { element: self.element, num_heads, num_kv_heads, head_dim }
    }

    /// Copies the vectors too.
    pub(super) fn new(gpu: &Gpu, element: Element, model: Model<DeviceMatrix>) -> Result<Self> {
        let shape = model.shape;
        let (learned, angles) = match &model.positions {
            Positions::Learned(rows) => (Some(vector(gpu, rows)?), None),
            Positions::Rotary(Rotary { frequencies, scale, num_positions }) => {
                let mut angles = vec![0.0; num_positions * shape.head_dim];
                for (position, angles) in angles.chunks_exact_mut(shape.head_dim).enumerate() {
                    fused_kernels::rope_angles(frequencies, *scale, position, angles);
                }
                (None, Some(vector(gpu, &angles)?))
            }
        };
        let layers = model.layers.into_iter().map(|layer| DeviceLayer::new(gpu, layer));
        Ok(Self {
            shape,
            element,
            embedding: model.embedding,
            learned,
            angles,
            layers: layers.collect::<Result<_>>()?,
            final_norm: DeviceNorm::new(gpu, &model.final_norm)?,
            head: model.head,
        })
    }

    /// `[vocabulary, hidden]`.
    pub(super) fn head(&self) -> &DeviceMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl DeviceLayer {
    fn new(gpu: &Gpu, layer: Layer<DeviceMatrix>) -> Result<Self> {
        let qk_norm = layer.qk_norm.map(|norm| Ok((vector(gpu, &norm.query)?, vector(gpu, &norm.key)?)));
        Ok(Self {
            attention_norm: DeviceNorm::new(gpu, &layer.attention_norm)?,
            qkv: DeviceLinear::new(gpu, layer.qkv)?,
            qk_norm: qk_norm.transpose()?,
            attention_output: DeviceLinear::new(gpu, layer.attention_output)?,
            feed_forward_norm: DeviceNorm::new(gpu, &layer.feed_forward_norm)?,
            up: DeviceLinear::new(gpu, layer.up)?,
            down: DeviceLinear::new(gpu, layer.down)?,
            window: layer.window,
            attention_scale: layer.attention_scale,
        })
    }
}

impl DeviceNorm {
    fn new(gpu: &Gpu, norm: &Norm) -> Result<Self> {
        match norm {
            Norm::Rms(weight) => Ok(Self { weight: vector(gpu, weight)?, bias: None }),
            Norm::Layer { weight, bias } => {
                Ok(Self { weight: vector(gpu, weight)?, bias: Some(vector(gpu, bias)?) })
            }
        }
    }
}

impl DeviceLinear {
    fn new(gpu: &Gpu, linear: Linear<DeviceMatrix>) -> Result<Self> {
        let bias = linear.bias.as_deref().map(|bias| vector(gpu, bias)).transpose()?;
        Ok(Self { weight: linear.weight, bias })
    }
}
