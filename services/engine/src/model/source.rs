use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use fused_checkpoint::{Checkpoint, ModelConfig, TokenTensors};
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::embedding::Side;
use fused_vocabulary::import::PatchEmbeddings;
use rayon::prelude::*;

use super::{Error, FeedForward, Layer, Linear, Norm, Shape, Tensor, adapt};

/// What a family loads its parts from, and where to.
pub(super) struct Source<'a, W> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a ModelConfig,
    /// To be applied to these weights.
    pub(super) patch: Option<&'a PatchVocabulary>,
    /// The matrices of the adapted model, where they are not to be computed.
    pub(super) embeddings: Option<&'a PatchEmbeddings>,
    pub(super) place: &'a (dyn Fn(Tensor) -> Result<W, Error> + Sync),
    /// Tensors that were asked for.
    pub(super) used: Mutex<HashSet<String>>,
}

impl<W: Send> Source<'_, W> {
    /// All layers, several at a time.
    pub(super) fn layers(
        &self,
        layer: impl Fn(usize) -> Result<Layer<W>, Error> + Send + Sync,
    ) -> Result<Vec<Layer<W>>, Error> {
        (0..self.config.num_layers).into_par_iter().map(layer).collect()
    }

    /// A matrix `[rows, cols]` as stored.
    pub(super) fn matrix(&self, name: &str, num_rows: usize, num_cols: usize) -> Result<Tensor, Error> {
        let tensor = self.stored(name, &[num_rows, num_cols])?;
        finite(name, Tensor::read(&tensor, num_rows, num_cols))
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<fused_checkpoint::Tensor<'_>, Error> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(self.checkpoint.tensor_with_shape(name, shape)?)
    }

    /// Tensors that nothing asked for, but for those with a row for each token, which may be stored twice or be replaced,
    /// and for what older versions of transformers computed and saved.
    pub(super) fn unused(&self) -> Vec<&str> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let family = self.config.family;
        let is_expected = |name: &str| {
            let computed = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
            used.contains(name)
                || name == family.head_tensor()
                || name.ends_with(family.embedding_tensor())
                || computed.iter().any(|computed| name.ends_with(computed))
        };
        let names = self.checkpoint.stored().into_iter().map(|stored| stored.name);
        names.filter(|name| !is_expected(name)).collect()
    }

    /// A vector in f32.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let vector = self.stored(name, &[len])?.to_f32();
        if vector.iter().all(|value| value.is_finite()) {
            Ok(vector)
        } else {
            Err(Error::NotFinite { tensor: name.to_owned() })
        }
    }

    /// An RMSNorm of this name.
    pub(super) fn rms_norm(&self, name: &str, width: usize) -> Result<Norm, Error> {
        Ok(Norm::Rms(self.vector(&format!("{name}.weight"), width)?))
    }

    /// A LayerNorm of this name.
    pub(super) fn layer_norm(&self, name: &str, width: usize) -> Result<Norm, Error> {
        let weight = self.vector(&format!("{name}.weight"), width)?;
        Ok(Norm::Layer { weight, bias: self.vector(&format!("{name}.bias"), width)? })
    }

    /// A matrix on the device, with its bias.
    pub(super) fn linear(&self, weight: Tensor, bias: Option<Vec<f32>>) -> Result<Linear<W>, Error> {
        Ok(Linear { weight: (self.place)(weight)?, bias })
    }

    /// What stands before the names of this checkpoint's tensors.
    pub(super) fn prefix(&self) -> &'static str {
        let family = self.config.family;
        self.checkpoint.prefix(family.module_prefix())
    }

    /// Embedding and head on the device, adapted where there is a patch vocabulary; no head where it is tied.
    pub(super) fn embedding_and_head(&self) -> Result<(W, Option<W>), Error> {
        let TokenTensors { embedding, head } = self.checkpoint.token_tensors(self.config);
        let (num_rows, num_cols) = (self.config.vocab_size, self.config.hidden_size);
        let Some(patch) = self.patch else {
            let embedding = (self.place)(self.matrix(&embedding, num_rows, num_cols)?)?;
            let head = head.map(|head| (self.place)(self.matrix(&head, num_rows, num_cols)?));
            return Ok((embedding, head.transpose()?));
        };
        if let Some(PatchEmbeddings { input, output }) = self.embeddings {
            let head = (self.place)(adapt::pickled(output, "output", patch, num_cols)?)?;
            return Ok(((self.place)(adapt::pickled(input, "input", patch, num_cols)?)?, Some(head)));
        }
        // The two differ from here on, tied or not: n-tokens lean on their last token in one, on their first in the other.
        let adapted = |name: &str, side| {
            let stored = self.stored(name, &[num_rows, num_cols])?;
            finite(name, adapt::matrix(stored, patch, side)?)
        };
        let head = (self.place)(adapted(head.as_ref().unwrap_or(&embedding), Side::Output)?)?;
        Ok(((self.place)(adapted(&embedding, Side::Input)?)?, Some(head)))
    }

    /// The model's sizes.
    pub(super) fn shape(&self, feed_forward: FeedForward) -> Shape {
        let vocab_size = self.patch.map_or(self.config.vocab_size, PatchVocabulary::vocab_size);
        Shape::of(self.config, vocab_size, feed_forward)
    }

    /// What attention scores of a layer are multiplied by.
    pub(super) fn attention_scale(&self, layer_idx: usize) -> f32 {
        attention_scale(self.config, layer_idx)
    }
}

impl Shape {
    pub(super) fn of(config: &ModelConfig, vocab_size: usize, feed_forward: FeedForward) -> Self {
        Self {
            vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            max_positions: config.max_positions,
            norm_eps: narrow(config.norm_eps),
            activation: config.activation,
            feed_forward,
        }
    }
}

/// What attention scores of a layer are multiplied by.
pub(super) fn attention_scale(config: &ModelConfig, layer_idx: usize) -> f32 {
    let by_head = if config.scale_attention { (config.head_dim as f64).sqrt() } else { 1.0 };
    let by_layer = if config.scale_attention_by_layer { (layer_idx + 1) as f64 } else { 1.0 };
    narrow(1.0 / (by_head * by_layer))
}

fn finite(name: &str, tensor: Tensor) -> Result<Tensor, Error> {
    if tensor.is_finite() { Ok(tensor) } else { Err(Error::NotFinite { tensor: name.to_owned() }) }
}

#[expect(clippy::cast_possible_truncation, reason = "the forward pass computes in f32")]
fn narrow(value: f64) -> f32 {
    value as f32
}
