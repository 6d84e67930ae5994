mod attention;
mod family;
mod foreign;
mod keys;
mod rope;

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

pub use family::{Activation, Family};
pub use rope::{Rope, RopeScaling};

use self::attention::Heads;
use self::family::Defaults;
use self::keys::{Keys, Problem};
use crate::{Dtype, Error, ModelFiles, Result};

const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

// What no model comes near: small enough that the bytes of all weights, and of the keys and values of one whole
// context, stay inside 64 bits. Whoever computes sizes from a configuration need not check again.
const VOCAB_SIZE: RangeInclusive<usize> = 1..=1 << 24;
const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
const NUM_LAYERS: RangeInclusive<usize> = 1..=1 << 10;
const NUM_HEADS: RangeInclusive<usize> = 1..=1 << 10;
const HEAD_DIM: RangeInclusive<usize> = 1..=1 << 10;
const NUM_POSITIONS: RangeInclusive<usize> = 1..=1 << 28;

/// A model's configuration, the same words for every family. Numbers are checked: no count is zero, and sizes of
/// tensors and of a whole context's keys and values do not overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; `num_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Positions the model was made for: the bound of prompt and output together. With learned positions the number of
    /// rows; with rotary ones `max_position_embeddings`, or what [`Rope::scaling`] makes of it.
    pub max_positions: usize,
    /// The epsilon of RMSNorm or LayerNorm.
    pub norm_eps: f64,
    /// The non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Rotary positions; nothing where positions are learned (GPT-2).
    pub rope: Option<Rope>,
    /// Whether the output matrix is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Whether queries and keys pass an RMSNorm over `head_dim` before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Per layer: a token at position `i` sees positions `j` with `i - w < j <= i`; nothing: all `j <= i`.
    pub sliding_window: Vec<Option<usize>>,
    /// Whether attention scores are divided by the square root of `head_dim` (only GPT-2 can say no).
    pub scale_attention: bool,
    /// Whether attention scores are divided by the layer's number, counted from one, too (GPT-2).
    pub scale_attention_by_layer: bool,
    /// The type the model was saved in, as far as it says so; each tensor has its own.
    pub dtype: Option<Dtype>,
    /// The token a prompt begins with.
    pub bos_token_id: Option<u32>,
    /// Tokens that end the output; generation_config.json goes before config.json. Empty where neither names one.
    pub eos_token_ids: Vec<u32>,
    /// The patch vocabulary these weights are already adapted to, by its fingerprint; nothing for a base model.
    pub vocabulary_fingerprint: Option<String>,
}

impl ModelConfig {
    /// Reads config.json and, where it is, generation_config.json.
    ///
    /// # Errors
    /// A missing or malformed file; an unknown `model_type`; a key that is missing, of the wrong type, out of range, or
    /// asks for something that is not supported: each by its name.
    pub fn parse(files: &ModelFiles) -> Result<Self> {
        let config = object(files, CONFIG_FILE)?
            .ok_or_else(|| crate::foreign::no_config(files.name(), &files.names()))?;
        crate::foreign::check(files)?;
        let mut parsed =
            Self::from_keys(&Keys::new(&config)).map_err(|problem| error(files, CONFIG_FILE, problem))?;
        if let Some(generation) = object(files, GENERATION_CONFIG_FILE)? {
            parsed
                .read_generation(&Keys::new(&generation))
                .map_err(|problem| error(files, GENERATION_CONFIG_FILE, problem))?;
        }
        Ok(parsed)
    }

