//! The forward pass on the CPU: f32 compute, weights in their own precision, keys and values in f32 in their slots.
//!
//! All sequences' new tokens are gathered into the rows of one batch: one matrix product a layer serves them all,
//! prefill chunks and decodes alike. Every kernel is batch-invariant, so that what a sequence gets does not depend on
//! whom it shares a step with.

mod batch;
mod forward;
mod output;
mod scratch;
#[cfg(test)]
mod tests;

use std::thread::available_parallelism;

use fused_checkpoint::{Checkpoint, ModelConfig};
use fused_kernels::Matrix;
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;
use rayon::ThreadPool;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::kv::{KvCache, KvCopy, KvLayout};
use crate::model::{self, Model, Shape, Tensor};
use batch::Batch;
use scratch::Scratch;

/// Runs a model on this machine's processors.
#[derive(Debug)]
pub struct CpuRunner {
    model: Model<Matrix>,
    pool: ThreadPool,
    scratch: Scratch,
    /// Of the step that was launched.
    outputs: Vec<SequenceOutput>,
}

impl CpuRunner {
    /// Loads the weights, adapted to `patch` where they are not yet, with `embeddings` where they are given.
    ///
    /// # Errors
    /// The weights do not fit the configuration or the patch vocabulary, or the system has no threads to give.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        patch: Option<&PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
    ) -> Result<Self, model::Error> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(available_parallelism().map_or(1, usize::from))
            .thread_name(|idx| format!("cpu-runner-{idx}"))
            .build()
            .map_err(|error| model::Error::Place(error.into()))?;
        let place = |tensor: Tensor| {
            let packed = Matrix::pack(tensor.elements(), tensor.num_rows(), tensor.num_cols());
            packed.map_err(|error| model::Error::Place(error.into()))
        };
        let model = Model::load(checkpoint, config, patch, embeddings, &place)?;
        Ok(Self { model, pool, scratch: Scratch::default(), outputs: Vec::new() })
    }

    /// What a token's keys and values look like in this runner's memory.
    #[must_use]
    pub fn kv_layout(&self) -> KvLayout {
        KvLayout {
            num_layers: self.model.layers.len(),
            num_kv_heads: self.model.shape.num_kv_heads,
            head_dim: self.model.shape.head_dim,
            bytes_per_element: size_of::<f32>(),
        }
    }

    /// The model's sizes.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.model.shape
    }

    /// The device's name: its instruction set and threads.
    #[must_use]
    pub fn device(&self) -> String {
        format!("cpu ({}, {} threads)", fused_kernels::instruction_set(), self.pool.current_num_threads())
    }

    fn failed(&self, error: &dyn std::error::Error) -> RunnerError {
        RunnerError::on(self.device(), error)
    }
}

impl Runner for CpuRunner {
    type Memory = LinuxMemory;

    fn attention_parity(&self) -> Option<usize> {
        Some(self.model.shape.attention_parity())
    }

    /// Computes at once: there is no device to wait for.
    fn launch(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<LinuxMemory>,
    ) -> Result<(), RunnerError> {
        let Self { model, pool, scratch, .. } = self;
        // One way into the pool a step; everything below forks within it.
        let outputs = pool.install(|| {
            let batch = Batch::new(&model.shape, sequences)?;
            forward::forward(model, &batch, kv, scratch)?;
            Ok(output::outputs(model, &batch, scratch))
        });
        self.outputs = outputs.map_err(|error: batch::Error| self.failed(&error))?;
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<SequenceOutput>, RunnerError> {
        Ok(std::mem::take(&mut self.outputs))
    }

    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<LinuxMemory>) -> Result<(), RunnerError> {
        for copy in copies {
            let mut pinned = kv.pin_copy(copy).map_err(|error| self.failed(&error))?;
            pinned.copy(0, 1, copy.bytes.clone()).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }
}
