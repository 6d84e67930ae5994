//! What is refused, and how: each row a request and what its refusal says.

use std::time::Duration;

use axum::body::Body;
use fused_gateway::Config;
use fused_status::{Code, Error};
use http::{Request, StatusCode};
use serde_json::Value;

use crate::fake::{End, Fake, Script};
use crate::rig::{Reply, Rig, post};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Checks a refusal: OpenAI's shape, nothing beside it.
fn check(reply: &Reply, status: u16, code: &str, param: Option<&str>, part: &str) {
    let body = reply.json();
    let error = &body["error"];
    assert_eq!(reply.status, status, "{body}");
    assert_eq!(reply.headers["content-type"], "application/json");
    assert!(reply.headers.contains_key("x-request-id"));
    let mut keys: Vec<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"], "{body}");
    assert_eq!(error["code"], code, "{body}");
    assert_eq!(error["param"], param.map_or(Value::Null, Value::from), "{body}");
    assert!(error["message"].as_str().unwrap().contains(part), "{body}");
}

#[tokio::test]
async fn bodies_are_refused_by_the_field_at_fault() {
    // Route, body, status, code, param, part of the message.
    let invalid = "invalid_argument";
    let unsupported = "unsupported";
    let prompt = |rest: &str| format!(r#"{{"prompt": "a", {rest}}}"#);
    let chat = |rest: &str| format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {rest}}}"#);
    let rows: Vec<(&str, String, &str, Option<&str>, &str)> = vec![
        (COMPLETIONS, String::new(), invalid, None, "not valid JSON"),
        (COMPLETIONS, "{\"prompt\": ".to_owned(), invalid, None, "not valid JSON"),
        (COMPLETIONS, "[]".to_owned(), invalid, None, "must be a JSON object"),
        (COMPLETIONS, "{}".to_owned(), invalid, Some("prompt"), "required"),
        (COMPLETIONS, r#"{"prompt": [[1], []]}"#.to_owned(), invalid, Some("prompt[1]"), "must not be empty"),
        (COMPLETIONS, r#"{"prompt": [-1]}"#.to_owned(), invalid, Some("prompt[0]"), "got -1"),
        (COMPLETIONS, r#"{"prompt": {"a": 1}}"#.to_owned(), invalid, Some("prompt"), "got an object"),
        (
            COMPLETIONS,
            r#"{"prompt": "\ud800"}"#.to_owned(),
            invalid,
            Some("prompt"),
            "half of a surrogate pair",
        ),
        (COMPLETIONS, prompt(r#""model": 7"#), invalid, Some("model"), "a string, got 7"),
        (COMPLETIONS, prompt(r#""max_tokens": -1"#), invalid, Some("max_tokens"), "at least 0, got -1"),
        (
            COMPLETIONS,
            prompt(r#""max_tokens": "9""#),
            invalid,
            Some("max_tokens"),
            "an integer, got a string",
        ),
        (COMPLETIONS, prompt(r#""max_tokens": 4294967296"#), invalid, Some("max_tokens"), "got 4294967296"),
        (COMPLETIONS, prompt(r#""max_tokens": 1e30"#), invalid, Some("max_tokens"), "an integer, got 1e30"),
        (
            COMPLETIONS,
            prompt(r#""temperature": 2.1"#),
            invalid,
            Some("temperature"),
            "between 0 and 2, got 2.1",
        ),
        (
            COMPLETIONS,
            prompt(r#""temperature": "hot""#),
            invalid,
            Some("temperature"),
            "a number, got a string",
        ),
        (COMPLETIONS, prompt(r#""top_p": 0"#), invalid, Some("top_p"), "over 0 and at most 1, got 0"),
        (COMPLETIONS, prompt(r#""top_p": 1e-60"#), invalid, Some("top_p"), "over 0"),
        (COMPLETIONS, prompt(r#""top_k": -2"#), invalid, Some("top_k"), "at least -1, got -2"),
        (COMPLETIONS, prompt(r#""min_p": 1.5"#), invalid, Some("min_p"), "between 0 and 1"),
        (
            COMPLETIONS,
            prompt(r#""presence_penalty": -2.5"#),
            invalid,
            Some("presence_penalty"),
            "between -2 and 2",
        ),
        (
            COMPLETIONS,
            prompt(r#""frequency_penalty": 3"#),
            invalid,
            Some("frequency_penalty"),
            "between -2 and 2",
        ),
        (COMPLETIONS, prompt(r#""repetition_penalty": 0"#), invalid, Some("repetition_penalty"), "over 0"),
        (
            COMPLETIONS,
            prompt(r#""repetition_penalty": 1e300"#),
            invalid,
            Some("repetition_penalty"),
            "over 0",
        ),
        (COMPLETIONS, prompt(r#""seed": 1.5"#), invalid, Some("seed"), "an integer, got 1.5"),
        (COMPLETIONS, prompt(r#""n": 0"#), invalid, Some("n"), "between 1 and 128, got 0"),
        (COMPLETIONS, prompt(r#""n": 129"#), invalid, Some("n"), "between 1 and 128, got 129"),
        (COMPLETIONS, prompt(r#""n": true"#), invalid, Some("n"), "an integer, got true"),
        (COMPLETIONS, prompt(r#""logprobs": 21"#), invalid, Some("logprobs"), "between 0 and 20"),
        (COMPLETIONS, prompt(r#""logprobs": true"#), invalid, Some("logprobs"), "an integer, got true"),
        (COMPLETIONS, prompt(r#""stop": 7"#), invalid, Some("stop"), "a string or an array of strings"),
        (COMPLETIONS, prompt(r#""stop": ["a", ""]"#), invalid, Some("stop"), "empty string"),
        (COMPLETIONS, prompt(r#""stop": ["a", 7]"#), invalid, Some("stop[1]"), "a string, got 7"),
        (
            COMPLETIONS,
            prompt(&format!(r#""stop": [{}"a"]"#, r#""a","#.repeat(64))),
            invalid,
            Some("stop"),
            "at most 64 strings, got 65",
        ),
        (
            COMPLETIONS,
            prompt(r#""stop_token_ids": [1, "a"]"#),
            invalid,
            Some("stop_token_ids[1]"),
            "an integer",
        ),
        (
            COMPLETIONS,
            prompt(r#""logit_bias": {"a": 1}"#),
            invalid,
            Some("logit_bias"),
            "token ids, got \"a\"",
        ),
        (COMPLETIONS, prompt(r#""logit_bias": {"1": "a"}"#), invalid, Some("logit_bias.1"), "a number"),
        (COMPLETIONS, prompt(r#""logit_bias": [1]"#), invalid, Some("logit_bias"), "an object, got an array"),
        (COMPLETIONS, prompt(r#""stream": "yes""#), invalid, Some("stream"), "true or false, got a string"),
        (COMPLETIONS, prompt(r#""stream_options": {}"#), invalid, Some("stream_options"), "\"stream\": true"),
        (
            COMPLETIONS,
            prompt(r#""stream": true, "stream_options": {"include_usage": 1}"#),
            invalid,
            Some("stream_options.include_usage"),
            "true or false, got 1",
        ),
        (COMPLETIONS, prompt(r#""min_tokens": 17"#), invalid, Some("min_tokens"), "at most the 16 tokens"),
        (
            COMPLETIONS,
            prompt(r#""truncate_prompt_tokens": 0"#),
            invalid,
            Some("truncate_prompt_tokens"),
            "at least 1",
        ),
        (COMPLETIONS, prompt(r#""best_of": 2"#), unsupported, Some("best_of"), "not supported"),
        (COMPLETIONS, prompt(r#""suffix": "b""#), unsupported, Some("suffix"), "not supported"),
        (
            COMPLETIONS,
            prompt(r#""use_beam_search": true"#),
            unsupported,
            Some("use_beam_search"),
            "not supported",
        ),
        (
            COMPLETIONS,
            prompt(r#""structured_outputs": {"regex": "a"}"#),
            unsupported,
            Some("structured_outputs"),
            "not supported",
        ),
        (
            COMPLETIONS,
            prompt(r#""prompt_logprobs": 1"#),
            unsupported,
            Some("prompt_logprobs"),
            "not supported",
        ),
        (COMPLETIONS, prompt(r#""cache_salt": """#), invalid, Some("cache_salt"), "must not be empty"),
        (COMPLETIONS, prompt(r#""cache_salt": 7"#), invalid, Some("cache_salt"), "a string, got 7"),
        (COMPLETIONS, prompt(r#""priority": 1.5"#), invalid, Some("priority"), "an integer, got 1.5"),
        (COMPLETIONS, prompt(r#""priority": "high""#), invalid, Some("priority"), "got a string"),
        (COMPLETIONS, prompt(r#""priority": 2147483648"#), invalid, Some("priority"), "got 2147483648"),
        (CHAT, "{}".to_owned(), invalid, Some("messages"), "required"),
        (CHAT, chat(r#""cache_salt": """#), invalid, Some("cache_salt"), "must not be empty"),
        (CHAT, chat(r#""priority": -2147483649"#), invalid, Some("priority"), "got -2147483649"),
        (CHAT, r#"{"messages": []}"#.to_owned(), invalid, Some("messages"), "must not be empty"),
        (CHAT, r#"{"messages": "a"}"#.to_owned(), invalid, Some("messages"), "an array, got a string"),
        (
            CHAT,
            r#"{"messages": [{"role": 7, "content": ""}]}"#.to_owned(),
            invalid,
            Some("messages[0].role"),
            "must be a string",
        ),
        (CHAT, chat(r#""max_tokens": -1"#), invalid, Some("max_tokens"), "at least 0"),
        (CHAT, chat(r#""max_completion_tokens": -5"#), invalid, Some("max_completion_tokens"), "at least 0"),
        (CHAT, chat(r#""logprobs": 3"#), invalid, Some("logprobs"), "true or false, got 3"),
        (CHAT, chat(r#""top_logprobs": 3"#), invalid, Some("top_logprobs"), "\"logprobs\": true"),
        (
            CHAT,
            chat(r#""logprobs": true, "top_logprobs": 21"#),
            invalid,
            Some("top_logprobs"),
            "between 0 and 20",
        ),
        (CHAT, chat(r#""tools": [7]"#), invalid, Some("tools[0]"), "an object, got 7"),
        (CHAT, chat(r#""tools": [{}]"#), unsupported, Some("tools"), "\"tool_choice\": \"none\""),
        (
            CHAT,
            chat(r#""tools": [{}], "tool_choice": "auto""#),
            unsupported,
            Some("tools"),
            "calls are not read",
        ),
        (
            CHAT,
            chat(r#""tools": [{}], "tool_choice": "required""#),
            unsupported,
            Some("tool_choice"),
            "not supported",
        ),
        (
            CHAT,
            chat(r#""tools": [{}], "tool_choice": {"type": "function"}"#),
            unsupported,
            Some("tool_choice"),
            "",
        ),
        (CHAT, chat(r#""tools": [{}], "tool_choice": 7"#), invalid, Some("tool_choice"), "got 7"),
        (
            CHAT,
            chat(r#""response_format": {"type": "json_object"}"#),
            unsupported,
            Some("response_format"),
            "",
        ),
        (CHAT, chat(r#""modalities": ["text", "audio"]"#), unsupported, Some("modalities"), ""),
        (CHAT, chat(r#""audio": {"voice": "x"}"#), unsupported, Some("audio"), ""),
        (CHAT, chat(r#""best_of": 2"#), unsupported, Some("best_of"), "not supported"),
        (COMPLETIONS, prompt(r#""documents": [{}]"#), unsupported, Some("documents"), "not supported"),
        (COMPLETIONS, prompt(r#""max_tokens": 2.5"#), invalid, Some("max_tokens"), "an integer, got 2.5"),
        (CHAT, chat(r#""echo": true"#), unsupported, Some("echo"), ""),
        (CHAT, chat(r#""chat_template_kwargs": [1]"#), invalid, Some("chat_template_kwargs"), "an object"),
        (CHAT, chat(r#""documents": ["a"]"#), invalid, Some("documents[0]"), "an object, got a string"),
        ("/tokenize", "{}".to_owned(), invalid, Some("prompt"), "required"),
        ("/tokenize", r#"{"prompt": 7}"#.to_owned(), invalid, Some("prompt"), "a string, got 7"),
        ("/detokenize", "{}".to_owned(), invalid, Some("tokens"), "required"),
        ("/detokenize", r#"{"tokens": [1, -1]}"#.to_owned(), invalid, Some("tokens[1]"), "got -1"),
    ];
    let rig = Rig::hello();
    for (route, body, code, param, part) in rows {
        println!("{route} {body}");
        check(&rig.post(route, &body).await, 400, code, param, part);
    }
    assert!(rig.fake.asked().is_empty(), "a refused request reached the text service");
    assert_eq!(rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await.status, StatusCode::OK);
}

/// As vLLM, SGLang, llama.cpp and text-generation-inference spell them.
#[tokio::test]
async fn what_would_constrain_the_output_is_refused_by_name_or_says_nothing() {
    let rig = Rig::hello();
    for field in [
        "regex",
        "ebnf",
        "json_schema",
        "grammar",
        "json",
        "choice",
        "structural_tag",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "response_format",
        "bad_words",
        "allowed_token_ids",
        "logit_processors",
        "lora",
    ] {
        for (route, prompt) in
            [(COMPLETIONS, r#""prompt": "a""#), (CHAT, r#""messages": [{"role": "user", "content": "a"}]"#)]
        {
            let body = |value: &str| format!(r#"{{{prompt}, "{field}": {value}}}"#);
            for value in [r#""[0-9]+""#, r#"{"type": "object"}"#, r#"["a"]"#] {
                check(&rig.post(route, &body(value)).await, 400, "unsupported", Some(field), "leave it out");
            }
            for value in ["null", "\"\"", "[]", "false"] {
                assert_eq!(rig.post(route, &body(value)).await.status, StatusCode::OK, "{field} {value}");
            }
            // An empty schema is one that any JSON fits.
            let status = rig.post(route, &body("{}")).await.status;
            assert_eq!(status == StatusCode::OK, field == "structured_outputs", "{field} {{}}");
        }
    }
}

#[tokio::test]
async fn many_prompts_are_bounded() {
    let rig = Rig::hello();
    let prompts =
        |num: usize, n: u32| format!(r#"{{"prompt": [{}"a"], "n": {n}}}"#, r#""a","#.repeat(num - 1));
    check(
        &rig.post(COMPLETIONS, &prompts(129, 1)).await,
        400,
        "invalid_argument",
        Some("prompt"),
        "at most 128",
    );
    check(
        &rig.post(COMPLETIONS, &prompts(128, 9)).await,
        400,
        "invalid_argument",
        Some("n"),
        "at most 8 for 128",
    );
}

#[tokio::test]
async fn what_goes_with_every_call_is_bounded() {
    let rig = Rig::hello();
    let list = |item: &str, num: usize| vec![item; num].join(",");
    let biases = |num: usize| {
        let entries: Vec<String> = (0..num).map(|id| format!(r#""{id}": 1"#)).collect();
        entries.join(",")
    };
    for (field, largest, too_large, part) in [
        (
            "stop_token_ids",
            format!("[{}]", list("1", 256)),
            format!("[{}]", list("1", 257)),
            "at most 256 token ids, got 257",
        ),
        (
            "logit_bias",
            format!("{{{}}}", biases(1024)),
            format!("{{{}}}", biases(1025)),
            "at most 1024 entries, got 1025",
        ),
        (
            "stop",
            format!("[{}]", list(&format!("{:?}", "x".repeat(512)), 8)),
            format!("[{},\"y\"]", list(&format!("{:?}", "x".repeat(512)), 8)),
            "at most 4096 bytes, got 4097",
        ),
        (
            "cache_salt",
            format!("{:?}", "ü".repeat(128)),
            format!("{:?}", "ü".repeat(129)),
            "at most 256 bytes, got 258",
        ),
    ] {
        for (route, prompt) in
            [(COMPLETIONS, r#""prompt": "a""#), (CHAT, r#""messages": [{"role": "user", "content": "a"}]"#)]
        {
            let body = |value: &str| format!("{{{prompt}, \"{field}\": {value}}}");
            check(&rig.post(route, &body(&too_large)).await, 400, "invalid_argument", Some(field), part);
            assert_eq!(rig.post(route, &body(&largest)).await.status, StatusCode::OK, "{field}");
        }
    }
    assert_eq!(rig.fake.asked().len(), 8, "a refused request reached the text service");
}

#[tokio::test]
async fn log_probabilities_of_echoed_prompts_are_bounded() {
    let rig = Rig::hello();
    let ask = |prompt: &str, rest: &str| format!(r#"{{"prompt": {prompt}, {rest}}}"#);
    // Each prompt once a choice, each position once a log-probability: 2^17 * 16 * 2.
    let text = format!("{:?}", "x".repeat(1 << 17));
    let texts = format!("[{0}, {0}]", format_args!("{:?}", "x".repeat(1 << 16)));
    let ids = format!("[{}]", vec!["1"; 1 << 17].join(","));
    let largest = r#""echo": true, "n": 16, "logprobs": 1, "max_tokens": 0"#;
    for prompt in [&text, &texts, &ids] {
        assert_eq!(rig.post(COMPLETIONS, &ask(prompt, largest)).await.status, StatusCode::OK);
        let num_asked = rig.fake.asked().len();
        for rest in [
            r#""echo": true, "n": 17, "logprobs": 1"#,
            r#""echo": true, "n": 16, "logprobs": 2, "stream": true"#,
        ] {
            let reply = rig.post(COMPLETIONS, &ask(prompt, rest)).await;
            check(&reply, 400, "invalid_argument", Some("logprobs"), "over 4194304");
        }
        assert_eq!(rig.fake.asked().len(), num_asked, "a refused request reached the text service");
    }
    let longer = format!("{:?}", "x".repeat((1 << 17) + 1));
    let reply = rig.post(COMPLETIONS, &ask(&longer, largest)).await;
    check(&reply, 400, "invalid_argument", Some("logprobs"), "up to 4194336");
    // Without an echo a prompt has none.
    let unechoed = ask(&text, r#""n": 17, "logprobs": 20"#);
    assert_eq!(rig.post(COMPLETIONS, &unechoed).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_no_json_request_is_refused() {
    let rig = Rig::hello();
    let form =
        Request::post(COMPLETIONS).header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    check(&rig.send(form).await, 415, "unsupported_media_type", None, "application/json");
    let bytes = Request::post(COMPLETIONS).header("content-type", "application/json");
    let bytes = bytes.body(Body::from(&b"{\"prompt\": \"\xff\"}"[..])).unwrap();
    check(&rig.send(bytes).await, 400, "invalid_argument", None, "no UTF-8 at byte 12");
    check(&rig.get("/v1/completion").await, 404, "not_found", None, "GET /v1/completion");
    for path in [COMPLETIONS, CHAT, "/tokenize"] {
        let reply = rig.get(path).await;
        check(&reply, 405, "method_not_allowed", None, "does not take GET");
        assert_eq!(reply.headers["allow"], "POST");
    }
    for path in ["/health", "/ready", "/v1/models", "/v1/models/x", "/metrics", "/version"] {
        check(&rig.post(path, "{}").await, 405, "method_not_allowed", None, "does not take POST");
    }
}

#[tokio::test]
async fn a_large_body_is_refused_and_the_next_request_is_served() {
    let rig = Rig::hello();
    let body = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(10 << 20));
    check(&rig.post(COMPLETIONS, &body).await, 413, "payload_too_large", None, "4194304 bytes");
    assert_eq!(rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let config = Config { body_read_timeout: Duration::from_millis(20), ..Config::default() };
    let rig = Rig::new(config, Fake::new(crate::fake::hello));
    let never = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request = Request::post(COMPLETIONS).header("content-type", "application/json").body(never).unwrap();
    check(&rig.send(request).await, 504, "deadline_exceeded", None, "within 0.02 s");
}

#[tokio::test]
async fn refusals_of_the_text_service_keep_their_code_and_field() {
    for (code, status) in [
        (Code::ContextLengthExceeded, 400),
        (Code::ModelNotFound, 404),
        (Code::QueueFull, 429),
        (Code::ShuttingDown, 503),
        (Code::Unavailable, 503),
        (Code::DeadlineExceeded, 504),
        (Code::VocabularyMismatch, 500),
        (Code::Internal, 500),
    ] {
        let error = Error::new(code, "what to change").with_param("prompt");
        let refused = error.clone();
        let refusing =
            move |_: &_| Script { refusal: Some(refused.clone()), messages: vec![], end: End::Whole };
        let failing =
            move |_: &_| Script { refusal: None, messages: vec![], end: End::Failure(error.clone()) };
        for fake in [Fake::new(refusing), Fake::new(failing)] {
            for body in [r#"{"prompt": "a"}"#, r#"{"prompt": "a", "stream": true}"#] {
                // Each its own: one that is shutting down is not asked twice.
                let rig = Rig::new(Config::default(), fake.clone());
                let reply = rig.send(post(COMPLETIONS, body)).await;
                check(&reply, status, code.name(), Some("prompt"), "what to change");
                let retry_after =
                    reply.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
                assert_eq!(retry_after, code.retry_after_s().map(|seconds| seconds.to_string()));
                assert!(!reply.headers.contains_key("retry-after-ms"));
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_that_knows_when_to_come_back_says_so_in_both_headers() {
    let full =
        Error::new(Code::QueueFull, "prompts of 30 s wait").with_retry_after(Duration::from_millis(2100));
    let rig = Rig::new(Config::default(), Fake::refusing(full));
    let chat = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    let completion = r#"{"prompt": "a"}"#;
    for (route, body) in [(COMPLETIONS, completion), (CHAT, chat), ("/tokenize", completion)] {
        for body in [body.to_owned(), body.replacen('{', r#"{"stream": true, "#, 1)] {
            let reply = rig.post(route, &body).await;
            check(&reply, 429, "queue_full", None, "30 s");
            assert_eq!(reply.headers["retry-after"], "3");
            assert_eq!(reply.headers["retry-after-ms"], "2100");
        }
    }
}

#[tokio::test]
async fn a_field_that_is_refused_behind_has_the_name_that_was_sent() {
    let completion = r#"{"prompt": "a"}"#;
    let chat = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    let renewed_chat =
        r#"{"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 9, "max_tokens": 8}"#;
    let stream = |body: &str| body.replacen('{', r#"{"stream": true, "#, 1);
    let (stream_completion, stream_chat) = (stream(completion), stream(chat));
    for (route, body, theirs, ours) in [
        (COMPLETIONS, completion, "num_sequences", "n"),
        (COMPLETIONS, completion, "num_output", "logprobs"),
        (COMPLETIONS, &*stream_completion, "num_prompt", "logprobs"),
        (COMPLETIONS, completion, "strings", "stop"),
        (COMPLETIONS, completion, "token_ids", "prompt"),
        (COMPLETIONS, completion, "max_tokens", "max_tokens"),
        (CHAT, chat, "num_sequences", "n"),
        (CHAT, &*stream_chat, "num_output", "top_logprobs"),
        (CHAT, chat, "prompt", "messages"),
        (CHAT, chat, "messages[0].content", "messages[0].content"),
        (CHAT, chat, "max_tokens", "max_tokens"),
        (CHAT, renewed_chat, "max_tokens", "max_completion_tokens"),
        ("/tokenize", completion, "text", "prompt"),
        ("/tokenize", chat, "text", "messages"),
        ("/detokenize", r#"{"tokens": [1]}"#, "token_ids", "tokens"),
    ] {
        let rig = Rig::new(
            Config::default(),
            Fake::refusing(Error::invalid(theirs, format!("{theirs} must be 1, got 2"))),
        );
        let message = format!("{ours} must be 1, got 2");
        check(&rig.post(route, body).await, 400, "invalid_argument", Some(ours), &message);
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_does_not_pass_for_a_whole_one() {
    let cut = |_: &_| Script {
        refusal: None,
        messages: vec![crate::fake::prompt_info(), crate::fake::text(0, "Hel")],
        end: End::Whole,
    };
    let rig = Rig::new(Config::default(), Fake::new(cut));
    check(&rig.post(COMPLETIONS, r#"{"prompt": "a"}"#).await, 500, "internal", None, "internal error");
    let streamed = rig.post(COMPLETIONS, r#"{"prompt": "a", "stream": true}"#).await;
    assert_eq!(streamed.status, StatusCode::OK);
    let events = streamed.events();
    let error: Value = serde_json::from_str(events[events.len() - 2]).unwrap();
    assert_eq!(error["error"]["code"], "internal");
    assert_eq!(events.last(), Some(&"[DONE]"));
}
