use fused_checkpoint::ModelFiles;
use fused_kernels::Elements;
use fused_testkit::model_dir;
use fused_vocabulary::{Mode, NToken, PatchContent, Removed, Row, Segmentation, TokenId};

use super::*;

fn open(name: &str) -> (Checkpoint, ModelConfig) {
    let files = ModelFiles::open(&model_dir(name)).unwrap();
    (Checkpoint::open(&files).unwrap(), ModelConfig::parse(&files).unwrap())
}

fn load(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    patch: Option<&PatchVocabulary>,
) -> Result<Model<Tensor>, Error> {
    Model::load(checkpoint, config, patch, None, &Ok)
}

/// Two base tokens are removed; an n-token of two and one of three base tokens take their ids.
fn patch(base_vocab_size: u32) -> PatchVocabulary {
    let removed = [10, 20];
    let model_ids = (0..base_vocab_size).map(|id| (!removed.contains(&id)).then_some(TokenId(id))).collect();
    let tokens = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
    PatchVocabulary::new(PatchContent {
        base_tokenizer: "07".repeat(32).parse().unwrap(),
        mode: Mode::Replace,
        segmentation: Segmentation::Greedy,
        model_ids,
        removed: removed
            .map(|id| Removed { id: TokenId(id), parts: tokens(&[1, 2]), text: String::new() })
            .to_vec(),
        n_tokens: vec![
            NToken { id: TokenId(10), base: tokens(&[30, 31]), text: String::new() },
            NToken { id: TokenId(20), base: tokens(&[40, 41, 42]), text: String::new() },
        ],
    })
    .unwrap()
}

#[test]
fn a_tied_model_becomes_untied_and_n_tokens_average_their_base_tokens() {
    for name in ["demo-llama", "demo-gpt2"] {
        let (checkpoint, config) = open(name);
        let base = load(&checkpoint, &config, None).unwrap();
        assert!(base.head.is_none(), "{name} is tied");
        let patch = patch(8192);
        let adapted = load(&checkpoint, &config, Some(&patch)).unwrap();
        assert_eq!(adapted.shape.vocab_size, patch.vocab_size());
        let width = base.shape.hidden_size;
        let stored = base.embedding.to_f32();
        let row = |token: usize| stored[token * width..][..width].iter().map(|&element| f64::from(element));
        // Within half a unit of bf16's 8 bits.
        let check = |matrix: &Tensor, rows: [(usize, &[(usize, f64)]); 4]| {
            assert!(matches!(matrix.elements(), Elements::Bf16(_)), "the precision is kept");
            assert_eq!((matrix.num_rows(), matrix.num_cols()), (8192, width));
            let made = matrix.to_f32();
            for (id, parts) in rows {
                let mut wanted = vec![0.0; width];
                for &(token, weight) in parts {
                    wanted.iter_mut().zip(row(token)).for_each(|(sum, element)| *sum += weight * element);
                }
                for (got, wanted) in made[id * width..].iter().zip(wanted) {
                    assert!(
                        (f64::from(*got) - wanted).abs() <= wanted.abs() / 256.0 + 1e-9,
                        "{name}, row {id}"
                    );
                }
            }
        };
        let kept = [(9, 1.0)];
        let last = [(8191, 1.0)];
        let rising = [(40, 1.0 / 7.0), (41, 2.0 / 7.0), (42, 4.0 / 7.0)];
        let falling = [(40, 4.0 / 7.0), (41, 2.0 / 7.0), (42, 1.0 / 7.0)];
        let (third, two_thirds) = (1.0 / 3.0, 2.0 / 3.0);
        check(
            &adapted.embedding,
            [(9, &kept), (10, &[(30, third), (31, two_thirds)]), (20, &rising), (8191, &last)],
        );
        check(
            adapted.head.as_ref().unwrap(),
            [(9, &kept), (10, &[(30, two_thirds), (31, third)]), (20, &falling), (8191, &last)],
        );
    }
}

