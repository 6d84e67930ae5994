use std::fs;

use fused_testkit::model_dir;
use fused_vocabulary::{Mode, NToken, PatchContent, Segmentation, TokenId, fingerprint};
use tempfile::TempDir;

use super::*;

/// A word tokenizer of so many tokens; the tiny models have none of their own.
fn tokenizer_json(num_tokens: usize) -> String {
    let vocab: Vec<_> = (0..num_tokens).map(|id| format!("\"t{id}\":{id}")).collect();
    format!(
        r#"{{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{{"type":"ByteFallback"}},
            "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
            "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{{{}}},"merges":[]}}}}"#,
        vocab.join(",")
    )
}

/// Base ids in reverse order behind two n-tokens. The tokenizer ends 8 ids before the models' 128 rows do.
fn patch(tokenizer: &str) -> PatchVocabulary {
    let n_token = |id, base: &[u32]| NToken {
        id: TokenId(id),
        base: base.iter().copied().map(TokenId).collect(),
        text: base.iter().map(|id| format!("t{id}")).collect(),
    };
    PatchVocabulary::new(PatchContent {
        base_tokenizer: fingerprint(tokenizer.as_bytes(), None).unwrap(),
        mode: Mode::Extend,
        segmentation: Segmentation::Optimal,
        model_ids: (0..120).map(|id| Some(TokenId(121 - id))).collect(),
        removed: Vec::new(),
        n_tokens: vec![n_token(0, &[5, 6]), n_token(1, &[7, 8, 9])],
    })
    .unwrap()
}

