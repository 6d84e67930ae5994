//! What cannot be served is refused at the start, with a message that names the file, key or flag.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use fused_testkit::{Server, model_dir, run_to_end};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fused"))
}

/// Starts `fused serve`, which must fail, and returns its message.
fn refused(arguments: &[&str]) -> String {
    let arguments = [&["serve", "--port", "0"], arguments].concat();
    let finished = run_to_end(binary(), &arguments, &[]).unwrap();
    assert!(!finished.status.success(), "{arguments:?} was accepted");
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished.stderr
}

/// A copy of a model that a test may damage.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model_dir(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().to_owned();
    (folder, path)
}

fn assert_names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn missing_and_damaged_model_files() {
    assert_names(&refused(&["--model", "/no/such/model"]), &["/no/such/model"]);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (_folder, path) = copy("demo-llama");
        fs::remove_file(path.join(file)).unwrap();
        assert_names(&refused(&["--model", path.to_str().unwrap()]), &[file]);

        let (_folder, path) = copy("demo-llama");
        let bytes = fs::read(path.join(file)).unwrap();
        fs::write(path.join(file), &bytes[..bytes.len() / 2]).unwrap();
        assert_names(&refused(&["--model", path.to_str().unwrap()]), &[file]);
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let (_folder, path) = copy("demo-llama");
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    fs::write(path.join("config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
    assert_names(&refused(&["--model", path.to_str().unwrap()]), &["mamba", "llama"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let (_folder, path) = copy("demo-llama");
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    let deeper = config.replace("\"num_hidden_layers\":6", "\"num_hidden_layers\":7");
    assert_ne!(config, deeper);
    fs::write(path.join("config.json"), deeper).unwrap();
    assert_names(&refused(&["--model", path.to_str().unwrap()]), &["layers.6."]);
}

#[test]
fn a_patch_vocabulary_for_another_tokenizer() {
    let (_folder, path) = copy("demo-llama");
    let patch = model_dir("demo-llama-tldr").join("patch_vocabulary.json");
    let tokenizer = fs::read_to_string(path.join("tokenizer.json")).unwrap();
    // Another tokenizer: two tokens have changed places.
    let other = tokenizer.replacen("\"A\":33", "\"A\":34", 1).replacen("\"B\":34", "\"B\":33", 1);
    assert_ne!(tokenizer, other);
    fs::write(path.join("tokenizer.json"), other).unwrap();
    let message =
        refused(&["--model", path.to_str().unwrap(), "--patch-vocabulary", patch.to_str().unwrap()]);
    assert_names(&message, &["was made for the tokenizer", "the model's tokenizer is"]);
    assert_names(&refused(&["--patch-vocabulary", "no/such/file.json"]), &["no/such/file.json"]);
}

#[test]
fn settings_flags_and_devices() {
    assert_names(&refused(&["--device", "cuda:0"]), &["cuda"]);
    assert_names(&refused(&["--device", "tpu"]), &["device", "tpu"]);
    assert_names(&refused(&["--model_attention_backend", "fa_paged"]), &["attention_backend", "fa_vattn"]);
    assert_names(&refused(&["--max-model-len", "100000"]), &["max_model_len", "1024"]);
    assert_names(&refused(&["--page-bytes", "1000"]), &["page_bytes"]);
    assert_names(&refused(&["--scheduling-policy", "lifo"]), &["scheduling_policy", "lifo", "sarathi"]);
    let both = refused(&["--token-budget", "512", "--target-inter-token-latency-ms", "50"]);
    assert_names(&both, &["token_budget", "target_inter_token_latency_ms", "choose one"]);
    assert_names(&refused(&["--no-such-flag"]), &["--no-such-flag"]);
    let finished = run_to_end(binary(), &["serve"], &[("FUSED_MODLE", "x")]).unwrap();
    assert!(!finished.status.success());
    assert_names(&finished.stderr, &["modle", "environment"]);
}

#[test]
fn a_port_in_use_names_the_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let finished = run_to_end(binary(), &["serve", "--port", &port], &[]).unwrap();
    assert!(!finished.status.success());
    assert_names(&finished.stderr, &["in use", "--port", &port]);
}

#[test]
fn effective_settings_are_printed() {
    let arguments = ["serve", "--port", "7", "--print-settings", "--sarathi_high_chunk_size", "99"];
    let finished = run_to_end(binary(), &arguments, &[("FUSED_TOKEN_BUDGET", "99")]).unwrap();
    assert!(finished.status.success(), "{}", finished.stderr);
    assert_names(&finished.stdout, &["port = 7", "token_budget = 99", "max_num_sequences = 64"]);
    assert_names(&finished.stdout, &["chunk_size_high = 99", "chunk_size_low = 99", "prefix_cache = true"]);
}

#[tokio::test]
async fn the_environment_sets_what_flags_set() {
    let environment = [("FUSED_SERVED_MODEL_NAME", "7"), ("FUSED_PORT", "0")];
    let server = Server::start(binary(), &["serve"], &environment).unwrap();
    assert!(server.get("/v1/models").await.unwrap().1.contains("\"id\":\"7\""));
}
