use super::keys::{Keys, Problem};

/// A model architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// GPT-2: learned positions, LayerNorm, one matrix for query, key and value, stored input-major.
    Gpt2,
    /// Llama 1 to 3.2: rotary positions, RMSNorm, gated feed-forward, grouped key and value heads.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with a bias on query, key and value.
    Qwen2,
    /// Llama with a norm on each head's query and key.
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Gpt2, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The family's `model_type` in config.json.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The outer module's name, which some checkpoints leave out of their tensors' names.
    #[must_use]
    pub fn module_prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => "model.",
        }
    }

    /// The embedding's name, behind the outer module's.
    #[must_use]
    pub fn embedding_tensor(self) -> &'static str {
        match self {
            Self::Gpt2 => "wte.weight",
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => "embed_tokens.weight",
        }
    }

    /// The head's name, where it is not the embedding. It stands outside the outer module.
    #[must_use]
    pub fn head_tensor(self) -> &'static str {
        "lm_head.weight"
    }

    /// Whether transformers calls its language model so.
    fn has_class(self, class: &str) -> bool {
        let name = class.strip_suffix("ForCausalLM").or_else(|| class.strip_suffix("LMHeadModel"));
        name.is_some_and(|name| name.eq_ignore_ascii_case(self.model_type()))
    }

    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self, Problem> {
        let key = "model_type";
        let Some(found) = keys.text(key)? else {
            // Some files name the class alone.
            let classes = keys.texts("architectures")?.unwrap_or_default();
            let family =
                Self::ALL.into_iter().find(|family| classes.iter().any(|class| family.has_class(class)));
            return family.ok_or_else(|| Problem::missing(key));
        };
        let known = Self::ALL.map(Self::model_type).join(", ");
        let family = Self::ALL.into_iter().find(|family| family.model_type() == found);
        family.ok_or_else(|| Problem::unsupported(key, found, &known))
    }

    pub(super) fn names(self) -> Names {
        match self {
            Self::Gpt2 => Names {
                hidden_size: "n_embd",
                intermediate_size: "n_inner",
                num_layers: "n_layer",
                num_heads: "n_head",
                max_positions: "n_positions",
                norm_eps: "layer_norm_epsilon",
                activation: "activation_function",
            },
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => Names {
                hidden_size: "hidden_size",
                intermediate_size: "intermediate_size",
                num_layers: "num_hidden_layers",
                num_heads: "num_attention_heads",
                max_positions: "max_position_embeddings",
                norm_eps: "rms_norm_eps",
                activation: "hidden_act",
            },
        }
    }
}

/// What a family calls its keys.
pub(super) struct Names {
    pub(super) hidden_size: &'static str,
    pub(super) intermediate_size: &'static str,
    pub(super) num_layers: &'static str,
    pub(super) num_heads: &'static str,
    pub(super) max_positions: &'static str,
    pub(super) norm_eps: &'static str,
    pub(super) activation: &'static str,
}

/// What transformers takes for keys that config.json leaves out. Sizes have no default here: a file without them is
/// not this model's.
pub(super) struct Defaults {
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    pub(super) tie_word_embeddings: bool,
    /// For an absent key; `null` means as many as query heads.
    pub(super) num_kv_heads: Option<usize>,
    /// Else `hidden_size` over heads.
    pub(super) head_dim: Option<usize>,
    pub(super) sliding_window: Option<usize>,
}

impl Defaults {
    pub(super) fn of(family: Family) -> Self {
        let llama = Self {
            norm_eps: 1e-6,
            activation: Activation::Silu,
            tie_word_embeddings: false,
            num_kv_heads: None,
            head_dim: None,
            sliding_window: Some(4096),
        };
        match family {
            Family::Gpt2 => {
                Self { norm_eps: 1e-5, activation: Activation::GeluTanh, tie_word_embeddings: true, ..llama }
            }
            Family::Llama => llama,
            Family::Mistral => Self { num_kv_heads: Some(8), ..llama },
            Family::Qwen2 => Self { num_kv_heads: Some(32), ..llama },
            Family::Qwen3 => Self { num_kv_heads: Some(32), head_dim: Some(128), ..llama },
        }
    }
}

/// The non-linearity of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU's approximation by tanh (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    pub(super) fn parse(keys: &Keys<'_>, key: &str) -> Result<Option<Self>, Problem> {
        let Some(name) = keys.text(key)? else { return Ok(None) };
        match name {
            "silu" | "swish" => Ok(Some(Self::Silu)),
            "gelu" => Ok(Some(Self::Gelu)),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Some(Self::GeluTanh)),
            "relu" => Ok(Some(Self::Relu)),
            other => Err(Problem::unsupported(key, other, "silu, gelu, gelu_new, gelu_pytorch_tanh, relu")),
        }
    }
}
