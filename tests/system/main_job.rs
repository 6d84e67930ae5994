//! The main job: `fused serve` answers OpenAI requests from the adapted demo model.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::Path;

use fused_testkit::{Server, events};
use serde_json::{Value, json};

fn serve(arguments: &[&str]) -> Server {
    let arguments = [&["serve", "--port", "0"], arguments].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {answer}"))
}

#[tokio::test]
async fn completions_and_chat_answer_whole_and_streamed() {
    let server = serve(&[]);
    let request = json!({"model": "demo-llama-tldr", "prompt": "<|endoftext|># git rebase\n\n>", "max_tokens": 32,
        "temperature": 0});
    let (status, whole) = server.post("/v1/completions", &request).await.unwrap();
    assert_eq!(status, 200, "{whole}");
    assert!(text(&whole).len() > 20, "{whole}");
    assert_eq!(whole["object"], "text_completion");

    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let answer = server.http.post(server.url("/v1/completions")).json(&streamed).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let stream = events(&answer.text().await.unwrap()).unwrap();
    assert!(stream.is_done);
    assert_eq!(stream.text(0), text(&whole));
    assert_eq!(stream.finish_reasons(0), [whole["choices"][0]["finish_reason"].as_str().unwrap()]);

    let chat = json!({"model": "demo-llama-tldr", "messages": [{"role": "user", "content": "git rebase"}],
        "max_tokens": 32, "temperature": 0});
    let (status, answer) = server.post("/v1/chat/completions", &chat).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    // The chat template writes the very prompt above.
    assert_eq!(answer["choices"][0]["message"]["content"], text(&whole));

    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    let answer = server.http.post(server.url("/v1/chat/completions")).json(&streamed).send().await.unwrap();
    let stream = events(&answer.text().await.unwrap()).unwrap();
    assert_eq!(stream.content(0), text(&whole));
    assert_eq!(stream.chunks[0]["choices"][0]["delta"]["role"], "assistant");
}

#[tokio::test]
async fn the_patch_vocabulary_takes_fewer_tokens_for_the_same_text() {
    let adapted = serve(&[]);
    let base = serve(&["--model", fused_testkit::model_dir("demo-llama").to_str().unwrap()]);
    let page = "# git rebase\n\n> Reapply commits from one branch on top of another branch.\n\
        > More information: <https://git-scm.com/docs/git-rebase>.\n\n\
        - Rebase the current branch on top of another one:\n\n`git rebase {{branch_name}}`\n\n\
        - Run a command on a file:\n\n`git rebase {{[-x|--exec]}} {{path/to/file}}`\n\n\
        - Display help:\n\n`git rebase {{[-h|--help]}}`\n";
    let mut counts = Vec::new();
    for server in [&adapted, &base] {
        let (status, encoded) = server.post("/tokenize", &json!({"prompt": page})).await.unwrap();
        assert_eq!(status, 200, "{encoded}");
        counts.push(encoded["count"].as_u64().unwrap());
        let (_, decoded) = server.post("/detokenize", &json!({"tokens": encoded["tokens"]})).await.unwrap();
        assert_eq!(decoded["prompt"], page);
    }
    assert!(counts[0] * 10 < counts[1] * 9, "{counts:?} tokens");

    let request = json!({"prompt": page, "max_tokens": 8, "temperature": 0});
    let (_, answer) = adapted.post("/v1/completions", &request).await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], counts[0]);
    assert_eq!(answer["usage"]["prompt_base_tokens"], counts[1]);
}

#[tokio::test]
async fn the_other_routes_answer() {
    let server = serve(&["--served-model-name", "tldr"]);
    for path in ["/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/tldr"] {
        let (status, body) = server.get(path).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
    }
    let (_, models) = server.get("/v1/models").await.unwrap();
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(models["data"][0]["id"], "tldr");
    assert_eq!(models["data"][0]["max_model_len"], 1024);
    let (_, metrics) = server.get("/metrics").await.unwrap();
    for name in ["fused_engine_running_sequences", "fused_engine_slots_in_use", "fused_engine_kv_bytes"] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
}

#[tokio::test]
async fn sampling_is_seeded_whatever_else_runs() {
    let server = serve(&[]);
    let request = |seed: u64| {
        json!({"prompt": "<|endoftext|># tar\n\n>", "max_tokens": 24, "temperature": 1.0, "seed": seed,
            "ignore_eos": true})
    };
    let (seven, eight, nine) = (request(7), request(8), request(9));
    let (_, alone) = server.post("/v1/completions", &seven).await.unwrap();
    let (again, other, third) = tokio::join!(
        server.post("/v1/completions", &seven),
        server.post("/v1/completions", &eight),
        server.post("/v1/completions", &nine)
    );
    assert_eq!(text(&alone), text(&again.unwrap().1));
    assert_ne!(text(&alone), text(&other.unwrap().1));
    assert_ne!(text(&alone), text(&third.unwrap().1));
}

#[tokio::test]
async fn stop_n_logprobs_and_bias_do_what_they_say() {
    let server = serve(&[]);
    let plain = json!({"prompt": "<|endoftext|># git rebase\n\n>", "max_tokens": 40, "temperature": 0,
        "ignore_eos": true});
    let (_, whole) = server.post("/v1/completions", &plain).await.unwrap();
    let whole = text(&whole);

    // Any three characters from the middle of the text make a stop string.
    let middle: String = whole.chars().skip(20).take(3).collect();
    let mut stopped = plain.clone();
    stopped["stop"] = json!([middle]);
    let (_, answer) = server.post("/v1/completions", &stopped).await.unwrap();
    assert_eq!(text(&answer), &whole[..whole.find(&middle).unwrap()]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], middle);

    let mut several = plain.clone();
    several["n"] = json!(3);
    several["logprobs"] = json!(2);
    let (_, answer) = server.post("/v1/completions", &several).await.unwrap();
    for index in 0..3 {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], whole, "greedy sequences are equal");
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 40);
        assert!(logprobs["token_logprobs"][5].as_f64().unwrap() <= 0.0);
        assert_eq!(logprobs["text_offset"][0], 0);
    }

    let mut biased = plain.clone();
    biased["logit_bias"] = json!({"100": 100});
    biased["max_tokens"] = json!(3);
    biased["return_token_ids"] = json!(true);
    let (_, answer) = server.post("/v1/completions", &biased).await.unwrap();
    assert_eq!(answer["choices"][0]["token_ids"], json!([100, 100, 100]), "{answer}");
}