#[test]
fn weights_that_are_adapted_already_are_taken_as_they_are() {
    let (checkpoint, mut config) = open("demo-llama");
    let patch = patch(8192);
    config.vocabulary_fingerprint = Some(patch.fingerprint().to_string());
    assert!(load(&checkpoint, &config, Some(&patch)).unwrap().head.is_none());
    let missing = load(&checkpoint, &config, None).unwrap_err();
    assert!(matches!(missing, Error::PatchMissing { .. }));
    config.vocabulary_fingerprint = Some("00".repeat(32));
    let other = load(&checkpoint, &config, Some(&patch)).unwrap_err();
    assert!(matches!(&other, Error::OtherPatch { weights, .. } if other.to_string().contains(weights)));
}

#[test]
fn a_patch_vocabulary_for_a_larger_model_is_refused() {
    let (checkpoint, config) = open("tiny-llama3");
    let patch = patch(8192);
    assert!(patch.rows().any(|row| row == Row::Base(TokenId(config.vocab_size as u32))));
    let error = load(&checkpoint, &config, Some(&patch)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Adaptation(fused_adaptation::Error::BaseToken { token: TokenId(128), num_rows: 128 })
        ),
        "{error}"
    );
    let adapted = ModelConfig { vocabulary_fingerprint: Some(patch.fingerprint().to_string()), ..config };
    assert!(matches!(load(&checkpoint, &adapted, Some(&patch)).unwrap_err(), Error::AdaptedRows { .. }));
}

#[test]
fn every_family_loads_and_a_tensor_that_does_not_fit_is_named() {
    for (name, wrong_tensor) in [
        ("tiny-gpt2", "mlp.c_fc.weight"),
        ("tiny-llama3", "mlp.gate_proj.weight"),
        ("tiny-llama-bias", "mlp.gate_proj.weight"),
        ("tiny-llama-sharded", "mlp.gate_proj.weight"),
        ("tiny-mistral", "mlp.gate_proj.weight"),
        ("tiny-qwen2", "mlp.gate_proj.weight"),
        ("tiny-qwen3", "mlp.gate_proj.weight"),
    ] {
        let (checkpoint, config) = open(name);
        let model = load(&checkpoint, &config, None).unwrap();
        assert_eq!(model.layers.len(), config.num_layers, "{name}");
        let narrow = ModelConfig { intermediate_size: config.intermediate_size + 1, ..config.clone() };
        // Of which layer: they load side by side.
        let error = cause(load(&checkpoint, &narrow, None).unwrap_err());
        assert!(error.contains(wrong_tensor), "{name}: {error}");
        let deep = ModelConfig {
            num_layers: config.num_layers + 1,
            sliding_window: vec![None; config.num_layers + 1],
            ..config.clone()
        };
        let error = cause(load(&checkpoint, &deep, None).unwrap_err());
        let missing = format!(".{}.", config.num_layers);
        assert!(error.contains(&missing) && error.contains("missing"), "{name}: {error}");
    }
}

#[test]
fn what_the_configuration_does_not_speak_of_is_found() {
    let unused = |name: &str, change: &dyn Fn(&mut ModelConfig)| -> Vec<String> {
        let (checkpoint, mut config) = open(name);
        change(&mut config);
        let source = source::Source {
            checkpoint: &checkpoint,
            config: &config,
            patch: None,
            embeddings: None,
            place: &Ok,
            used: Mutex::default(),
        };
        match &config.rope {
            None => gpt2::load(&source).unwrap(),
            Some(rope) => llama::load(&source, rope).unwrap(),
        };
        source.unused().into_iter().map(str::to_owned).collect()
    };
    // One with masks, one with both names of a matrix.
    for name in ["tiny-gpt2", "tiny-llama-bias", "tiny-one-head", "tiny-other-head"] {
        assert_eq!(unused(name, &|_| {}), [""; 0], "{name}");
    }
    let mut biases = unused("tiny-llama-bias", &|config| config.qkv_bias = false);
    biases.sort();
    assert_eq!((biases.len(), &*biases[0]), (6, "model.layers.0.self_attn.k_proj.bias"));
    let layers = unused("tiny-linear", &|config| config.num_layers = 1);
    assert!(layers.len() == 9 && layers.iter().all(|name| name.starts_with("model.layers.1.")), "{layers:?}");
}

fn cause(error: Error) -> String {
    std::error::Error::source(&error).unwrap().to_string()
}