    fn from_keys(keys: &Keys<'_>) -> std::result::Result<Self, Problem> {
        foreign::check(keys)?;
        let family = Family::parse(keys)?;
        let names = family.names();
        let defaults = Defaults::of(family);
        let hidden_size = keys.required_count(names.hidden_size, WIDTH)?;
        let num_layers = keys.required_count(names.num_layers, NUM_LAYERS)?;
        let heads = Heads::parse(keys, family, hidden_size)?;
        let vocab_size = keys.required_count("vocab_size", VOCAB_SIZE)?;
        let intermediate_size = match keys.count(names.intermediate_size, WIDTH)? {
            Some(size) => size,
            None if family == Family::Gpt2 => 4 * hidden_size,
            None => return Err(Problem::missing(names.intermediate_size)),
        };
        let max_position_embeddings = keys.required_count(names.max_positions, NUM_POSITIONS)?;
        let rope = match family {
            Family::Gpt2 => None,
            _ => Some(Rope::parse(keys, heads.head_dim, max_position_embeddings)?),
        };
        let bias = |key| keys.flag(key).map(|bias| bias.unwrap_or(false));
        let (qkv_bias, attention_output_bias, mlp_bias) = match family {
            Family::Gpt2 => (true, true, true),
            Family::Llama => (bias("attention_bias")?, bias("attention_bias")?, bias("mlp_bias")?),
            Family::Mistral => (false, false, false),
            Family::Qwen2 => (true, false, false),
            Family::Qwen3 => (bias("attention_bias")?, bias("attention_bias")?, false),
        };
        let gpt2_flag = |key, default| match family {
            Family::Gpt2 => keys.flag(key).map(|flag| flag.unwrap_or(default)),
            _ => Ok(default),
        };
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads: heads.num_heads,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            max_positions: rope.as_ref().map_or(max_position_embeddings, |rope| rope.context_len),
            norm_eps: keys.real(names.norm_eps, 0.0..=1.0)?.unwrap_or(defaults.norm_eps),
            activation: Activation::parse(keys, names.activation)?.unwrap_or(defaults.activation),
            rope,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
            qkv_bias,
            attention_output_bias,
            mlp_bias,
            qk_norm: family == Family::Qwen3,
            sliding_window: attention::sliding_window(keys, family, num_layers)?,
            scale_attention: gpt2_flag("scale_attn_weights", true)?,
            scale_attention_by_layer: gpt2_flag("scale_attn_by_inverse_layer_idx", false)?,
            dtype: dtype(keys)?,
            bos_token_id: keys.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id", vocab_size)?,
            vocabulary_fingerprint: keys.text("fused_vocabulary_fingerprint")?.map(str::to_owned),
        })
    }

    /// Says that no context is longer than so many tokens, which some rotary frequencies depend on.
    pub fn limit_context(&mut self, max_model_len: usize) {
        if let Some(rope) = &mut self.rope {
            rope.context_len = max_model_len.min(self.max_positions);
        }
    }

    fn read_generation(&mut self, keys: &Keys<'_>) -> std::result::Result<(), Problem> {
        let eos = keys.token_ids("eos_token_id", self.vocab_size)?;
        if !eos.is_empty() {
            self.eos_token_ids = eos;
        }
        if self.bos_token_id.is_none() {
            self.bos_token_id = keys.token_ids("bos_token_id", self.vocab_size)?.first().copied();
        }
        Ok(())
    }
}

/// `dtype`, which older versions spelt `torch_dtype`; `auto` says no more than the tensors do.
fn dtype(keys: &Keys<'_>) -> std::result::Result<Option<Dtype>, Problem> {
    let key = if keys.is_given("dtype") { "dtype" } else { "torch_dtype" };
    let Some(name) = keys.text(key)? else { return Ok(None) };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "auto" => Ok(None),
        "float32" | "float" => Ok(Some(Dtype::F32)),
        "float16" | "half" => Ok(Some(Dtype::F16)),
        "bfloat16" => Ok(Some(Dtype::Bf16)),
        other => Err(Problem::unsupported(key, other, "auto, float32, float16, bfloat16")),
    }
}

fn object(files: &ModelFiles, file: &'static str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = files.read(file)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Json {
        model: files.name().to_owned(),
        file: file.to_owned(),
        source,
    })
}

fn error(files: &ModelFiles, file: &'static str, problem: Problem) -> Error {
    Error::Config { model: files.name().to_owned(), file, key: problem.key, problem: problem.problem }
}

#[cfg(test)]
mod tests;
