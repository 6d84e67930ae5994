//! `fused adapt` and `fused eval` as a user runs them: an adapted directory answers as the base model that is adapted
//! while it is loaded, and measures the same; bad input gets a message, exit code 2 and no directory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use fused_testkit::{Finished, Server, golden, model_dir, run_to_end};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_fused");

fn fused(arguments: &[&str]) -> Finished {
    let finished = run_to_end(Path::new(BINARY), arguments, &[]).unwrap();
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

/// A base model and a patch vocabulary for it, in a folder of their own.
struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { folder: tempfile::tempdir().unwrap() };
        rig.copy_model("demo-llama", "base");
        let corpus = rig.write("corpus.txt", &first_document().repeat(20));
        let (base, patch) = (rig.path("base"), rig.path("patch.json"));
        let finished =
            fused(&["vocab", "build", "--model", &base, "--corpus", &corpus, "--add", "2", "--out", &patch]);
        assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
        rig
    }

    fn copy_model(&self, model: &str, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        for file in names(&model_dir(model)) {
            if file != "patch_vocabulary.json" {
                fs::copy(model_dir(model).join(&file), Path::new(&self.path(name)).join(&file)).unwrap();
            }
        }
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }

    /// Adapts the base model.
    fn adapted(&self, name: &str, more: &[&str]) -> String {
        let (base, patch, out) = (self.path("base"), self.path("patch.json"), self.path(name));
        let arguments = ["adapt", "--model", &base, "--patch-vocabulary", &patch, "--out", &out];
        let finished = fused(&[&arguments, more].concat());
        assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
        out
    }
}

fn first_document() -> String {
    golden("eval.json").unwrap()["documents"][0].as_str().unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What there is in a folder, hidden files included.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Greedy tokens and their log-probabilities behind some prompts.
async fn answers(model: &str, more: &[&str]) -> Vec<Value> {
    let arguments = [&["serve", "--port", "0", "--model", model], more].concat();
    let server = Server::start(Path::new(BINARY), &arguments, &[]).unwrap();
    let mut answers = Vec::new();
    for prompt in [&*first_document(), "<|endoftext|># tar\n\n>", "pub fn new("] {
        let request = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true, "logprobs": 1});
        let (status, mut answer) = server.post("/v1/completions", &request).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 40);
        answers.push(json!([answer["choices"].take(), answer["usage"].take()]));
    }
    answers
}

#[tokio::test]
async fn an_adapted_directory_answers_as_a_model_adapted_while_it_is_loaded() {
    let rig = Rig::new();
    fs::create_dir(rig.path("sharded")).unwrap();
    let sharded = rig.adapted("sharded", &["--max-shard-bytes", "5000000"]);
    let whole = rig.adapted("whole", &[]);
    assert_eq!(rig.names(), ["base", "corpus.txt", "patch.json", "sharded", "whole"], "nothing else is left");
    assert!(names(Path::new(&sharded)).contains(&"model.safetensors.index.json".to_owned()));
    let at_load = answers(&rig.path("base"), &["--patch-vocabulary", &rig.path("patch.json")]).await;
    let base_tokens = |answer: &Value| answer[1]["prompt_base_tokens"].as_u64();
    assert!(at_load[0][1]["prompt_tokens"].as_u64() < base_tokens(&at_load[0]), "{}", at_load[0]);
    assert_eq!(answers(&whole, &[]).await, at_load);
    assert_eq!(answers(&sharded, &[]).await, at_load);
}

