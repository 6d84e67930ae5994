//! Whole answers, key by key.

use fused_gateway::Config;
use fused_proto::common::v1::FinishReason;
use fused_proto::text::v1::finish_info::Matched;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::prompt::Prompt;
use fused_proto::text::v1::{GenerateRequest, TextIncrement, TextLogprobs};
use http::StatusCode;
use serde_json::{Value, json};

use crate::fake::{End, Fake, Script, finish, prompt_info, text, token, usage};
use crate::rig::Rig;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = r#""messages": [{"role": "user", "content": "Hi"}]"#;

/// Takes out what differs from run to run, having checked it.
fn normalise(mut answer: Value, id_prefix: &str) -> Value {
    let id = answer["id"].as_str().unwrap();
    assert_eq!(id.strip_prefix(id_prefix).unwrap().len(), 32, "{id}");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer.as_object_mut().unwrap().retain(|key, _| key != "id" && key != "created");
    answer
}

#[tokio::test]
async fn a_completion() {
    let rig = Rig::hello();
    let reply = rig.post(COMPLETIONS, r#"{"model": "org/demo", "prompt": "Hi"}"#).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(
        normalise(reply.json(), "cmpl-"),
        json!({
            "object": "text_completion",
            "model": "org/demo",
            "system_fingerprint": "fused-0123456789ab",
            "choices": [{
                "index": 0, "text": "Hello world", "logprobs": null, "finish_reason": "stop", "stop_reason": null,
            }],
            "usage": {
                "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1},
                "prompt_base_tokens": 4, "completion_base_tokens": 5,
            },
        })
    );
}

#[tokio::test]
async fn a_chat_completion() {
    let rig = Rig::hello();
    let reply = rig.post(CHAT, &format!("{{{MESSAGES}, \"n\": 2}}")).await;
    assert_eq!(reply.status, StatusCode::OK);
    let choice = |index| {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": "Hello world", "refusal": null},
            "logprobs": null, "finish_reason": "stop", "stop_reason": null,
        })
    };
    let answer = normalise(reply.json(), "chatcmpl-");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"], json!([choice(0), choice(1)]));
    assert_eq!(answer["usage"]["total_tokens"], 5);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
}

