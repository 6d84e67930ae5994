//! What the text service is asked, field by field.

use std::collections::HashMap;

use fused_proto::common::v1::{LogprobParams, SamplingParams, StoppingParams};
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::{Chat, GenerateRequest, Prompt, StopStrings, TokenIds};
use http::{Request, StatusCode};
use serde_json::json;

use crate::rig::{Rig, post};

/// What one body is translated to; ids are checked elsewhere.
async fn asked(route: &str, body: &str) -> GenerateRequest {
    let rig = Rig::hello();
    let reply = rig.post(route, body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let mut asked = rig.fake.asked();
    assert_eq!(asked.len(), 1);
    let request = asked.remove(0);
    assert!(request.request_id().len() <= 128);
    GenerateRequest { request_id: None, ..request }
}

#[tokio::test]
async fn every_field_of_a_completion() {
    let body = r#"{
        "model": "org/demo", "prompt": [1, 2], "max_tokens": 7, "min_tokens": 2, "n": 2, "best_of": 2,
        "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": -9, "repetition_penalty": 1.5,
        "presence_penalty": -0.5, "frequency_penalty": 2, "logit_bias": {"5": 300, "6": -1.5},
        "stop": ["a", "b"], "include_stop_str_in_output": true, "stop_token_ids": [3], "ignore_eos": true,
        "logprobs": 0, "skip_special_tokens": false, "add_special_tokens": false, "truncate_prompt_tokens": 100,
        "cache_salt": "tenant-7", "priority": -3, "user": "u", "suffix": null, "response_format": {"type":"text"}, "never_heard_of": {"a": [1]}
    }"#;
    let expected = GenerateRequest {
        request_id: None,
        model: Some("org/demo".to_owned()),
        prompt: Some(Prompt {
            prompt: Some(PromptKind::TokenIds(TokenIds { ids: vec![1, 2] })),
            add_special_tokens: Some(false),
        }),
        sampling: Some(SamplingParams {
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(40),
            min_p: Some(0.125),
            seed: Some(-9),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(2.0),
            logit_bias: HashMap::from([(5, 100.0), (6, -1.5)]),
        }),
        stopping: Some(StoppingParams {
            max_tokens: Some(7),
            min_tokens: Some(2),
            stop_token_ids: vec![3],
            ignore_eos: Some(true),
            default_max_tokens: None,
        }),
        stop: Some(StopStrings {
            strings: vec!["a".to_owned(), "b".to_owned()],
            include_in_output: Some(true),
        }),
        logprobs: Some(LogprobParams { num_output: Some(0), num_prompt: None }),
        num_sequences: Some(2),
        skip_special_tokens: Some(false),
        echo: Some(false),
        timeout_us: Some(1_800_000_000),
        truncate_prompt_tokens: Some(100),
        cache_salt: Some("tenant-7".to_owned()),
        priority: Some(-3),
        group_id: None,
    };
    assert_eq!(asked("/v1/completions", body).await, expected);
}

