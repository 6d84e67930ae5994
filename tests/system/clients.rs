//! What clients and evaluation harnesses read: ends that are scored, defaults of the model, names, the tokenizer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Server, events};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
/// After a whole example a page ends.
const ENDING: &str = "`ls {{path}}`\n";

fn serve(arguments: &[&str]) -> Server {
    let arguments = [&["serve", "--port", "0"], arguments].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
}

async fn complete(server: &Server, request: &Value) -> Value {
    let (status, answer) = server.post(COMPLETIONS, request).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

fn len(values: &Value) -> u64 {
    values.as_array().unwrap().len() as u64
}

#[tokio::test]
async fn every_drawn_token_has_its_logprob_and_id_whole_and_streamed() {
    let server = serve(&[]);
    let request = |prompt: &str, rest: Value| {
        let mut request =
            json!({"prompt": prompt, "temperature": 0, "logprobs": 1, "return_token_ids": true});
        request.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        request
    };
    let scored = request(ENDING, json!({"max_tokens": 1, "echo": true}));
    let choice = complete(&server, &scored).await["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["token_ids"]), (&json!(ENDING), &json!([0])));
    assert_eq!(len(&choice["logprobs"]["token_logprobs"]), 5);
    assert_eq!(choice["logprobs"]["text_offset"][4], ENDING.len());

    for rest in [
        json!({"max_tokens": 3}),
        json!({"prompt": "# tar\n\n>", "max_tokens": 40, "stop": ["."]}),
        json!({"prompt": "# tar\n\n>", "max_tokens": 40, "stop": ["."], "include_stop_str_in_output": true, "n": 2}),
        json!({"prompt": "# tar\n\n>", "max_tokens": 5, "ignore_eos": true}),
    ] {
        let mut request = request(ENDING, rest);
        let whole = complete(&server, &request).await;
        let n = request["n"].as_u64().unwrap_or(1);
        request["stream"] = json!(true);
        let answer = server.http.post(server.url(COMPLETIONS)).json(&request).send().await.unwrap();
        let stream = events(&answer.text().await.unwrap()).unwrap();
        for idx in 0..n {
            let choice = &whole["choices"][usize::try_from(idx).unwrap()];
            let of_choice =
                || stream.chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|part| part["index"] == idx);
            let joined = |pointer: &str| -> Vec<Value> {
                of_choice().filter_map(|part| part.pointer(pointer)?.as_array().cloned()).flatten().collect()
            };
            assert_eq!(len(&choice["token_ids"]) * n, whole["usage"]["completion_tokens"], "{whole}");
            assert_eq!(len(&choice["logprobs"]["tokens"]), len(&choice["token_ids"]));
            assert_eq!(json!(joined("/token_ids")), choice["token_ids"]);
            for key in ["tokens", "token_logprobs", "text_offset"] {
                assert_eq!(json!(joined(&format!("/logprobs/{key}"))), choice["logprobs"][key], "{key}");
            }
            let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
            let text = choice["text"].as_str().unwrap();
            assert!(offsets.iter().all(|offset| offset.as_u64().unwrap() <= text.chars().count() as u64));
            assert_eq!(choice["finish_reason"], of_choice().next_back().unwrap()["finish_reason"]);
        }
    }
}

/// A copy of the base demo model in which the tokenizer's end and the sampling defaults are others.
fn other_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fused_testkit::model_dir("demo-llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let file = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["eos_token"] = json!({"content": "a", "lstrip": false});
    std::fs::write(file, config.to_string()).unwrap();
    let generation = json!({"eos_token_id": 0, "temperature": 0.0, "max_new_tokens": 7});
    std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    dir
}

#[tokio::test]
async fn the_models_own_ends_and_sampling_count_where_a_request_does_not_say() {
    let model = other_model();
    let model = model.path().to_str().unwrap();
    let server = serve(&["--model", model]);
    let (_, a) = server.post("/tokenize", &json!({"prompt": "a", "return_token_strs": true})).await.unwrap();
    assert_eq!(a["token_strs"], json!(["a"]));
    for id in [a["tokens"][0].as_u64().unwrap(), 0] {
        let forced = json!({"prompt": "x", "logit_bias": {id.to_string(): 100}});
        let answer = complete(&server, &forced).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{id}");
        assert_eq!(answer["usage"]["completion_tokens"], 1);
    }

    let chat = async |server: &Server, rest: Value| {
        let mut request = json!({"messages": [{"role": "user", "content": "tar"}], "ignore_eos": true,
            "chat_template_kwargs": {}});
        request.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let (status, answer) = server.post("/v1/chat/completions", &request).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer
    };
    // Greedy, and seven tokens, unless the request says otherwise.
    let (one, other) = (chat(&server, json!({"seed": 1})).await, chat(&server, json!({"seed": 2})).await);
    assert_eq!(one["choices"], other["choices"]);
    assert_eq!(one["usage"]["completion_tokens"], 7);
    assert_eq!(chat(&server, json!({"max_tokens": 9.0})).await["usage"]["completion_tokens"], 9);
    let hot = chat(&server, json!({"seed": 1, "temperature": 2, "max_tokens": 40})).await;
    let hotter = chat(&server, json!({"seed": 2, "temperature": 2, "max_tokens": 40})).await;
    assert_ne!(hot["choices"], hotter["choices"]);

    let plain = serve(&["--model", model, "--generation-config", "none", "--max-model-len", "64"]);
    assert!(chat(&plain, json!({})).await["usage"]["completion_tokens"].as_u64().unwrap() > 7);
    let elsewhere = serve(&["--generation-config", model]);
    assert_eq!(chat(&elsewhere, json!({})).await["usage"]["completion_tokens"], 7);
}

#[tokio::test]
async fn all_names_are_taken_and_the_first_is_told() {
    let server = serve(&["--served-model-name", "first", "second,third"]);
    let (_, models) = server.get("/v1/models").await.unwrap();
    let models: Value = serde_json::from_str(&models).unwrap();
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["first", "second", "third"]);
    assert_eq!(models["data"][1]["root"], "demo-llama-tldr");
    for name in ["first", "third"] {
        let answer = complete(&server, &json!({"model": name, "prompt": "a", "max_tokens": 1})).await;
        assert_eq!(answer["model"], "first");
    }
    let (status, answer) =
        server.post(COMPLETIONS, &json!({"model": "fourth", "prompt": "a"})).await.unwrap();
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("`fourth`") && message.contains("`first`, `second`, `third`"), "{message}");
}

/// As lm-evaluation-harness's remote tokenizer asks.
#[tokio::test]
async fn clients_can_tokenize_with_nothing_but_the_server() {
    let server = serve(&[]);
    let (status, info) = server.get("/tokenizer_info").await.unwrap();
    assert_eq!(status, 200, "{info}");
    let info: Value = serde_json::from_str(&info).unwrap();
    let eos = info["eos_token"].as_str().unwrap();
    assert!(info["chat_template"].as_str().unwrap().contains("messages"), "{info}");
    let encode = async |text: &str| {
        let body = json!({"prompt": text, "add_special_tokens": false});
        server.post("/tokenize", &body).await.unwrap().1["tokens"].clone()
    };
    assert_eq!(encode(eos).await, json!([0]));
    let (_, text) = server.post("/detokenize", &json!({"tokens": encode("# tar\n").await})).await.unwrap();
    assert_eq!(text, json!({"prompt": "# tar\n"}));
}
