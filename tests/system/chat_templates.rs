//! Chat templates from the model's files and from the setting, with histories as OpenAI's clients send them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::Path;

use fused_testkit::{Server, model_dir, run_to_end};
use serde_json::{Value, json};

fn serve(arguments: &[&str]) -> Server {
    let arguments = [&["serve", "--port", "0"], arguments].concat();
    Server::start(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
}

/// The prompt that a chat becomes.
async fn prompt(server: &Server, request: &Value) -> String {
    let (status, answer) = server.post("/tokenize", request).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let tokens = json!({"tokens": answer["tokens"]});
    let (status, answer) = server.post("/detokenize", &tokens).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_given_template_renders_what_clients_send() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("template.jinja");
    let template = "{% for m in messages %}\r\n[{{ m.role }}] {% if m.content is string %}{{ m.content }}{% else %}\
                    {% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% for c in m.tool_calls or [] %}\
                    {{ c.function.name }}{{ c.function.arguments | tojson(separators=(',', ':')) }}{% endfor %}.\r\n\
                    {%- endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    fs::write(&file, template).unwrap();
    let server = serve(&["--chat-template", file.to_str().unwrap()]);
    let call = |arguments: &str| json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [call("{\"x\": 1.0}"), call("")], "refusal": null},
        {"role": "tool", "tool_call_id": "a", "content": "c"},
        {"role": "assistant", "content": "d", "tool_calls": []},
        {"role": "critic", "content": "e"},
        {"role": "assistant", "content": null},
    ]);
    let expected =
        "[user] <a><b>.[assistant] f{\"x\":1.0}f{}.[tool] c.[assistant] d.[critic] e.[assistant] .";
    assert_eq!(prompt(&server, &json!({"messages": messages})).await, format!("{expected}[assistant]"));
    let continued = json!({"messages": [{"role": "user", "content": "x."}, {"role": "assistant", "content": "x"}],
        "continue_final_message": true, "add_generation_prompt": false});
    assert_eq!(prompt(&server, &continued).await, "[user] x..[assistant] x");
}

#[tokio::test]
async fn templates_and_special_tokens_are_read_from_all_files_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(model_dir("demo-llama").join(name), folder.path().join(name)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": "not this one"}"#);
    write("special_tokens_map.json", r#"{"bos_token": "begin", "eos_token": {"content": "end"}}"#);
    write(
        "chat_template.json",
        r#"{"chat_template": "{{ bos_token }} {{ messages[0].content }} {{ eos_token }}"}"#,
    );
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "{{ tools | length }} tools");
    let server = serve(&["--model", folder.path().to_str().unwrap()]);
    let messages = json!([{"role": "user", "content": "x"}]);
    assert_eq!(prompt(&server, &json!({"messages": messages})).await, "begin x end");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(prompt(&server, &json!({"messages": messages, "tools": tools})).await, "1 tools");
}

#[test]
fn a_given_template_that_cannot_be_used_is_refused_at_start() {
    for (given, word) in
        [("/no/such/file.jinja", "/no/such/file.jinja"), ("{% if %}", "chat_template"), ("/dev", "/dev")]
    {
        let arguments = ["serve", "--port", "0", "--chat-template", given];
        let finished = run_to_end(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap();
        assert!(!finished.status.success(), "{given} was accepted");
        for word in ["chat_template", word] {
            assert!(finished.stderr.contains(word), "no `{word}` in: {}", finished.stderr);
        }
    }
}