/// A tiny model with a tokenizer.
fn base(name: &str) -> (TempDir, PatchVocabulary) {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(model_dir(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let tokenizer = tokenizer_json(120);
    fs::write(dir.path().join(TOKENIZER_FILE), &tokenizer).unwrap();
    (dir, patch(&tokenizer))
}

const ALL: [&str; 10] = [
    "tiny-gpt2",
    "tiny-llama3",
    "tiny-llama-bias",
    "tiny-llama-sharded",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-one-head",
    "tiny-other-head",
    "tiny-partial",
];

fn adapt(base: &Path, patch: &PatchVocabulary, max_shard_bytes: u64, out: &Path) -> Result<()> {
    let files = ModelFiles::open(base)?;
    let checkpoint = Checkpoint::open(&files)?;
    let model = AdaptedModel::plan(&files, &checkpoint, patch, Initialisation::Exponential, max_shard_bytes)?;
    let mut seen = 0;
    model.write(out, &mut |bytes| {
        seen += bytes;
        true
    })?;
    assert_eq!(seen, model.num_bytes());
    Ok(())
}

#[test]
fn every_family_is_written_whole_or_sharded_untied_and_without_padding_rows() {
    for name in ALL {
        for max_shard_bytes in [u64::MAX, 30_000] {
            let (base, patch) = base(name);
            let out = TempDir::new().unwrap();
            adapt(base.path(), &patch, max_shard_bytes, out.path()).unwrap();
            let files = ModelFiles::open(out.path()).unwrap();
            let (config, before) = (
                ModelConfig::parse(&files).unwrap(),
                ModelConfig::parse(&ModelFiles::open(base.path()).unwrap()).unwrap(),
            );
            assert_eq!(config.vocab_size, 122, "{name}");
            assert!(!config.tie_word_embeddings);
            assert_eq!(config.vocabulary_fingerprint, Some(patch.fingerprint().to_string()));
            assert_eq!(
                config.eos_token_ids,
                before.eos_token_ids.iter().map(|id| 121 - id).collect::<Vec<_>>()
            );
            assert_eq!(config.bos_token_id, before.bos_token_id.map(|id| 121 - id));
            assert_eq!(
                ModelConfig {
                    vocab_size: before.vocab_size,
                    tie_word_embeddings: before.tie_word_embeddings,
                    vocabulary_fingerprint: None,
                    eos_token_ids: before.eos_token_ids.clone(),
                    bos_token_id: before.bos_token_id,
                    ..config.clone()
                },
                before,
                "{name}"
            );
            let card = files.read("README.md").unwrap().unwrap();
            let card = std::str::from_utf8(&card).unwrap();
            assert!(
                card.contains("`tokenizer.json` is the base model's") && card.contains("n-tokens"),
                "{card}"
            );
            let written = files.read(PATCH_FILE).unwrap().unwrap();
            assert_eq!(PatchVocabulary::parse(&written).unwrap(), patch);
            Vocabulary::load(&files.read(TOKENIZER_FILE).unwrap().unwrap(), Some(patch.clone())).unwrap();

            let (old, new) = (
                Checkpoint::open(&ModelFiles::open(base.path()).unwrap()).unwrap(),
                Checkpoint::open(&files).unwrap(),
            );
            check_tensors(&old, &new, &config);
        }
    }
}

fn check_tensors(old: &Checkpoint, new: &Checkpoint, config: &ModelConfig) {
    let family = config.family;
    let (module, embedding) = (family.module_prefix(), family.embedding_tensor());
    // What is stored counts, whether it is called tied or not; and one name may stand for both.
    let of_head = old.tensor(family.head_tensor()).ok();
    let stored = old.tensor(&format!("{}{embedding}", old.prefix(module))).ok().or(of_head).unwrap();
    let stored_head = of_head.unwrap_or(stored);
    for (name, stored, weights) in [
        (format!("{module}{embedding}"), stored, [1.0 / 3.0, 2.0 / 3.0]),
        (family.head_tensor().to_owned(), stored_head, [2.0 / 3.0, 1.0 / 3.0]),
    ] {
        let tensor = new.tensor_with_shape(&name, &[122, config.hidden_size]).unwrap();
        assert_eq!(tensor.dtype, stored.dtype);
        let (made, rows) = (tensor.to_f32(), stored.to_f32());
        let row = |rows: &[f32], id: usize| rows[id * config.hidden_size..][..config.hidden_size].to_vec();
        for base_id in 0..120 {
            assert_eq!(row(&made, 121 - base_id), row(&rows, base_id));
        }
        for ((got, left), right) in row(&made, 0).iter().zip(row(&rows, 5)).zip(row(&rows, 6)) {
            let wanted = weights[0] * left + weights[1] * right;
            assert!((got - wanted).abs() <= wanted.abs() / 256.0 + 1e-6, "{got} {wanted}");
        }
    }
    let mut num_copied = 0;
    for stored in old.stored() {
        let name = match stored.name.strip_prefix(module) {
            Some(_) => stored.name.to_owned(),
            None if stored.name == family.head_tensor() => continue,
            None => format!("{module}{}", stored.name),
        };
        if name != format!("{module}{embedding}") {
            let copy = new.stored().into_iter().find(|copy| copy.name == name).unwrap();
            assert_eq!(copy, StoredTensor { name: &name, ..stored });
            num_copied += 1;
        }
    }
    assert_eq!(new.stored().len(), num_copied + 2);
}

#[test]
fn what_cannot_be_adapted_is_refused_before_anything_is_written() {
    let (base, patch) = base("tiny-llama3");
    let out = TempDir::new().unwrap();
    let refused = |base: &Path, patch: &PatchVocabulary| {
        let error = adapt(base, patch, u64::MAX, out.path()).unwrap_err();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    };

    let other = patch_of_other_tokenizer();
    assert!(refused(base.path(), &other).contains("does not fit model"), "{}", refused(base.path(), &other));
    let config = base.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen('{', "{\"fused_vocabulary_fingerprint\": \"ab\",", 1)).unwrap();
    assert!(refused(base.path(), &patch).contains("adapted already"));
    fs::write(&config, text.replace("\"vocab_size\": 128", "\"vocab_size\": 100")).unwrap();
    assert!(refused(base.path(), &patch).contains("asks for"));
    fs::write(&config, "{").unwrap();
    assert!(refused(base.path(), &patch).contains("config.json"));
    fs::write(&config, &text).unwrap();
    let weights = base.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused(base.path(), &patch).contains("corrupt"));
    fs::write(&weights, &bytes).unwrap();
    fs::remove_file(base.path().join(TOKENIZER_FILE)).unwrap();
    assert!(refused(base.path(), &patch).contains("tokenizer.json is missing"));
}

fn patch_of_other_tokenizer() -> PatchVocabulary {
    patch(&tokenizer_json(120).replace("\"t7\"", "\"x7\""))
}

#[test]
fn a_caller_who_has_enough_is_obeyed_and_a_full_place_is_named() {
    let (base, patch) = base("tiny-llama3");
    let out = TempDir::new().unwrap();
    let files = ModelFiles::open(base.path()).unwrap();
    let checkpoint = Checkpoint::open(&files).unwrap();
    let model = AdaptedModel::plan(&files, &checkpoint, &patch, Initialisation::Mean, u64::MAX).unwrap();
    assert!(matches!(model.write(out.path(), &mut |_| false), Err(Error::Interrupted)));
    let error = model.write(out.path(), &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("config.json"), "what is there is not overwritten: {error}");
}
