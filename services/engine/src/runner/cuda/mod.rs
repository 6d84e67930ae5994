//! The forward pass on an NVIDIA GPU: weights, keys and values in 16 bits, the residual stream and all sums in f32.
//!
//! All sequences' new tokens are the rows of one batch, as on the CPU. What a step needs to know travels in one copy; steps in
//! which every sequence decodes are replayed from CUDA graphs, one for each of some batch sizes, the rows that are missing being
//! padded. Sampling: the likeliest token is found on the device; rows that are drawn from or looked at are sampled by the same
//! code as on the CPU.

mod batch;
mod forward;
mod output;
mod scratch;
mod weights;

use std::collections::HashMap;

use fused_checkpoint::{Checkpoint, Dtype, ModelConfig};
use fused_gpu::{Element, Gpu, Graph, Products};
use fused_kernels::cuda::{HEAD_DIMS, Kernels};
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::kv::{KvCache, KvCopy, KvLayout, SlotUse};
use crate::model::{self, Model, Shape};
use batch::{Batch, BatchBuffers, OnDevice};
use scratch::Scratch;
use weights::Weights;

/// Why a step cannot be run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("a step that cannot be: {0}")]
    Batch(String),
    #[error(transparent)]
    Kv(#[from] crate::kv::Error),
    #[error(transparent)]
    Memory(#[from] fused_virtual_memory::Error),
    #[error(transparent)]
    Gpu(#[from] fused_gpu::Error),
    #[error(transparent)]
    Kernel(#[from] fused_kernels::cuda::Error),
}

/// Runs a model on one GPU.
#[derive(Debug)]
pub struct CudaRunner {
    gpu: Gpu,
    kernels: Kernels,
    products: Products,
    weights: Weights,
    buffers: BatchBuffers,
    /// Of steps from graphs, in which a copy of a few kilobytes is a part of the time.
    small_buffers: BatchBuffers,
    scratch: Scratch,
    /// By how many rows they run.
    graphs: HashMap<usize, Graph>,
}

impl CudaRunner {
    /// Loads the weights, adapted to `patch` where they are not yet, with `embeddings` where they are given. A step will have at
    /// most `max_rows` tokens of `max_sequences` sequences, or else buffers grow.
    ///
    /// # Errors
    /// The weights do not fit the configuration, the patch vocabulary or the kernels; the GPU has no room.
    pub fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        patch: Option<&PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        max_rows: usize,
        max_sequences: usize,
    ) -> Result<Self, model::Error> {
        let place_error = |error: Error| model::Error::Place(Box::new(error));
        let element = match config.dtype {
            Some(Dtype::F16) => Element::F16,
            Some(Dtype::Bf16 | Dtype::F32) | None => Element::Bf16,
        };
        if !HEAD_DIMS.contains(&config.head_dim) {
            let message =
                format!("heads of {} elements are not offered on a GPU, only {HEAD_DIMS:?}", config.head_dim);
            return Err(place_error(Error::Batch(message)));
        }
        let place = |tensor: model::Tensor| {
            weights::DeviceMatrix::place(gpu, element, &tensor).map_err(|error| place_error(error.into()))
        };
        let model = Model::load(checkpoint, config, patch, embeddings, &place)?;
        Self::new(gpu, element, model, max_rows, max_sequences).map_err(place_error)
    }

    /// A model of random weights made on the device, for measurements.
    ///
    /// # Errors
    /// The kernels are not for this configuration; the GPU has no room.
    pub fn dummy(
        gpu: &Gpu,
        config: &ModelConfig,
        seed: u64,
        max_rows: usize,
        max_sequences: usize,
    ) -> Result<Self, model::Error> {
        let place_error = |error: Error| model::Error::Place(Box::new(error));
        let random = weights::RandomWeights::new(gpu, Element::Bf16, seed);
        let random = random.map_err(|error| place_error(error.into()))?;
        let matrix = |num_outputs, num_inputs| {
            random.matrix(num_outputs, num_inputs).map_err(|error| place_error(error.into()))
        };
        let model = Model::dummy(config, &matrix)?;
        Self::new(gpu, Element::Bf16, model, max_rows, max_sequences).map_err(place_error)
    }

    fn new(
        gpu: &Gpu,
        element: Element,
        model: Model<weights::DeviceMatrix>,
        max_rows: usize,
        max_sequences: usize,
    ) -> Result<Self, Error> {
        let weights = Weights::new(gpu, element, model)?;
        let mut runner = Self {
            kernels: Kernels::load(gpu)?,
            products: Products::new(gpu)?,
            buffers: BatchBuffers::new(gpu, max_rows)?,
            small_buffers: BatchBuffers::for_graphs(gpu, max_rows)?,
            scratch: Scratch::new(gpu, &weights.shape, max_rows)?,
            graphs: HashMap::new(),
            weights,
            gpu: gpu.clone(),
        };
        runner.warm_up(max_sequences)?;
        Ok(runner)
    }

    /// Runs steps of padding: the fastest algorithms are found and the graphs recorded before anybody waits for them, and the
    /// first requests do not make the machine look slow.
    fn warm_up(&mut self, max_sequences: usize) -> Result<(), Error> {
        let layout = self.kv_layout();
        let mut num_rows = 1;
        while num_rows <= self.buffers.max_rows() {
            forward::warm_up(self, num_rows, &layout)?;
            num_rows *= 2;
        }
        let max_graph_rows = self.small_buffers.max_rows().min(self.scratch.max_logit_rows);
        let largest = batch::GRAPH_ROWS.into_iter().find(|num_rows| *num_rows >= max_sequences);
        let wanted = |num_rows: &usize| *num_rows <= max_graph_rows.min(largest.unwrap_or(usize::MAX));
        for num_rows in batch::GRAPH_ROWS.into_iter().filter(wanted) {
            forward::record(self, num_rows, &layout)?;
        }
        Ok(self.gpu.synchronize()?)
    }

    /// What a token's keys and values look like in this runner's memory.
    #[must_use]
    pub fn kv_layout(&self) -> KvLayout {
        let shape = &self.weights.shape;
        KvLayout {
            num_layers: self.weights.layers.len(),
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            bytes_per_element: 2,
        }
    }

    /// The model's sizes.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.weights.shape
    }

    /// The device's name.
    #[must_use]
    pub fn device(&self) -> String {
        format!("cuda ({})", self.gpu.name())
    }

    /// What the kernels are told of a batch that is on the device.
    fn buffers_of(&self, on_device: OnDevice) -> &BatchBuffers {
        if on_device.is_small { &self.small_buffers } else { &self.buffers }
    }

    fn run(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<CudaMemory>,
    ) -> Result<Vec<SequenceOutput>, Error> {
        let batch = Batch::new(&self.weights.shape, sequences)?;
        // Held until the last result has been read, which is after the last kernel.
        let pinned = kv.pin(sequences.iter().map(|sequence| SlotUse {
            slot: sequence.slot,
            context_len: sequence.context_len,
            num_tokens: sequence.tokens.len(),
        }))?;
        if batch.num_rows() > self.buffers.max_rows() {
            let max_rows = batch.num_rows().next_power_of_two();
            // Graphs have the old buffers' addresses in them.
            self.graphs.clear();
            self.buffers = BatchBuffers::new(&self.gpu, max_rows)?;
            self.scratch = Scratch::new(&self.gpu, &self.weights.shape, max_rows)?;
        }
        let outputs = forward::run(self, &batch, kv)?;
        drop(pinned);
        Ok(outputs)
    }

    fn failed(&self, error: &Error) -> RunnerError {
        RunnerError { device: self.device(), message: error.to_string() }
    }
}

impl Runner for CudaRunner {
    type Memory = CudaMemory;

    fn step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<CudaMemory>,
    ) -> Result<Vec<SequenceOutput>, RunnerError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        self.run(sequences, kv).map_err(|error| self.failed(&error))
    }

    /// Steps wait for their results, so that nothing is in flight here.
    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<CudaMemory>) -> Result<(), RunnerError> {
        let copy = |copy: &KvCopy| -> Result<(), Error> {
            let pinned = kv.pin_copy(copy)?;
            kv.memory().copy(kv.range(copy.from), kv.range(copy.to), copy.bytes.clone())?;
            drop(pinned);
            Ok(())
        };
        copies.iter().try_for_each(copy).map_err(|error| self.failed(&error))
    }
}
