//! The forward pass on an NVIDIA GPU: weights, keys and values in 16 bits, the residual stream and all sums in f32.
//!
//! All sequences' new tokens are the rows of one batch, as on the CPU. What a step needs to know travels in one copy; steps in
//! which every sequence decodes are replayed from CUDA graphs, two for each of some batch sizes, the rows that are missing being
//! padded. Tokens are sampled on the device too, and where the next step is launched before they are read, it takes them from
//! there: the host never keeps the device waiting.

mod batch;
mod forward;
mod in_turn;
mod kept;
mod lists;
mod output;
mod scratch;
mod wanted;
mod weights;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use fused_checkpoint::{Checkpoint, Dtype, ModelConfig};
use fused_gpu::{Element, Gpu, Graph, Products};
use fused_kernels::cuda::{DecodeOrder, DecodeSplit, HEAD_DIMS, Kernels};
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::events;
use crate::kv::{KvCache, KvCopy, KvLayout};
use crate::model::{self, Model, Shape};
use batch::{Batch, BatchBuffers};
use output::{InFlight, Results};
use scratch::Scratch;
use weights::Weights;

/// Steps that the device may have been given and that are not finished: the one that it runs, and the next.
const MAX_IN_FLIGHT: usize = 2;

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

/// How large steps are at most: what a step needs is allocated, measured and recorded before the first (but for very long lists
/// of what penalties count).
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// New tokens of all sequences.
    pub max_rows: usize,
    /// Sequences that decode at once.
    pub max_sequences: usize,
    /// Of the likeliest tokens beside a token's log-probability.
    pub max_logprobs: usize,
}

/// Runs a model on one GPU.
#[derive(Debug)]
pub struct CudaRunner {
    gpu: Gpu,
    kernels: Kernels,
    products: Products,
    weights: Weights,
    buffers: BatchBuffers,
    scratch: Scratch,
    results: Results,
    /// By how many rows they run, and in which order decode attention reads contexts.
    graphs: HashMap<(usize, DecodeOrder), Graph>,
    in_flight: VecDeque<InFlight>,
    /// For each sequence of the step launched last where it leaves the token that it draws.
    drawn: Vec<Option<u32>>,
}

impl CudaRunner {
    /// Loads the weights, adapted to `patch` where they are not yet, with `embeddings` where they are given.
    ///
    /// # Errors
    /// The weights do not fit the configuration, the patch vocabulary or the kernels; the GPU has no room.
    pub fn load(
        gpu: &Gpu,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        (patch, embeddings): (Option<&PatchVocabulary>, Option<&PatchEmbeddings>),
        limits: StepLimits,
    ) -> Result<Self, model::Error> {
        check_heads(config)?;
        let element = match config.dtype {
            Some(Dtype::F16) => Element::F16,
            Some(Dtype::Bf16 | Dtype::F32) | None => Element::Bf16,
        };
        let began = Instant::now();
        let stager = weights::Stager::new(gpu, element);
        let place = |tensor: model::Tensor| stager.place(&tensor).map_err(|error| placed(error.into()));
        let model = Model::load(checkpoint, config, patch, embeddings, &place)?;
        gpu.synchronize().map_err(|error| placed(error.into()))?;
        events::weights_placed(checkpoint.num_bytes(), began.elapsed());
        Self::new(gpu, element, model, limits).map_err(placed)
    }

    /// A model of random weights made on the device, for measurements.
    ///
    /// # Errors
    /// The kernels are not for this configuration; the GPU has no room.
    pub fn dummy(
        gpu: &Gpu,
        config: &ModelConfig,
        seed: u64,
        limits: StepLimits,
    ) -> Result<Self, model::Error> {
        check_heads(config)?;
        let random = weights::RandomWeights::new(gpu, Element::Bf16, seed);
        let random = random.map_err(|error| placed(error.into()))?;
        let matrix = |num_outputs, num_inputs| {
            random.matrix(num_outputs, num_inputs).map_err(|error| placed(error.into()))
        };
        let model = Model::dummy(config, &matrix)?;
        Self::new(gpu, Element::Bf16, model, limits).map_err(placed)
    }

    fn new(
        gpu: &Gpu,
        element: Element,
        model: Model<weights::DeviceMatrix>,
        limits: StepLimits,
    ) -> Result<Self, Error> {
        let weights = Weights::new(gpu, element, model)?;
        // A step of all sequences is padded to the rows of a graph.
        let max_rows = limits.max_rows.max(batch::graph_rows(limits.max_sequences).unwrap_or(0));
        let split = DecodeSplit::new(weights.shape.num_kv_heads, gpu.num_multiprocessors());
        let window = weights.layers.iter().map(|layer| layer.window.unwrap_or(usize::MAX)).max();
        let window = window.unwrap_or(usize::MAX);
        let mut runner = Self {
            kernels: Kernels::load(gpu)?,
            products: Products::new(gpu)?,
            buffers: BatchBuffers::new(gpu, max_rows, split, window)?,
            scratch: Scratch::new(gpu, &weights.shape, &weights.heads(), max_rows, split.max_parts())?,
            results: Results::new(gpu, max_rows, limits.max_logprobs)?,
            graphs: HashMap::new(),
            in_flight: VecDeque::new(),
            drawn: Vec::new(),
            weights,
            gpu: gpu.clone(),
        };
        runner.warm_up(limits.max_sequences)?;
        Ok(runner)
    }