#[tokio::test]
async fn choices_of_several_prompts_stand_prompt_by_prompt() {
    // Each prompt's own text comes back, the last prompt's first.
    let by_prompt = |request: &GenerateRequest| {
        let Some(Prompt::Text(prompt)) = request.prompt.as_ref().and_then(|prompt| prompt.prompt.clone())
        else {
            panic!("{request:?}")
        };
        let mut messages = vec![prompt_info()];
        for idx in (0..request.num_sequences()).rev() {
            messages.push(text(idx, &format!("{prompt}{idx}")));
            messages.push(finish(idx, FinishReason::Length, None));
        }
        messages.push(usage());
        Script { refusal: None, messages, end: End::Whole }
    };
    let rig = Rig::new(Config::default(), Fake::new(by_prompt));
    let answer = rig.post(COMPLETIONS, r#"{"prompt": ["a", "b", "c"], "n": 2}"#).await.json();
    let choices: Vec<(u64, &str)> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap()))
        .collect();
    assert_eq!(choices, [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1"), (4, "c0"), (5, "c1")]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 9);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(answer["usage"]["prompt_base_tokens"], 12);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 3);
    let mut ids: Vec<String> =
        rig.fake.asked().into_iter().filter_map(|request| request.request_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

#[tokio::test]
async fn stop_reasons() {
    for (matched, reason) in [
        (Matched::StopString("END".to_owned()), json!("END")),
        (Matched::StopTokenId(42), json!(42)),
        (Matched::EosTokenId(0), json!(null)),
    ] {
        let script = move |_: &GenerateRequest| Script {
            refusal: None,
            messages: vec![prompt_info(), finish(0, FinishReason::Stop, Some(matched.clone())), usage()],
            end: End::Whole,
        };
        let rig = Rig::new(Config::default(), Fake::new(script));
        let answer = rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["stop_reason"], reason);
    }
}

fn with_logprobs(_: &GenerateRequest) -> Script {
    let position = TextLogprobs {
        token: Some(token("Hello", -0.25)),
        top: vec![token("Hello", -0.25), token("Hi", -1.5)],
        text_offset: Some(3),
    };
    let Message::Text(increment) = text(0, "Hello") else { unreachable!() };
    let increment = TextIncrement { logprobs: vec![position], ..increment };
    let messages =
        vec![prompt_info(), Message::Text(increment), finish(0, FinishReason::Length, None), usage()];
    Script { refusal: None, messages, end: End::Whole }
}

#[tokio::test]
async fn an_echo_stands_before_the_text_in_everything() {
    let rig = Rig::new(Config::default(), Fake::new(with_logprobs));
    let body = r#"{"prompt": "Hi", "echo": true, "logprobs": 2, "max_tokens": 0, "return_token_ids": true}"#;
    let answer = rig.post(COMPLETIONS, body).await.json();
    assert_eq!(
        answer["choices"][0],
        json!({
            "index": 0, "text": "Hé Hello", "finish_reason": "length", "stop_reason": null,
            "logprobs": {
                "text_offset": [0, 2, 3],
                "token_logprobs": [null, -0.5, -0.25],
                "tokens": ["Hé", " ", "Hello"],
                "top_logprobs": [null, {" ": -0.5}, {"Hello": -0.25, "Hi": -1.5}],
            },
            "token_ids": [5], "prompt_token_ids": [1, 2, 3],
        })
    );
    let asked = &rig.fake.asked()[0];
    assert_eq!(asked.echo, Some(true));
    assert_eq!(asked.stopping.as_ref().unwrap().max_tokens, Some(0));
    assert_eq!(asked.logprobs.unwrap().num_prompt, Some(2));
    assert_eq!(asked.logprobs.unwrap().num_output, Some(2));
}

#[tokio::test]
async fn chat_logprobs() {
    let rig = Rig::new(Config::default(), Fake::new(with_logprobs));
    let body = format!("{{{MESSAGES}, \"logprobs\": true, \"top_logprobs\": 2, \"return_token_ids\": true}}");
    let answer = rig.post(CHAT, &body).await.json();
    let hello = json!([72, 101, 108, 108, 111]);
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "content": [{
                "token": "Hello", "logprob": -0.25, "bytes": hello,
                "top_logprobs": [
                    {"token": "Hello", "logprob": -0.25, "bytes": hello},
                    {"token": "Hi", "logprob": -1.5, "bytes": [72, 105]},
                ],
            }],
            "refusal": null,
        })
    );
    assert_eq!(answer["prompt_token_ids"], json!([1, 2, 3]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([5]));
    assert_eq!(rig.fake.asked()[0].logprobs.unwrap().num_output, Some(2));
}

#[tokio::test]
async fn an_aborted_sequence_is_an_error() {
    let aborted = |_: &GenerateRequest| Script {
        refusal: None,
        messages: vec![prompt_info(), text(0, "Hel"), finish(0, FinishReason::Aborted, None), usage()],
        end: End::Whole,
    };
    let rig = Rig::new(Config::default(), Fake::new(aborted));
    let reply = rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await;
    assert_eq!(reply.json()["error"]["code"], "cancelled");
}

#[tokio::test]
async fn a_sequence_that_was_not_asked_for_is_a_fault() {
    let strange = |_: &GenerateRequest| Script {
        refusal: None,
        messages: vec![prompt_info(), text(1, "Hel"), usage()],
        end: End::Whole,
    };
    let rig = Rig::new(Config::default(), Fake::new(strange));
    assert_eq!(rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await.status, 500);
    let streamed = rig.post(COMPLETIONS, r#"{"prompt": "a", "stream": true}"#).await;
    assert!(streamed.body.contains(r#""code":"internal""#), "{}", streamed.body);
}