#[test]
fn bad_input_is_named_and_leaves_no_directory() {
    let rig = Rig::new();
    let full = rig.adapted("full", &[]);
    rig.copy_model("demo-llama", "damaged");
    let weights = rig.path("damaged/model.safetensors");
    fs::write(&weights, &fs::read(&weights).unwrap()[..1 << 20]).unwrap();
    rig.copy_model("tiny-llama3", "no-tokenizer");
    rig.copy_model("demo-llama", "other-tokenizer");
    let tokenizer = fs::read(rig.path("other-tokenizer/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    tokenizer["normalizer"] = json!({"type": "NFC"});
    rig.write("other-tokenizer/tokenizer.json", &tokenizer.to_string());
    let before = rig.names();
    let (patch, out) = (rig.path("patch.json"), rig.path("out"));
    for (base, patch, out, said) in [
        ("base", Some(&patch), &full, "is no empty directory"),
        ("base", Some(&patch), &rig.path("nothing/out"), "--out"),
        ("full", None, &out, "is adapted already"),
        ("damaged", Some(&patch), &out, "model.safetensors is corrupt"),
        ("no-tokenizer", Some(&patch), &out, "tokenizer.json is missing"),
        ("other-tokenizer", Some(&patch), &out, "other-tokenizer"),
        ("base", None, &out, "--patch-vocabulary"),
        ("base", Some(&rig.path("nothing.json")), &out, "nothing.json"),
        ("nothing", Some(&patch), &out, "nothing"),
    ] {
        let base = rig.path(base);
        let mut arguments = vec!["adapt", "--model", &base, "--out", out];
        arguments.extend(patch.iter().flat_map(|patch| ["--patch-vocabulary", patch]));
        let finished = fused(&arguments);
        assert_eq!(finished.status.code(), Some(2), "{said}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{said}: {}", finished.stderr);
        assert_eq!(rig.names(), before, "{said}");
    }
}

/// Gives a model one more tensor, of bytes that take no room on the disk but time to copy.
fn enlarge(model: &Path, extra_bytes: u64) {
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let start = data.len() as u64;
    header["extra"] =
        json!({"dtype": "U8", "shape": [extra_bytes], "data_offsets": [start, start + extra_bytes]});
    let header = header.to_string();
    let new = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    fs::write(&weights, &new).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(new.len() as u64 + extra_bytes).unwrap();
}

#[test]
fn an_interrupted_adaptation_leaves_nothing() {
    let rig = Rig::new();
    enlarge(Path::new(&rig.path("base")), 4 << 30);
    let before = rig.names();
    let (base, patch, out) = (rig.path("base"), rig.path("patch.json"), rig.path("out"));
    let mut child = Command::new(BINARY)
        .args(["adapt", "--model", &base, "--patch-vocabulary", &patch, "--out", &out])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let is_writing = || {
        let new = rig.names().into_iter().find(|name| !before.contains(name));
        new.is_some_and(|new| rig.folder.path().join(new).join("model.safetensors").exists())
    };
    while !is_writing() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    assert!(!Path::new(&out).exists(), "it has its name when it is whole");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(rig.names(), before);
}

fn eval(arguments: &[&str]) -> Value {
    let finished = fused(&[&["eval", "--json"], arguments].concat());
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn bits_per_byte_are_those_of_transformers() {
    let golden = golden("eval.json").unwrap();
    let documents: Vec<_> =
        golden["documents"].as_array().unwrap().iter().map(|document| document.as_str().unwrap()).collect();
    let rig = Rig::new();
    let file = rig.write("heldout.txt", &documents.join("<|endoftext|>\n"));
    let num_bytes: usize = documents.iter().map(|document| document.len()).sum();
    let (base, context, stride) =
        (rig.path("base"), golden["context"].to_string(), golden["stride"].to_string());
    for order in ["apart", "joined"] {
        let report = eval(&[
            "--model",
            &base,
            "--text",
            &file,
            "--documents",
            order,
            "--context",
            &context,
            "--stride",
            &stride,
        ]);
        assert_eq!((&report["documents"], &report["bytes"]), (&json!(3), &json!(num_bytes)));
        let (measured, wanted) = (&report["models"][0], &golden[order]);
        assert_eq!(measured["tokens"], wanted["tokens"], "{order}");
        let (got, wanted) = (measured["bits"].as_f64().unwrap(), wanted["bits"].as_f64().unwrap());
        assert!((got - wanted).abs() < 1e-4 * wanted, "{order}: {got} bits, not {wanted}");
        let product =
            measured["bits_per_token"].as_f64().unwrap() * measured["tokens_per_byte"].as_f64().unwrap();
        assert!((product - got / num_bytes as f64).abs() < 1e-9, "{product}");
    }
}

#[test]
fn models_are_measured_side_by_side_and_an_adapted_directory_as_at_load() {
    let rig = Rig::new();
    let adapted = rig.adapted("adapted", &[]);
    let (base, patch) = (rig.path("base"), rig.path("patch.json"));
    let file = rig.write("heldout.txt", &first_document());
    let in_adapted = format!("{adapted}/patch_vocabulary.json");
    let report = eval(&[
        "--model",
        &base,
        "--patch-vocabulary",
        &patch,
        "--model",
        &adapted,
        "--patch-vocabulary",
        &in_adapted,
        "--text",
        &file,
    ]);
    let [at_load, written] = [0, 1].map(|idx| report["models"][idx].clone());
    assert_eq!(at_load["bits"], written["bits"]);
    assert_eq!(at_load["base_tokens"], written["base_tokens"]);
    assert!(at_load["tokens"].as_u64() < at_load["base_tokens"].as_u64(), "{at_load}");

    let table = fused(&["eval", "--model", &base, "--model", &adapted, "--text", &file]).stdout;
    let head: Vec<_> = table.lines().take(2).collect();
    assert_eq!(head[0].split_whitespace().collect::<Vec<_>>(), ["base", "adapted"], "{table}");
    assert!(head[1].starts_with("bits per byte"), "{table}");

    for (arguments, said) in [
        (&["--context", "2000"][..], "--context 2000 is over the 1024 tokens"),
        (&["--context", "8", "--stride", "8"], "--stride 8 must be below"),
        (
            &["--patch-vocabulary", "none", "--patch-vocabulary", "none"],
            "--patch-vocabulary is given 2 times",
        ),
        (&["--max-bytes", "3"], "--max-bytes"),
        (&["--text", "/nothing"], "/nothing"),
        (&["--patch-vocabulary", &file], "heldout.txt"),
    ] {
        let finished = fused(&[&["eval", "--model", &base, "--text", &file], arguments].concat());
        assert_eq!(finished.status.code(), Some(2), "{said}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{said}: {}", finished.stderr);
    }
    let adapted_as_base =
        fused(&["eval", "--model", &adapted, "--patch-vocabulary", "none", "--text", &file]);
    assert_eq!(adapted_as_base.status.code(), Some(2), "{}", adapted_as_base.stderr);
}