    /// Runs steps of padding: the fastest algorithms are found and the graphs recorded before anybody waits for them, and the
    /// first requests do not make the machine look slow.
    fn warm_up(&mut self, max_sequences: usize) -> Result<(), Error> {
        let layout = self.kv_layout();
        for num_rows in warm_up_rows(self.buffers.max_rows()) {
            forward::warm_up(self, num_rows, &layout)?;
        }
        let max_graph_rows = self.max_graph_rows();
        let largest = batch::graph_rows(max_sequences).unwrap_or(usize::MAX);
        let wanted = |num_rows: &usize| *num_rows <= max_graph_rows.min(largest);
        for num_rows in batch::GRAPH_ROWS.into_iter().filter(wanted) {
            for order in [DecodeOrder::ByHead, DecodeOrder::ByPiece] {
                forward::record(self, num_rows, order, &layout)?;
            }
        }
        Ok(self.gpu.synchronize()?)
    }

    /// A graph computes all its rows' logits at once.
    fn max_graph_rows(&self) -> usize {
        self.buffers.max_rows().min(self.scratch.max_logit_rows)
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

    fn start(&mut self, sequences: &[SequenceStep<'_>], kv: &KvCache<CudaMemory>) -> Result<(), Error> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return Err(Error::Batch(format!("{MAX_IN_FLIGHT} steps are in flight already")));
        }
        let drawn = std::mem::take(&mut self.drawn);
        let batch = Batch::new(&self.weights.shape, sequences, &drawn)?;
        let wanted = wanted::wanted(&batch);
        if let Some(num_top) = wanted.iter().filter_map(wanted::Wanted::num_top).max()
            && num_top as usize > self.results.max_top
        {
            let message = format!("{num_top} log-probabilities, more than {}", self.results.max_top);
            return Err(Error::Batch(message));
        }
        let slots = kv.pin(sequences.iter().map(SequenceStep::slot_use))?;
        forward::run(self, &batch, kv.layout(), &slots, &wanted)?;
        let step = self.results.fetch(&self.gpu, &wanted, sequences.len(), slots)?;
        self.in_flight.push_back(step);
        self.drawn = wanted::drawn(&wanted, sequences.len());
        Ok(())
    }

    fn failed(&self, error: &Error) -> RunnerError {
        RunnerError::on(self.device(), error)
    }
}

/// Numbers of rows of which one is in every bucket that a step of at most so many may need.
fn warm_up_rows(max_rows: usize) -> impl Iterator<Item = usize> {
    let buckets = std::iter::successors(Some(1_usize), |bucket| bucket.checked_mul(2));
    buckets.take_while(move |bucket| *bucket < max_rows).chain([max_rows])
}

fn placed(error: Error) -> model::Error {
    model::Error::Place(Box::new(error))
}

/// There are kernels for some sizes of heads only.
fn check_heads(config: &ModelConfig) -> Result<(), model::Error> {
    if HEAD_DIMS.contains(&config.head_dim) {
        return Ok(());
    }
    let message =
        format!("heads of {} elements are not offered on a GPU, only {HEAD_DIMS:?}", config.head_dim);
    Err(placed(Error::Batch(message)))
}

impl Runner for CudaRunner {
    type Memory = CudaMemory;

    fn max_in_flight(&self) -> usize {
        MAX_IN_FLIGHT
    }

    fn attention_parity(&self) -> Option<usize> {
        Some(self.weights.shape.attention_parity())
    }

    /// What fits into the memory of a GPU computes a hundred tokens in less than a second on it.
    fn assumed_token_time(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn launch(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<CudaMemory>,
    ) -> Result<(), RunnerError> {
        self.start(sequences, kv).map_err(|error| self.failed(&error))
    }

    fn finish(&mut self) -> Result<Vec<SequenceOutput>, RunnerError> {
        let Some(step) = self.in_flight.pop_front() else { return Ok(Vec::new()) };
        self.results.read(step).map_err(|error| self.failed(&error))
    }

    /// Beside whatever is in flight: that writes behind what is copied, and the slots copied to are not its own.
    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<CudaMemory>) -> Result<(), RunnerError> {
        let copy = || -> Result<(), Error> {
            let mut pinned = Vec::with_capacity(copies.len());
            let begun = copies.iter().try_for_each(|copy| {
                let mut both = kv.pin_copy(copy)?;
                let begun = both.begin_copy(0, 1, copy.bytes.clone());
                pinned.push(both);
                Ok(begun?)
            });
            // What has begun is waited for, whatever became of the others.
            kv.memory().wait()?;
            begun
        };
        copy().map_err(|error| self.failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use fused_gpu::Shape as ProductShape;

    use super::*;

    /// Algorithms are chosen by bucket: whoever is the first in one waits for that.
    #[test]
    fn no_step_is_the_first_in_its_bucket() {
        for max_rows in [1, 2, 3, 64, 100, 512, 1536, 2048, 131_328] {
            let warm: Vec<_> = warm_up_rows(max_rows).map(ProductShape::bucket).collect();
            assert!(
                (1..=max_rows).all(|num_rows| warm.contains(&ProductShape::bucket(num_rows))),
                "{max_rows}"
            );
            assert!(warm_up_rows(max_rows).all(|num_rows| num_rows <= max_rows));
        }
    }
}
