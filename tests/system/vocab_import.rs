//! AdaptiVocab's own files: imported by `fused vocab import`, served as they are, refused where they are not what they
//! say.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use fused_testkit::{Finished, Server, golden, model_dir, repository, run_to_end};
use serde_json::{Value, json};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fused"))
}

fn toy(name: &str) -> PathBuf {
    repository().join("tests/golden/adaptivocab-toy").join(name)
}

/// A model for the toy tokenizer, in a folder of its own.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(model_dir("tiny-llama3").join(name), folder.path().join(name)).unwrap();
    }
    fs::copy(toy("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder
}

fn import(arguments: &[&Path]) -> Finished {
    let arguments = arguments.iter().map(|argument| argument.to_str().unwrap());
    let arguments: Vec<_> = ["vocab", "import"].into_iter().chain(arguments).collect();
    let finished = run_to_end(binary(), &arguments, &[]).unwrap();
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

#[test]
fn an_import_writes_the_same_vocabulary_however_it_is_given() {
    let (model, out) = (model(), tempfile::tempdir().unwrap());
    let [from_model, alone, pieces, tokenizer] =
        ["model.json", "alone.json", "pieces.json", "tokenizer.json"].map(|name| out.path().join(name));
    let (flag, whole) = (Path::new("--out"), toy("patch_tokenizer.pkl"));
    let finished = import(&[&whole, Path::new("--model"), model.path(), flag, &from_model]);
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(finished.stdout.contains("which equals the pickled one"), "{}", finished.stdout);

    let finished = import(&[&whole, flag, &alone]);
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(finished.stdout.contains("name a file with --tokenizer-out"), "{}", finished.stdout);
    let finished = import(&[&whole, flag, &alone, Path::new("--tokenizer-out"), &tokenizer]);
    assert!(finished.status.success(), "{}", finished.stderr);
    assert_eq!(fs::read(&tokenizer).unwrap(), fs::read(toy("tokenizer.json")).unwrap());

    let finished = import(&[&toy("added_ngrams.pkl"), Path::new("--model"), model.path(), flag, &pieces]);
    assert!(finished.status.success(), "{}", finished.stderr);
    let written = fs::read_to_string(&from_model).unwrap();
    assert_eq!(fs::read_to_string(&alone).unwrap(), written);
    assert_eq!(fs::read_to_string(&pieces).unwrap(), written);
}

#[test]
fn bad_input_ends_with_code_2_and_writes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let (flag, file) = (Path::new("--out"), out.path().join("out.json"));
    let malicious = out.path().join("malicious.pkl");
    fs::write(&malicious, b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x85R.").unwrap();
    let cut = out.path().join("cut.pkl");
    fs::write(&cut, &fs::read(toy("patch_tokenizer.pkl")).unwrap()[..3000]).unwrap();
    let missing = out.path().join("missing.pkl");
    let whole = toy("patch_tokenizer.pkl");
    let demo = model_dir("demo-llama");
    let model = Path::new("--model");
    let cases: [(&[&Path], &str); 6] = [
        (&[&malicious, flag, &file], "asks for posix.system, which is not read"),
        (&[&cut, flag, &file], "bytes where"),
        (&[&missing, flag, &file], "missing.pkl is not there, nor are"),
        (&[&toy("removed_tokens.pkl"), flag, &file], "the model's tokenizer.json must be given"),
        (&[&whole, model, &demo, flag, &file], "made for another tokenizer than the model's: model.vocab: "),
        (&[&whole, flag, out.path()], "is no plain file: name another"),
    ];
    for (arguments, problem) in cases {
        let finished = import(arguments);
        assert_eq!(finished.status.code(), Some(2), "{}", finished.stderr);
        assert!(finished.stderr.contains(problem), "no `{problem}` in: {}", finished.stderr);
        assert!(!file.exists());
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2, "nothing half-written is left");
}

#[tokio::test]
async fn a_pickle_is_served_with_the_matrices_beside_it() {
    let model = model();
    let pickle = toy("patch_tokenizer.pkl");
    let arguments = [
        ["serve", "--port", "0"].as_slice(),
        &["--model", model.path().to_str().unwrap(), "--patch-vocabulary", pickle.to_str().unwrap()],
    ];
    let server = Server::start(binary(), &arguments.concat(), &[]).unwrap();
    let expected = golden("adaptivocab-toy/expected.json").unwrap();
    for row in expected["rows"].as_array().unwrap().iter().filter(|row| row["text"] != "") {
        let request = json!({"prompt": row["text"], "add_special_tokens": false});
        let (status, answer) = server.post("/tokenize", &request).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["tokens"], row["patch_ids"], "{}", row["text"]);
        assert_eq!(answer["base_count"], row["base_ids"].as_array().unwrap().len());
    }
    let greedy = |server: &Server| {
        let request = server.http.post(server.url("/v1/completions"));
        let body = json!({"prompt": " the cat sat", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        let request = request.json(&body);
        async move { request.send().await.unwrap().json::<Value>().await.unwrap()["choices"][0]["text"].clone() }
    };
    let with_matrices = greedy(&server).await;
    drop(server);

    // Without the matrices rows are computed from the model's, which are others: so is what it writes.
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("patch_tokenizer.pkl");
    fs::copy(&pickle, &alone).unwrap();
    let arguments = [
        ["serve", "--port", "0"].as_slice(),
        &["--model", model.path().to_str().unwrap(), "--patch-vocabulary", alone.to_str().unwrap()],
    ];
    let server = Server::start(binary(), &arguments.concat(), &[]).unwrap();
    let computed = greedy(&server).await;
    assert!(computed.is_string() && with_matrices.is_string());
    assert_ne!(computed, with_matrices);
    drop(server);

    // One of two is a mistake, and is said to be.
    let one = "embedding_input_exp_emb.pkl";
    fs::copy(toy(one), folder.path().join(one)).unwrap();
    let finished = run_to_end(binary(), &arguments.concat(), &[]).unwrap();
    assert!(!finished.status.success());
    assert!(finished.stderr.contains("but not"), "{}", finished.stderr);
    assert!(finished.stderr.contains("embedding_output_exp_emb.pkl"), "{}", finished.stderr);
}
