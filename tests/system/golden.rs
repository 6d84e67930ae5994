//! Greedy output over HTTP equals that of Hugging Face transformers, token for token.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Server, golden, model_dir};
use serde_json::json;

async fn check(model: &str) {
    let golden = golden(&format!("{model}.json")).unwrap();
    let directory = model_dir(model);
    let arguments = ["serve", "--port", "0", "--model", directory.to_str().unwrap()];
    let server = Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(prompts.len() >= 20, "{} prompts", prompts.len());
    for prompt in prompts {
        let expected = prompt["greedy"].as_array().unwrap();
        assert_eq!(expected.len(), 64);
        let request = json!({"prompt": prompt["ids"], "max_tokens": 64, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true});
        let (status, answer) = server.post("/v1/completions", &request).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["token_ids"], prompt["greedy"], "{}", prompt["text"]);
    }
}

#[tokio::test]
async fn demo_llama() {
    check("demo-llama").await;
}

#[tokio::test]
async fn demo_llama_tldr() {
    check("demo-llama-tldr").await;
}

#[tokio::test]
async fn demo_gpt2() {
    check("demo-gpt2").await;
}
