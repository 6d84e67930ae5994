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

fn demo_llama() -> String {
    text(&model_dir("demo-llama")).to_owned()
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

fn adapt(base: &str, out: &Path, more: &[&str]) -> Finished {
    fused(&[&["adapt", "--model", base, "--out", text(out)], more].concat())
}

fn adapted(base: &str, out: &Path, more: &[&str]) {
    let finished = adapt(base, out, more);
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
}

/// Greedy tokens and their log-probabilities behind some prompts.
async fn answers(model: &str) -> Vec<Value> {
    let server = Server::start(Path::new(BINARY), &["serve", "--port", "0", "--model", model], &[]).unwrap();
    let mut answers = Vec::new();
    for prompt in ["<|endoftext|># tar\n\n>", "The pod is scheduled", "pub fn new("] {
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
    let folder = tempfile::tempdir().unwrap();
    let (whole, sharded) = (folder.path().join("whole"), folder.path().join("sharded"));
    adapted(&demo_llama(), &whole, &[]);
    fs::create_dir(&sharded).unwrap();
    adapted(&demo_llama(), &sharded, &["--max-shard-bytes", "5000000"]);
    assert_eq!(names(folder.path()), ["sharded", "whole"], "nothing else is left");
    assert!(names(&sharded).contains(&"model.safetensors.index.json".to_owned()));
    let at_load = answers(&demo_llama()).await;
    assert_eq!(answers(text(&whole)).await, at_load);
    assert_eq!(answers(text(&sharded)).await, at_load);
}

#[test]
fn bad_input_is_named_and_leaves_no_directory() {
    let folder = tempfile::tempdir().unwrap();
    let (out, full, base) =
        (folder.path().join("out"), folder.path().join("full"), folder.path().join("base"));
    adapted(&demo_llama(), &full, &[]);
    fs::create_dir(&base).unwrap();
    for name in names(&model_dir("demo-gpt2")) {
        fs::copy(model_dir("demo-gpt2").join(&name), base.join(&name)).unwrap();
    }
    let weights = base.join("model.safetensors");
    fs::write(&weights, &fs::read(&weights).unwrap()[..1 << 20]).unwrap();
    let patch = text(&model_dir("demo-llama")).to_owned() + "/patch_vocabulary.json";
    let before = names(folder.path());
    let (demo, tiny) = (demo_llama(), text(&model_dir("tiny-llama3")).to_owned());
    let out_in_nothing = folder.path().join("nothing/out");
    for (base, out, more, said) in [
        (&*demo, &full, &[][..], "is no empty directory"),
        (&*demo, &out_in_nothing, &[], "--out"),
        (text(&full), &out, &[], "is adapted already"),
        (text(&base), &out, &["--patch-vocabulary", &*patch], "model.safetensors is corrupt"),
        (text(&base), &out, &[], "--patch-vocabulary"),
        (&*tiny, &out, &["--patch-vocabulary", &*patch], "tokenizer.json is missing"),
        (&*demo, &out, &["--patch-vocabulary", "/nothing.json"], "/nothing.json"),
        (&*demo, &out, &["--max-shard-bytes", "1", "--init", "mean"], ""),
    ] {
        let finished = adapt(base, out, more);
        if said.is_empty() {
            assert_eq!(finished.status.code(), Some(0), "a file a tensor is allowed: {}", finished.stderr);
            fs::remove_dir_all(out).unwrap();
        } else {
            assert_eq!(finished.status.code(), Some(2), "{said}: {}", finished.stderr);
            assert!(finished.stderr.contains(said), "{}", finished.stderr);
        }
        assert_eq!(names(folder.path()), before, "{said}");
    }
}

/// demo-llama with one more tensor, of bytes that take no room on the disk but time to copy.
fn large_model(dir: &Path, extra_bytes: u64) {
    fs::create_dir(dir).unwrap();
    for name in names(&model_dir("demo-llama")) {
        fs::copy(model_dir("demo-llama").join(&name), dir.join(&name)).unwrap();
    }
    let weights = dir.join("model.safetensors");
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
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    large_model(&base, 4 << 30);
    let mut child = Command::new(BINARY)
        .args(["adapt", "--model", text(&base), "--out", text(&out)])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let is_writing = || {
        let new = names(folder.path()).into_iter().find(|name| name != "base");
        new.is_some_and(|new| folder.path().join(new).join("model.safetensors").exists())
    };
    while !is_writing() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    assert!(!out.exists(), "it has its name when it is whole");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(folder.path()), ["base"]);
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
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heldout.txt");
    fs::write(&file, documents.join("<|endoftext|>\n")).unwrap();
    let num_bytes: usize = documents.iter().map(|document| document.len()).sum();
    let (context, stride) = (golden["context"].to_string(), golden["stride"].to_string());
    for order in ["apart", "joined"] {
        let report = eval(&[
            "--model",
            &demo_llama(),
            "--patch-vocabulary",
            "none",
            "--text",
            text(&file),
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
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo-adapted");
    adapted(&demo_llama(), &out, &[]);
    let file = folder.path().join("heldout.txt");
    fs::write(&file, golden("eval.json").unwrap()["documents"][0].as_str().unwrap()).unwrap();
    let demo = demo_llama();
    let report = eval(&["--model", &demo, "--model", text(&out), "--text", text(&file)]);
    let [at_load, written] = [0, 1].map(|idx| report["models"][idx].clone());
    assert_eq!(at_load["bits"], written["bits"]);
    assert_eq!(at_load["base_tokens"], written["base_tokens"]);
    assert!(at_load["tokens"].as_u64() < at_load["base_tokens"].as_u64());

    let table = fused(&["eval", "--model", &demo, "--model", text(&out), "--text", text(&file)]).stdout;
    assert!(table.starts_with(' ') && table.contains("demo-llama  demo-adapted\nbits per byte"), "{table}");

    for (arguments, said) in [
        (&["--context", "2000"][..], "--context 2000 is over the 1024 tokens"),
        (&["--context", "8", "--stride", "8"], "--stride 8 must be below"),
        (
            &["--patch-vocabulary", "none", "--patch-vocabulary", "none"],
            "--patch-vocabulary is given 2 times",
        ),
        (&["--max-bytes", "3"], "--max-bytes"),
        (&["--text", "/nothing"], "/nothing"),
        (&["--patch-vocabulary", text(&file)], "heldout.txt"),
    ] {
        let finished = fused(&[&["eval", "--model", &demo, "--text", text(&file)], arguments].concat());
        assert_eq!(finished.status.code(), Some(2), "{said}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{said}: {}", finished.stderr);
    }
    let adapted_as_base =
        fused(&["eval", "--model", text(&out), "--patch-vocabulary", "none", "--text", text(&file)]);
    assert_eq!(adapted_as_base.status.code(), Some(2), "{}", adapted_as_base.stderr);
}