#[tokio::test]
async fn what_is_absent_or_null_stays_with_the_text_service() {
    let bare = asked("/v1/completions", r#"{"prompt": "a"}"#).await;
    assert_eq!(bare.sampling, Some(SamplingParams::default()));
    // Of OpenAI's own defaults only this one differs from the text API's.
    assert_eq!(bare.stopping, Some(StoppingParams { max_tokens: Some(16), ..StoppingParams::default() }));
    assert_eq!((bare.model.clone(), bare.logprobs, bare.skip_special_tokens), (None, None, None));
    assert_eq!((bare.cache_salt.clone(), bare.priority), (None, None));
    let nulls = r#"{"prompt": "a", "model": null, "max_tokens": null, "temperature": null, "stop": null, "seed": null,
        "logit_bias": null, "logprobs": null, "stream": null, "stream_options": null, "n": null, "echo": null,
        "cache_salt": null, "priority": null}"#;
    assert_eq!(asked("/v1/completions", nulls).await, bare);
    for off in [-1, 0] {
        let request = asked("/v1/completions", &format!(r#"{{"prompt": "a", "top_k": {off}}}"#)).await;
        assert_eq!(request.sampling.unwrap().top_k.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn a_conversation() {
    let body = r#"{
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}],
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none",
        "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true, "top_logprobs": 3,
        "chat_template": "{{ messages }}", "chat_template_kwargs": {"enable_thinking": false},
        "reasoning_effort": "low", "add_generation_prompt": true, "continue_final_message": false,
        "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "parallel_tool_calls": true,
        "cache_salt": "ü", "priority": 2147483647
    }"#;
    let request = asked("/v1/chat/completions", body).await;
    let Some(Prompt { prompt: Some(PromptKind::Chat(chat)), add_special_tokens: None }) = request.prompt
    else {
        panic!("{:?}", request.prompt)
    };
    assert_eq!(
        chat,
        Chat {
            messages_json: vec![
                r#"{"role": "system", "content": "s"}"#.to_owned(),
                r#"{"role": "user", "content": [{"type": "text", "text": "u"}]}"#.to_owned(),
            ],
            tools_json: Some(r#"[{"type": "function", "function": {"name": "f"}}]"#.to_owned()),
            add_generation_prompt: Some(true),
            continue_final_message: Some(false),
            template: Some("{{ messages }}".to_owned()),
            template_variables_json: Some(r#"{"enable_thinking":false,"reasoning_effort":"low"}"#.to_owned()),
        }
    );
    assert_eq!(request.stopping.unwrap().max_tokens, Some(6));
    assert_eq!(request.logprobs, Some(LogprobParams { num_output: Some(3), num_prompt: None }));
    assert_eq!((request.cache_salt.as_deref(), request.priority), (Some("ü"), Some(i32::MAX)));
    let bare = asked("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "a"}]}"#).await;
    assert_eq!(bare.stopping.unwrap().max_tokens, None, "all the context that is left");
}

#[tokio::test]
async fn the_request_id_goes_through() {
    let rig = Rig::hello();
    let send = |id: &'static str| {
        let (mut head, body) = post("/v1/completions", r#"{"prompt": ["a", "b"]}"#).into_parts();
        head.headers.insert("x-request-id", id.parse().unwrap());
        rig.send(Request::from_parts(head, body))
    };
    assert_eq!(send("trace-7").await.headers["x-request-id"], "trace-7");
    assert_eq!(send("trace-7").await.headers["x-request-id"], "trace-7");
    let mut ids: Vec<String> =
        rig.fake.asked().into_iter().filter_map(|request| request.request_id).collect();
    assert!(ids.iter().all(|id| id.starts_with("trace-7-")), "{ids:?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "the same id sent again runs beside the first");
    let replaced = send("not a fit id").await;
    assert_eq!(replaced.headers["x-request-id"].len(), 32);
    assert_eq!(replaced.json()["id"], format!("cmpl-{}", replaced.headers["x-request-id"].to_str().unwrap()));
}

#[tokio::test]
async fn tokenizing_and_back() {
    let rig = Rig::hello();
    let reply = rig.post("/tokenize", r#"{"prompt": "a b", "return_token_strs": true}"#).await;
    assert_eq!(
        reply.json(),
        json!({"count": 2, "max_model_len": 1024, "tokens": [7, 8], "token_strs": ["a", "Ġb"], "base_count": 3})
    );
    let reply = rig.post("/tokenize", r#"{"messages": [{"role": "user", "content": "a"}]}"#).await;
    assert_eq!(reply.json(), json!({"count": 2, "max_model_len": 1024, "tokens": [7, 8], "base_count": 3}));
    let reply = rig.post("/detokenize", r#"{"tokens": [7, 8]}"#).await;
    assert_eq!(reply.json(), json!({"prompt": "[7, 8]"}));
}
