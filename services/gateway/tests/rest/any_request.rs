//! Whatever a body holds, it is answered or refused in OpenAI's shape, and the next one is served.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::rig::Rig;

const FIELDS: [&str; 34] = [
    "add_generation_prompt",
    "add_special_tokens",
    "best_of",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_tokens",
    "model",
    "n",
    "priority",
    "prompt",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "return_token_ids",
    "seed",
    "stop",
    "stop_token_ids",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-4_i64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["text", "user", "auto", "none", "required"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            ".{0,4}",
            prop::sample::select(vec!["role", "content", "type", "text"]).prop_map(str::to_owned)
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_fields_are_answered_or_refused(
        fields in prop::collection::vec((prop::sample::select(FIELDS.to_vec()), value()), 0..4),
    ) {
        let mut body = json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]});
        for (name, value) in fields {
            body[name] = value;
        }
        answered_or_refused(body.to_string().as_bytes());
    }

    #[test]
    fn any_bytes_are_refused(body in prop::collection::vec(any::<u8>(), 0..64)) {
        answered_or_refused(&body);
    }
}

fn answered_or_refused(body: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let rig = Rig::hello();
        for route in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
            let request = http::Request::post(route).header("content-type", "application/json");
            let reply = rig.send(request.body(body.to_vec().into()).unwrap()).await;
            match reply.status.as_u16() {
                200 => {}
                400 => {
                    let error = &reply.json()["error"];
                    assert!(
                        matches!(error["code"].as_str(), Some("invalid_argument" | "unsupported")),
                        "{error}"
                    );
                }
                status => panic!("{route}: {status}: {}", reply.body),
            }
        }
    });
}
