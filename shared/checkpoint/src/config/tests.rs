use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn parse(config: &Value) -> Result<ModelConfig> {
    parse_with(config, None)
}

fn parse_with(config: &Value, generation: Option<&Value>) -> Result<ModelConfig> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    if let Some(generation) = generation {
        fs::write(dir.path().join(GENERATION_CONFIG_FILE), generation.to_string()).unwrap();
    }
    ModelConfig::parse(&ModelFiles::open(dir.path()).unwrap())
}

/// `base` with the keys of `changes`.
fn with(base: &Value, changes: Value) -> Value {
    let mut config = base.clone();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn without(base: &Value, key: &str) -> Value {
    let mut config = base.clone();
    config.as_object_mut().unwrap().remove(key).unwrap();
    config
}

/// The keys that no default replaces.
fn smallest(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    })
}

fn gpt2() -> Value {
    json!({ "model_type": "gpt2", "vocab_size": 100, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256 })
}

/// Of `smallest`.
fn plain_rope(theta: f64) -> Rope {
    Rope { theta, rotary_dim: 16, scaling: RopeScaling::None, context_len: 256 }
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

fn fixture(name: &str) -> ModelConfig {
    ModelConfig::parse(&ModelFiles::open(&models().join(name)).unwrap()).unwrap()
}

#[test]
fn defaults_are_those_of_transformers() {
    let llama = parse(&smallest("llama")).unwrap();
    assert_eq!(llama.norm_eps, 1e-6);
    assert_eq!(llama.activation, Activation::Silu);
    assert_eq!(llama.rope, Some(plain_rope(10_000.0)));
    assert_eq!((llama.head_dim, llama.num_kv_heads), (16, 2));
    assert!(!llama.tie_word_embeddings && !llama.qkv_bias && !llama.attention_output_bias && !llama.mlp_bias);
    assert_eq!(llama.sliding_window, [None; 3]);
    assert_eq!((llama.bos_token_id, llama.eos_token_ids.len(), llama.dtype), (None, 0, None));

    assert_eq!(parse(&smallest("mistral")).unwrap().sliding_window, [Some(4096); 3]);
    let qwen2 = parse(&smallest("qwen2")).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.attention_output_bias && !qwen2.qk_norm);
    let qwen3 = parse(&smallest("qwen3")).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.head_dim, 128);

    let gpt2 = parse(&gpt2()).unwrap();
    assert_eq!((gpt2.intermediate_size, gpt2.head_dim, gpt2.num_kv_heads), (256, 16, 4));
    assert_eq!(gpt2.activation, Activation::GeluTanh);
    assert_eq!((gpt2.rope, gpt2.norm_eps), (None, 1e-5));
    assert!(gpt2.tie_word_embeddings && gpt2.scale_attention && !gpt2.scale_attention_by_layer);
    assert!(gpt2.qkv_bias && gpt2.attention_output_bias && gpt2.mlp_bias);
}

#[test]
fn key_value_heads_left_out_or_null_mean_what_transformers_makes_of_them() {
    for (model_type, absent) in [("llama", 64), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)] {
        let config = with(&smallest(model_type), json!({ "num_attention_heads": 64, "hidden_size": 128 }));
        assert_eq!(
            parse(&without(&config, "num_key_value_heads")).unwrap().num_kv_heads,
            absent,
            "{model_type}"
        );
        let null = with(&config, json!({ "num_key_value_heads": null }));
        assert_eq!(parse(&null).unwrap().num_kv_heads, 64, "{model_type}");
    }
}

#[test]
fn rope_is_read_in_both_spellings() {
    let llama3 = |kind: &str| {
        json!({ kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128 })
    };
    let expected = Rope {
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 128,
        },
        ..plain_rope(500_000.0)
    };
    let new = with(&llama3("rope_type"), json!({ "rope_theta": 500_000.0 }));
    for rope in [
        json!({ "rope_theta": 500_000, "rope_scaling": llama3("rope_type") }),
        json!({ "rope_theta": 500_000.0, "rope_scaling": llama3("type") }),
        json!({ "rope_parameters": new }),
        json!({ "rope_parameters": new, "rope_scaling": null, "rope_theta": null }),
        json!({ "rope_parameters": new, "rope_scaling": {} }),
        json!({ "rope_parameters": { "full_attention": new } }),
        json!({ "rope_parameters": { "full_attention": new, "sliding_attention": new } }),
    ] {
        assert_eq!(parse(&with(&smallest("llama"), rope)).unwrap().rope, Some(expected.clone()));
    }
    for (rope, scaling, context_len) in [
        (
            json!({ "rope_scaling": { "type": "linear", "factor": 2 } }),
            RopeScaling::Linear { factor: 2.0 },
            512,
        ),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e4 } }), RopeScaling::None, 256),
        (json!({ "rope_scaling": null }), RopeScaling::None, 256),
        (
            json!({ "rope_scaling": { "rope_type": null, "type": null, "factor": 2.0 } }),
            RopeScaling::None,
            256,
        ),
    ] {
        let rope = parse(&with(&smallest("llama"), rope)).unwrap().rope;
        assert_eq!(rope, Some(Rope { scaling, context_len, ..plain_rope(10_000.0) }));
    }
}

/// vLLM's rule: what says that it stretches the first training's context makes a longer one.
#[test]
fn a_context_is_as_long_as_its_scaling_makes_it() {
    let factors = json!([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    for (scaling, expected) in [
        (json!({ "type": "linear", "factor": 2.5 }), 640),
        (json!({ "type": "dynamic", "factor": 4.0 }), 1024),
        (json!({ "type": "yarn", "factor": 4.0 }), 1024),
        (json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 }), 256),
        (json!({ "type": "yarn", "original_max_position_embeddings": 64 }), 256),
        (
            json!({ "type": "su", "short_factor": factors, "long_factor": factors, "factor": 4.0,
                 "original_max_position_embeddings": 64 }),
            256,
        ),
        (json!({ "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 }), 256),
        (json!({ "type": "default", "factor": 8.0 }), 256),
    ] {
        let config = parse(&with(&smallest("llama"), json!({ "rope_scaling": scaling }))).unwrap();
        assert_eq!(config.max_positions, expected, "{scaling}");
        let mut served = config.clone();
        served.limit_context(100);
        assert_eq!((served.max_positions, served.rope.unwrap().context_len), (expected, 100));
    }
}

#[test]
fn yarn_and_longrope_scale_attention_as_transformers_does() {
    let scaling = |scaling: Value| {
        parse(&with(&smallest("llama"), json!({ "rope_scaling": scaling }))).unwrap().rope.unwrap().scaling
    };
    for (keys, expected) in [
        (json!({}), 0.1 * 4_f64.ln() + 1.0),
        (json!({ "attention_factor": 0.75 }), 0.75),
        (
            json!({ "mscale": 0.7, "mscale_all_dim": 1.4 }),
            (0.07 * 4_f64.ln() + 1.0) / (0.14 * 4_f64.ln() + 1.0),
        ),
        (json!({ "mscale": 0.7 }), 0.1 * 4_f64.ln() + 1.0),
    ] {
        let keys = with(&json!({ "type": "yarn", "factor": 4.0 }), keys);
        let RopeScaling::Yarn { attention_factor, beta_fast, beta_slow, truncate, .. } = scaling(keys) else {
            panic!("not yarn");
        };
        assert_eq!((attention_factor, beta_fast, beta_slow, truncate), (expected, 32.0, 1.0, true));
    }
    let divisors = json!([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5]);
    let long = json!({ "type": "longrope", "short_factor": divisors, "long_factor": divisors,
                       "original_max_position_embeddings": 64 });
    let RopeScaling::LongRope { attention_factor, long_factor, .. } = scaling(long) else {
        panic!("not longrope");
    };
    assert_eq!((attention_factor, long_factor[7]), ((1.0 + 4_f64.ln() / 64_f64.ln()).sqrt(), 1.5));
}

#[test]
fn a_part_of_a_head_may_turn() {
    for keys in [
        json!({ "partial_rotary_factor": 0.5 }),
        json!({ "rope_parameters": { "rope_type": "default", "partial_rotary_factor": 0.5 } }),
        json!({ "rope_scaling": { "type": "default" }, "partial_rotary_factor": 0.55 }),
    ] {
        assert_eq!(parse(&with(&smallest("llama"), keys)).unwrap().rope.unwrap().rotary_dim, 8);
    }
}

#[test]
fn a_class_alone_tells_the_family() {
    for (class, family) in [
        ("GPT2LMHeadModel", Family::Gpt2),
        ("LlamaForCausalLM", Family::Llama),
        ("LLaMAForCausalLM", Family::Llama),
        ("MistralForCausalLM", Family::Mistral),
        ("Qwen2ForCausalLM", Family::Qwen2),
        ("Qwen3ForCausalLM", Family::Qwen3),
    ] {
        let config = if family == Family::Gpt2 { gpt2() } else { smallest(family.model_type()) };
        let config = with(&without(&config, "model_type"), json!({ "architectures": [class] }));
        assert_eq!(parse(&config).unwrap().family, family);
    }
}

#[test]
fn a_type_that_says_nothing_is_none() {
    for (keys, expected) in [
        (json!({ "dtype": "auto" }), None),
        (json!({ "torch_dtype": "auto" }), None),
        (json!({ "dtype": null, "torch_dtype": "torch.bfloat16" }), Some(Dtype::Bf16)),
        (json!({ "torch_dtype": "half" }), Some(Dtype::F16)),
    ] {
        assert_eq!(parse(&with(&smallest("llama"), keys)).unwrap().dtype, expected);
    }
}

#[test]
fn windows_are_per_layer() {
    let windows = |model_type, changes| parse(&with(&smallest(model_type), changes)).unwrap().sliding_window;
    assert_eq!(windows("mistral", json!({ "sliding_window": 8 })), [Some(8); 3]);
    assert_eq!(windows("mistral", json!({ "sliding_window": null })), [None; 3]);
    for family in ["qwen2", "qwen3"] {
        let on = json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 });
        assert_eq!(windows(family, on.clone()), [None, Some(8), Some(8)]);
        let types = json!(["sliding_attention", "full_attention", "full_attention"]);
        assert_eq!(windows(family, with(&on, json!({ "layer_types": types }))), [Some(8), None, None]);
        assert_eq!(windows(family, with(&on, json!({ "use_sliding_window": false }))), [None; 3]);
    }
}

#[test]
fn end_tokens_of_the_generation_config_win() {
    let config = with(&smallest("llama"), json!({ "bos_token_id": 1, "eos_token_id": 2 }));
    assert_eq!(parse(&config).unwrap().eos_token_ids, [2]);
    let generation = json!({ "eos_token_id": [3, 4], "bos_token_id": 9, "temperature": 0.6 });
    let parsed = parse_with(&config, Some(&generation)).unwrap();
    assert_eq!((parsed.eos_token_ids, parsed.bos_token_id), (vec![3, 4], Some(1)));
    assert_eq!(parse_with(&config, Some(&json!({ "eos_token_id": null }))).unwrap().eos_token_ids, [2]);
    let error = parse_with(&config, Some(&json!({ "eos_token_id": 100 }))).unwrap_err().to_string();
    assert!(
        error.contains("generation_config.json: `eos_token_id` must be token ids under vocab_size 100"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let llama = smallest("llama");
    let rope = |scaling: Value| with(&llama, json!({ "rope_scaling": scaling }));
    let cases = [
        (
            with(&llama, json!({ "model_type": "mamba" })),
            "`model_type` is `mamba`, which is not supported; known are gpt2, llama, mistral, qwen2, qwen3",
        ),
        (without(&llama, "model_type"), "`model_type` is missing"),
        (without(&llama, "vocab_size"), "`vocab_size` is missing"),
        (without(&llama, "intermediate_size"), "`intermediate_size` is missing"),
        (without(&gpt2(), "n_head"), "`n_head` is missing"),
        (
            with(&llama, json!({ "quantization_config": { "quant_method": "gptq" } })),
            "`quantization_config` says that the weights are quantised (gptq)",
        ),
        (
            with(&llama, json!({ "num_attention_heads": 0 })),
            "`num_attention_heads` must be a whole number from 1",
        ),
        (with(&llama, json!({ "num_attention_heads": 4.5 })), "`num_attention_heads` must be a whole number"),
        (
            with(&llama, json!({ "num_attention_heads": 6 })),
            "`num_attention_heads` is 6, which does not divide the hidden size 64",
        ),
        (
            with(&llama, json!({ "num_key_value_heads": 3 })),
            "`num_key_value_heads` is 3, which does not divide num_attention_heads 4",
        ),
        (with(&gpt2(), json!({ "n_head": 5 })), "`n_head` is 5"),
        (with(&llama, json!({ "hidden_size": 1_u64 << 60 })), "`hidden_size` must be a whole number"),
        (with(&llama, json!({ "num_hidden_layers": -1 })), "`num_hidden_layers` must be a whole number"),
        (with(&llama, json!({ "head_dim": 15 })), "`head_dim` is 15; rotary positions need an even one"),
        (with(&llama, json!({ "vocab_size": "100" })), "`vocab_size` must be a whole number"),
        (with(&llama, json!({ "rms_norm_eps": -1.0 })), "`rms_norm_eps` must be a number"),
        (with(&llama, json!({ "rope_theta": 0.0 })), "`rope_theta` must be a number"),
        (with(&llama, json!({ "hidden_act": "mish" })), "`hidden_act` is `mish`"),
        (with(&llama, json!({ "torch_dtype": "float8_e4m3fn" })), "`torch_dtype` is `float8_e4m3fn`"),
        (with(&llama, json!({ "tie_word_embeddings": 1 })), "`tie_word_embeddings` must be true or false"),
        (
            with(&llama, json!({ "eos_token_id": [2, 100] })),
            "`eos_token_id` must be token ids under vocab_size 100",
        ),
        (with(&llama, json!({ "bos_token_id": -1 })), "`bos_token_id` must be token ids"),
        (
            rope(json!({ "rope_type": "mrope", "factor": 4.0 })),
            "`rope_scaling.rope_type` is `mrope`, which is not supported; known are default, linear, dynamic, yarn",
        ),
        (rope(json!({ "type": "proportional" })), "`rope_scaling.type` is `proportional`"),
        (rope(json!({ "type": "dynamic" })), "`rope_scaling.factor` is missing"),
        (
            rope(json!({ "type": "yarn", "factor": 1e6, "original_max_position_embeddings": 512 })),
            "`rope_scaling.factor` makes a context of 512000000 tokens",
        ),
        (
            rope(json!({ "type": "yarn", "factor": 4.0, "beta_fast": "x" })),
            "`rope_scaling.beta_fast` must be a number",
        ),
        (
            with(&rope(json!({ "type": "yarn", "factor": 4.0 })), json!({ "rope_theta": 1 })),
            "`rope_theta` must be over 1",
        ),
        (rope(json!({ "type": "longrope", "long_factor": [1.0] })), "`rope_scaling.short_factor` is missing"),
        (
            rope(json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [1.0] })),
            "`rope_scaling.short_factor` has 1 numbers; one for each of 8 pairs",
        ),
        (
            rope(json!({ "type": "longrope", "short_factor": [0.0], "long_factor": [1.0] })),
            "`rope_scaling.short_factor` must be a list of numbers from",
        ),
        (
            with(&llama, json!({ "rope_parameters": { "full_attention": null } })),
            "`rope_parameters.full_attention` is null: layers without positions",
        ),
        (
            with(
                &llama,
                json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e6 }, "sliding_attention": {} } }),
            ),
            "`rope_parameters.sliding_attention` differs from full_attention",
        ),
        (rope(json!({ "type": "linear" })), "`rope_scaling.factor` is missing"),
        (rope(json!({ "type": "linear", "factor": 0.5 })), "`rope_scaling.factor` must be a number from 1"),
        (
            rope(json!({ "type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0 })),
            "`rope_scaling.high_freq_factor` must be over low_freq_factor",
        ),
        (rope(json!("linear")), "`rope_scaling` must be an object"),
        (
            with(&llama, json!({ "partial_rotary_factor": 0.2 })),
            "`partial_rotary_factor` is 0.2, which turns 3 of a head's 16 elements",
        ),
        (
            with(&smallest("qwen3"), json!({ "layer_types": ["full_attention"] })),
            "`layer_types` names 1 layers of 3",
        ),
        (
            with(&smallest("qwen2"), json!({ "layer_types": ["full_attention", "linear", "x"] })),
            "`layer_types` is `linear`",
        ),
    ];
    for (config, expected) in cases {
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains("config.json: ") && error.contains(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn what_is_no_dense_language_model_of_plain_weights_is_said_by_its_name() {
    let llama = smallest("llama");
    for (keys, said) in [
        (json!({ "quantization_config": { "load_in_4bit": true } }), "(bitsandbytes)"),
        (json!({ "quantization_config": { "quant_method": "awq" } }), "(awq)"),
        (json!({ "quantization_config": { "quant_method": "fp8" } }), "(fp8)"),
        (json!({ "quantization_config": { "quant_method": "mxfp4" } }), "(mxfp4)"),
        (json!({ "quantization_config": { "quant_method": "compressed-tensors" } }), "(compressed-tensors)"),
        (json!({ "compression_config": { "format": "pack" } }), "`compression_config` says"),
        (json!({ "quantization": { "bits": 4, "group_size": 64 } }), "(MLX)"),
        (
            json!({ "quantization_config": { "bits": 4 } }),
            "(an unnamed method), which is not supported; serve the",
        ),
        (
            json!({ "vision_config": { "depth": 32 } }),
            "`vision_config` describes a part of a model of text and images",
        ),
        (
            json!({ "model_type": "gemma3", "text_config": { "hidden_size": 1 } }),
            "language_model.save_pretrained",
        ),
        (
            json!({ "architectures": ["LlavaForConditionalGeneration"] }),
            "`LlavaForConditionalGeneration`, a model of text",
        ),
        (
            json!({ "model_type": "mixtral", "num_local_experts": 8 }),
            "`num_local_experts` is 8: mixtures of experts",
        ),
        (json!({ "num_experts": 64 }), "`num_experts` is 64"),
        (json!({ "model_type": "bert" }), "an encoder, which generates no text"),
        (json!({ "model_type": "t5", "is_encoder_decoder": true }), "an encoder with a decoder"),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), "no head of a language model"),
        (json!({ "architectures": ["MistralModel"] }), "`MistralModel`, which has no head"),
        (
            json!({ "model_type": "phi3" }),
            "`model_type` is `phi3`, which is not supported; known are gpt2, llama",
        ),
    ] {
        let error = parse(&with(&llama, keys)).unwrap_err().to_string();
        assert!(error.contains("config.json: ") && error.contains(said), "{error}\nexpected: {said}");
    }
    for harmless in [
        json!({ "quantization_config": {} }),
        json!({ "quantization_config": null, "vision_config": null, "text_config": {} }),
        json!({ "num_local_experts": 1, "num_experts": 0, "is_encoder_decoder": false }),
        json!({ "architectures": [] }),
        json!({ "architectures": ["LlamaForCausalLM"], "pretraining_tp": 2, "head_dim": null }),
    ] {
        parse(&with(&llama, harmless)).unwrap();
    }
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let dir = TempDir::new().unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    assert!(ModelConfig::parse(&files).unwrap_err().to_string().ends_with("config.json is missing"));
    for text in ["", "{", "[]", "3", "{\"model_type\": \"llama\""] {
        fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        let error = ModelConfig::parse(&files).unwrap_err();
        assert!(matches!(&error, Error::Json { file, .. } if file == CONFIG_FILE), "{text:?}: {error}");
    }
}

#[test]
fn the_fixtures_are_what_they_were_made_to_be() {
    let llama3 = fixture("tiny-llama3");
    assert!(matches!(llama3.rope.unwrap().scaling, RopeScaling::Llama3 { .. }));
    assert_eq!((llama3.num_heads, llama3.num_kv_heads, llama3.head_dim), (4, 2, 12));
    assert_eq!((llama3.dtype, llama3.tie_word_embeddings), (Some(Dtype::Bf16), false));
    assert_eq!(llama3.eos_token_ids, [2, 5]);

    let bias = fixture("tiny-llama-bias");
    assert!(bias.qkv_bias && bias.attention_output_bias && bias.mlp_bias);
    let rope = bias.rope.unwrap();
    assert_eq!((rope.theta, rope.scaling), (5000.0, RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(bias.max_positions, 256);
    assert_eq!(bias.dtype, Some(Dtype::F32));

    let sharded = fixture("tiny-llama-sharded");
    assert_eq!(
        (sharded.num_kv_heads, sharded.activation, sharded.dtype),
        (4, Activation::Gelu, Some(Dtype::F16))
    );

    let mistral = fixture("tiny-mistral");
    assert_eq!((mistral.head_dim, mistral.sliding_window.clone()), (16, vec![Some(8); 2]));

    let qwen2 = fixture("tiny-qwen2");
    assert!(qwen2.qkv_bias && qwen2.tie_word_embeddings);
    assert_eq!(qwen2.sliding_window, [None, Some(6), Some(6)]);

    let qwen3 = fixture("tiny-qwen3");
    assert!(qwen3.qk_norm);
    assert_eq!((qwen3.head_dim, qwen3.sliding_window.clone()), (24, vec![Some(6), None]));

    let partial = fixture("tiny-partial");
    let rope = partial.rope.unwrap();
    assert!(partial.qk_norm && partial.qkv_bias && matches!(rope.scaling, RopeScaling::Yarn { .. }));
    assert_eq!((partial.head_dim, rope.rotary_dim, rope.context_len), (16, 8, 128));
    let dynamic = fixture("tiny-dynamic");
    assert_eq!(dynamic.max_positions, 128);
    assert!(matches!(dynamic.rope.unwrap().scaling, RopeScaling::Dynamic { .. }));
    assert!(matches!(fixture("tiny-longrope").rope.unwrap().scaling, RopeScaling::LongRope { .. }));

    let gpt2 = fixture("tiny-gpt2");
    assert!(gpt2.scale_attention_by_layer && gpt2.intermediate_size == 80);
}

#[test]
fn every_fixture_has_the_tensors_its_configuration_implies() {
    let names = [
        "tiny-llama3",
        "tiny-llama-bias",
        "tiny-llama-sharded",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-yarn",
        "tiny-partial",
        "tiny-longrope",
        "demo-llama",
    ];
    for name in names {
        let config = fixture(name);
        let checkpoint = crate::Checkpoint::open(&ModelFiles::open(&models().join(name)).unwrap()).unwrap();
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = checkpoint.tensor_with_shape("model.embed_tokens.weight", &[vocab, hidden]).unwrap();
        assert_eq!(Some(embedding.dtype), config.dtype, "{name}");
        assert_eq!(checkpoint.contains("lm_head.weight"), !config.tie_word_embeddings, "{name}");
        for layer in 0..config.num_layers {
            let tensor = |part: &str| format!("model.layers.{layer}.{part}");
            let (queries, keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
            checkpoint.tensor_with_shape(&tensor("self_attn.q_proj.weight"), &[queries, hidden]).unwrap();
            checkpoint.tensor_with_shape(&tensor("self_attn.k_proj.weight"), &[keys, hidden]).unwrap();
            checkpoint.tensor_with_shape(&tensor("self_attn.o_proj.weight"), &[hidden, queries]).unwrap();
            checkpoint
                .tensor_with_shape(&tensor("mlp.up_proj.weight"), &[config.intermediate_size, hidden])
                .unwrap();
            for (part, expected) in [
                ("self_attn.q_proj.bias", config.qkv_bias),
                ("self_attn.o_proj.bias", config.attention_output_bias),
                ("mlp.up_proj.bias", config.mlp_bias),
                ("self_attn.q_norm.weight", config.qk_norm),
            ] {
                assert_eq!(checkpoint.contains(&tensor(part)), expected, "{name}: {part}");
            }
        }
    }
    for (name, prefix) in [("tiny-gpt2", ""), ("demo-gpt2", "transformer.")] {
        let config = fixture(name);
        let checkpoint = crate::Checkpoint::open(&ModelFiles::open(&models().join(name)).unwrap()).unwrap();
        assert_eq!(checkpoint.prefix("transformer."), prefix);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        checkpoint.tensor_with_shape(&format!("{prefix}h.0.mlp.c_fc.weight"), &[hidden, inner]).unwrap();
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0_u64..70).prop_map(Value::from),
        "[a-z0-9_]{0,8}".prop_map(Value::from),
        proptest::collection::vec(0_u64..200, 0..4).prop_map(Value::from),
        Just(json!({ "rope_type": "llama3", "factor": 1e300, "quant_method": [] })),
        (prop_oneof![Just("linear"), Just("dynamic"), Just("yarn")], 0.5..1e7).prop_map(
            |(kind, factor)| json!({ "rope_type": kind, "factor": factor, "original_max_position_embeddings": 64 })
        ),
    ]
}

proptest! {
    /// One key of a valid file replaced by anything: refused, or a configuration that keeps its promises.
    #[test]
    fn any_value_is_refused_or_kept_within_bounds(
        family in 0..Family::ALL.len(),
        key in 0_usize..30,
        value in any_value(),
    ) {
        let family = Family::ALL[family];
        let mut config = if family == Family::Gpt2 { gpt2() } else { smallest(family.model_type()) };
        let mut keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        keys.extend(
            ["head_dim", "n_inner", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "eos_token_id",
             "use_sliding_window", "max_window_layers", "layer_types", "quantization_config", "dtype", "rms_norm_eps"]
                .map(str::to_owned),
        );
        let key = &keys[key % keys.len()];
        config.as_object_mut().unwrap().insert(key.clone(), value);
        match parse(&config) {
            Err(Error::Config { key: named, .. }) => prop_assert!(
                named.starts_with(key.as_str()) || named == "num_key_value_heads" || named.ends_with("head")
                    || named == "num_attention_heads" || named == "head_dim" || named == "layer_types"
                    || named.starts_with("rope"),
                "{} for {}", named, key,
            ),
            Err(other) => prop_assert!(false, "{}", other),
            Ok(parsed) => {
                prop_assert_eq!(parsed.num_heads % parsed.num_kv_heads, 0);
                prop_assert!(parsed.rope.is_none() || parsed.head_dim % 2 == 0);
                prop_assert_eq!(parsed.sliding_window.len(), parsed.num_layers);
                prop_assert!(parsed.eos_token_ids.iter().all(|&id| (id as usize) < parsed.vocab_size));
                let per_token = [parsed.num_layers, parsed.num_kv_heads, parsed.head_dim, 2, 4];
                let factors = per_token.iter().chain([&parsed.max_positions]);
                let kv_bytes = factors.copied().try_fold(1, usize::checked_mul);
                prop_assert!(kv_bytes.is_some());
            }
        }
    }
}
