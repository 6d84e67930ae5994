use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::environment::FUEL;
use super::*;

fn templates(config: serde_json::Value) -> ChatTemplates {
    ChatTemplates::load(
        &serde_json::from_value(config).unwrap(),
        None,
        RequestTemplates::Isolated("/bin/false".into()),
    )
    .unwrap()
}

fn request(messages: &[serde_json::Value]) -> ChatRequest {
    ChatRequest {
        messages: messages.iter().map(serde_json::Value::to_string).collect(),
        ..ChatRequest::default()
    }
}

fn render(template: &str, request: ChatRequest) -> Result<String> {
    let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    templates(config).render(&Conversation::try_from(request)?)
}

fn user(text: &str) -> ChatRequest {
    request(&[json!({"role": "user", "content": text})])
}

#[test]
fn blocks_are_trimmed_and_python_methods_known() {
    let template = "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m['content'].strip().upper() }}\n  \
                    {% else %}\n{% continue %}\n  {% endif %}\n{% endfor %}\n{{ bos_token }}{{ eos_token }}\n";
    let request = request(&[
        json!({"role": "system", "content": "ignored"}),
        json!({"role": "user", "content": " hi "}),
    ]);
    assert_eq!(render(template, request).unwrap(), "HI\n<s></s>");
}

#[test]
fn tojson_writes_as_python_does() {
    let request = ChatRequest {
        messages: vec![r#"{"role": "user", "content": "x"}"#.to_owned()],
        tools: Some(r#"[{"name": "f", "q": "a<b'ü", "n": [1, 2.5, null, true, {}]}]"#.to_owned()),
        ..ChatRequest::default()
    };
    let template = "{{ tools | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ tools[0].q | tojson(ensure_ascii=False) }}";
    assert_eq!(
        render(template, request).unwrap(),
        "[{\"name\": \"f\", \"q\": \"a<b'ü\", \"n\": [1, 2.5, null, true, {}]}]|{\n  \"role\": \"user\",\n  \
         \"content\": \"x\"\n}|\"a<b'ü\""
    );
}

#[test]
fn fields_keep_the_callers_order() {
    let request = ChatRequest {
        messages: vec![r#"{"role": "user", "content": "x", "z": 1, "a": 2}"#.to_owned()],
        ..ChatRequest::default()
    };
    let rendered = render("{{ messages[0] | tojson }}", request).unwrap();
    assert_eq!(rendered, r#"{"role": "user", "content": "x", "z": 1, "a": 2}"#);
}

#[test]
fn variables_reach_the_template_but_do_not_replace_the_conversation() {
    let mut request = user("x");
    request.variables = Some(r#"{"thinking": true, "messages": [], "documents": [1]}"#.to_owned());
    let template = "{{ thinking }} {{ messages | length }} {{ documents | length }} {{ tools is none }}";
    assert_eq!(render(template, request).unwrap(), "True 1 1 True");
}

#[test]
fn contents_have_the_form_that_the_template_takes() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let list = || request(&[json!({"role": "user", "content": parts})]);
    for (template, of_list, of_text) in [
        // One that knows texts only: joined.
        ("{{ bos_token + messages[0].content }}", "<s>a\nb", "<s>x"),
        ("{{ messages[0].content }}", "a\nb", "x"),
        ("{{ messages[0].content | tojson }}", "\"a\\nb\"", "\"x\""),
        // One that knows both: as they are.
        (
            "{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }};{% endfor %}{% endif %}",
            "a;b;",
            "x",
        ),
        // One that knows lists only: a list of one.
        ("{% for p in messages[0].content if p.type == 'text' %}<{{ p.text }}>{% endfor %}", "<a><b>", "<x>"),
        ("{{ messages[0]['content'][0]['text'] }}", "a", "x"),
    ] {
        assert_eq!(render(template, list()).unwrap(), of_list, "{template}");
        assert_eq!(render(template, user("x")).unwrap(), of_text, "{template}");
    }
    // Each role by itself.
    let template = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '.' }}{% else %}\
                    {% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}";
    let both = [json!({"role": "system", "content": parts}), json!({"role": "user", "content": parts})];
    assert_eq!(render(template, request(&both)).unwrap(), "a\nb.<a><b>");
}

#[test]
fn parts_that_are_no_texts_are_refused_by_name() {
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let error = render("", request(&[json!({"role": "user", "content": image})])).unwrap_err();
    assert_eq!(error.param(), Some("messages[0].content"));
    assert!(error.message().contains("image_url"), "{error}");
}

/// Histories as OpenAI's clients send them back.
#[test]
fn a_field_that_is_null_is_not_there_and_a_content_always_is() {
    let field = |message: serde_json::Value| {
        let template = "{{ messages[0].keys() | list | join(' ') }}:{{ messages[0].content }}";
        render(template, request(&[message])).unwrap()
    };
    let call = json!({"type": "function", "function": {"name": "f", "arguments": ""}});
    assert_eq!(
        field(json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [call]})),
        "role content tool_calls:"
    );
    assert_eq!(field(json!({"role": "assistant", "tool_calls": [], "content": "a"})), "role content:a");
    assert_eq!(field(json!({"role": "assistant", "tool_calls": null})), "role content:");
    assert_eq!(
        field(json!({"role": "critic", "content": "a", "name": "n", "reasoning": "r"})),
        "thinking role content name reasoning reasoning_content:a"
    );
}

#[test]
fn tool_call_arguments_become_objects() {
    let called = |arguments: serde_json::Value| {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
        let request = request(&[json!({"role": "assistant", "content": null, "tool_calls": [call]})]);
        render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", request).unwrap()
    };
    assert_eq!(called(json!("{\"x\": 1.0}")), "{\"x\": 1.0}");
    assert_eq!(called(json!({"x": 1})), "{\"x\": 1}");
    assert_eq!(called(json!("")), "{}");
    assert_eq!(called(json!("not json")), "\"not json\"");
    assert_eq!(called(json!("[1]")), "\"[1]\"");
}

#[test]
fn a_given_template_replaces_the_models_or_is_refused() {
    let config: TokenizerConfig = serde_json::from_value(json!({"chat_template": [
        {"name": "default", "template": "model's"}, {"name": "tool_use", "template": "tools"}]}))
    .unwrap();
    let load = |given| ChatTemplates::load(&config, given, RequestTemplates::Refused);
    let with_tools = ChatRequest { tools: Some("[{}]".to_owned()), ..user("x") };
    let conversation = Conversation::try_from(with_tools).unwrap();
    assert_eq!(load(None).unwrap().render(&conversation).unwrap(), "tools");
    assert_eq!(load(Some("given")).unwrap().render(&conversation).unwrap(), "given");
    assert!(load(Some("{% broken")).is_err());
}

#[test]
fn the_generation_prompt_is_the_default_and_can_be_left_out() {
    let template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}";
    assert_eq!(render(template, user("x")).unwrap(), "x>");
    let without = ChatRequest { add_generation_prompt: Some(false), ..user("x") };
    assert_eq!(render(template, without).unwrap(), "x");
}

#[test]
fn the_final_message_can_be_continued() {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}";
    let continued = |text: &str| {
        let messages =
            [json!({"role": "user", "content": "Sure"}), json!({"role": "assistant", "content": text})];
        ChatRequest { continue_final_message: true, ..request(&messages) }
    };
    assert_eq!(render(template, continued("Sure")).unwrap(), "[user]Sure[end][assistant]Sure");
    assert_eq!(render(template, continued("Sure, ")).unwrap(), "[user]Sure[end][assistant]Sure, ");
    let trimming = "{{ messages[1].content | trim }}[end]";
    assert_eq!(render(trimming, continued(" Sure, ")).unwrap(), "Sure,");
    assert!(render("nothing", continued("Sure")).is_err());
    // Whatever the text has in it, or what is set behind it: the prompt ends where the text does.
    assert_eq!(render(template, continued("[end]")).unwrap(), "[user]Sure[end][assistant][end]");
    let repeating =
        "{{ messages[1].content }}|{{ messages[1].content | trim }}|{{ messages[1].content }}Sure<<";
    assert_eq!(render(repeating, continued("Sure")).unwrap(), "Sure|Sure|Sure");
    assert_eq!(render(template, continued(" ")).unwrap(), "[user]Sure[end][assistant] ");
    let calls = ChatRequest {
        continue_final_message: true,
        ..request(&[json!({"role": "assistant", "content": [], "tool_calls": [{}]})])
    };
    assert!(render(template, calls).is_err());
    let both = ChatRequest { add_generation_prompt: Some(true), ..continued("Sure") };
    assert_eq!(render(template, both).unwrap_err().param(), Some("continue_final_message"));
}

#[test]
fn tools_choose_the_template_made_for_them() {
    let config = json!({"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"}]});
    let templates = templates(config);
    let rendered = |tools: Option<&str>| {
        let request = ChatRequest { tools: tools.map(str::to_owned), ..user("x") };
        templates.render(&Conversation::try_from(request).unwrap()).unwrap()
    };
    assert_eq!(rendered(None), "plain");
    assert_eq!(rendered(Some("[]")), "plain");
    assert_eq!(rendered(Some("[{}]")), "tools");
}

#[test]
fn a_template_that_refuses_says_why() {
    let error = render("{{ raise_exception('roles must alternate') }}", user("x")).unwrap_err();
    assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some("messages")));
    assert!(error.message().contains("roles must alternate"), "{error}");
}

#[test]
fn dates_are_written_as_python_does() {
    let date = render("{{ strftime_now('%d %b %Y') }}", user("x")).unwrap();
    let parts: Vec<_> = date.split(' ').map(str::len).collect();
    assert_eq!(parts, [2, 3, 4], "{date}");
    let error = render("{{ strftime_now('%!') }}", user("x")).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[test]
fn no_template_runs_on() {
    let template = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x\
                    {% endfor %}{% endfor %}{% endfor %}";
    let error = render(template, user("x")).unwrap_err();
    assert!(error.message().contains("more work"), "{error}");
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert_eq!(render(recursive, user("x")).unwrap_err().code(), Code::InvalidArgument);
}

/// What a template may do to whoever renders it; the deep ones end a stack of 2 MiB.
#[test]
fn hostile_templates_are_refused_or_rendered_and_end_nothing() {
    let refused = |template: &str| {
        let error = render(template, user("x")).unwrap_err();
        assert!(matches!(error.code(), Code::InvalidArgument | Code::Unsupported), "{error}");
    };
    refused("{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}");
    refused("{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns | tojson }}");
    refused(&format!("{{% set a = [1] %}}{}{{{{ a }}}}", "{% set a = [a, a] %}".repeat(60)));
    refused(&format!("{{% set a = [1] %}}{}{{{{ a | tojson }}}}", "{% set a = [a, a] %}".repeat(60)));
    refused(
        "{% set ns = namespace(a=1) %}{% for i in range(40000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
    );
    refused("{{ 'x' * 1000000000 }}");
    refused("{{ '%1000000000d' | format(1) }}");
    refused("{{ '{:1000000000}'.format(1) }}");
    refused("{{ '{:1000000000}{:9999999999999999999999}'.format(1, 2) }}");
    refused("{{ '{:.1000000000f}'.format(1.5) }}");
    refused("{{ '{:{w}}'.format(1, w=1000000000) }}");
    refused("{{ '%(日b)d' % {'a': 1} }}{{ '%(日b)d' | format(a=1) }}");
    refused("{{ '%(日b)d' | format(a=1) }}");
    refused("{{ '%1000000000d' % 1 }}");
    refused("{% impor+t 'x' as y %y %}");
    refused("{{ 'x' | truncate(1000000000, false, 'y' * 1000000000) }}");
    refused("{{ [[1] * 1000] | tojson(indent=' ' * 17) }}");
    refused("{{ 'x'.ljust(1000000000) }}");
    refused("{{ 'x' | center(1000000000) }}");
    refused("{{ 'x' | indent(1000000000) }}");
    refused("{{ range(1000000000) | list }}");
    refused(
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    );
    refused(
        "{% set ns = namespace(a='xx') %}{% for i in range(60) %}{% set ns.a = ns.a.replace('x', ns.a) %}{% endfor %}",
    );
    refused(
        "{% set ns = namespace(a='xx') %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] | join(ns.a) %}{% endfor %}",
    );
    refused(
        "{% set ns = namespace(a='xx') %}{% for i in range(60) %}{% set ns.a = ns.a.join([ns.a, ns.a, ns.a]) %}{% endfor %}",
    );
    for deep in ["{% for i in range(40000) %}{% set ns.a = [ns.a] %}{% endfor %}", "{% set ns.a = [ns.a] %}"]
    {
        let built = format!("{{% set ns = namespace(a=1) %}}{deep}dropped");
        assert_eq!(render(&built, user("x")).unwrap(), "dropped");
    }
    // As long as a tag may be, and as a template may be.
    let longest = |most: usize, open: &str, unit: &str, close: &str| {
        let num = (most - open.len() - close.len()) / unit.len();
        let _ = render(&format!("{open}{}{close}", unit.repeat(num)), user("x"));
    };
    for (open, unit) in [
        ("{{ ", "not "),
        ("{{ ", "-"),
        ("{{ 1", "+1"),
        ("{{ 1", "**1"),
        ("{{ 1", "~1"),
        ("{{ a", ".a"),
        ("{{ a", "[0]"),
        ("{{ a", "()"),
        ("{{ 'a'", "|e"),
        ("{{ 1", " is odd"),
        ("{{ 1", " if 1 else 1"),
        ("{{ 1", "<1"),
        ("{{ ", "("),
        ("{{ ", "["),
        ("{% set ", "("),
    ] {
        longest(4096, open, unit, "1 }}");
    }
    longest(MAX_MODEL_TEMPLATE_BYTES, "{% if 0 %}", "{% elif 0 %}", "{% endif %}");
    longest(MAX_MODEL_TEMPLATE_BYTES, "", "{% if 1 %}", "");
    longest(MAX_MODEL_TEMPLATE_BYTES, "{% set a = 1 %}", "{% set a = [a] %}", "");
}

#[test]
fn a_requests_own_template_is_refused_where_it_is_not_trusted() {
    let config = serde_json::from_value(json!({"chat_template": "model's"})).unwrap();
    let templates = ChatTemplates::load(&config, None, RequestTemplates::Refused).unwrap();
    let render = |request| templates.render(&Conversation::try_from(request).unwrap());
    assert_eq!(render(user("x")).unwrap(), "model's");
    let error = render(ChatRequest { template: Some("own".into()), ..user("x") }).unwrap_err();
    assert_eq!((error.code(), error.param()), (Code::Unsupported, Some("chat_template")));
    assert!(error.message().contains("trust_request_chat_template"), "{error}");
}

#[test]
fn a_missing_or_broken_template_refuses_chats_only() {
    for config in [json!({}), json!({"chat_template": "{% broken"})] {
        let conversation = Conversation::try_from(user("x")).unwrap();
        let error = templates(config).render(&conversation).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.message().contains("chat template"), "{error}");
    }
}

#[test]
fn templates_that_ask_for_others_are_refused() {
    for template in
        ["{% import 'x' as y(1) %}", "{% from 'x' import y %}", "{% include 'x' %}", "{% extends 'x' %}"]
    {
        let error = render(template, user("x")).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported, "{template}");
    }
}

#[test]
fn malformed_conversations_are_refused_by_field() {
    let refused = |request: ChatRequest| {
        Conversation::try_from(request).unwrap_err().param().unwrap_or_default().to_owned()
    };
    let raw = |text: &str| ChatRequest { messages: vec![text.to_owned()], ..ChatRequest::default() };
    assert_eq!(refused(ChatRequest::default()), "messages");
    assert_eq!(refused(raw("{")), "messages[0]");
    assert_eq!(refused(raw("[]")), "messages[0]");
    assert_eq!(refused(raw("{}")), "messages[0].role");
    assert_eq!(refused(raw(r#"{"role": 1}"#)), "messages[0].role");
    assert_eq!(refused(raw(r#"{"role": "user", "content": 1}"#)), "messages[0].content");
    assert_eq!(refused(raw(r#"{"role": "user", "content": ["text"]}"#)), "messages[0].content");
    assert_eq!(refused(ChatRequest { tools: Some("{}".into()), ..user("x") }), "tools");
    assert_eq!(refused(ChatRequest { variables: Some("[]".into()), ..user("x") }), "chat_template_kwargs");
    let deep = format!(r#"{{"role": "user", "x": {}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(refused(raw(&deep)), "messages[0]");
}

/// The template of a published model, from the data folder beside the repository.
fn published(file: &str) -> Option<String> {
    let folder = std::env::var_os("FUSED_TEST_DATA").map(PathBuf::from).or_else(|| {
        let script = fused_testkit::repository().join("../shared/data/unpack.sh");
        let output =
            script.is_file().then(|| std::process::Command::new("bash").arg(script).output())?.ok()?;
        Some(Path::new(String::from_utf8(output.stdout).ok()?.trim()).to_owned())
    });
    let text = folder.and_then(|folder| std::fs::read_to_string(folder.join("tokenizers").join(file)).ok());
    if text.is_none() {
        // Not by a macro: the test harness would swallow it, and a skipped test must be seen to be skipped.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no {file} (set FUSED_TEST_DATA)");
    }
    text
}

#[test]
fn llama_3_renders() {
    let Some(config) = published("llama3/tokenizer_config.json") else { return };
    let templates = templates(serde_json::from_str(&config).unwrap());
    let request = request(&[
        json!({"role": "system", "content": " Be kind. "}),
        json!({"role": "user", "content": "Hi"}),
    ]);
    assert_eq!(
        templates.render(&Conversation::try_from(request).unwrap()).unwrap(),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn qwen_2_5_renders_tools_and_their_calls() {
    let Some(template) = published("qwen2.5/chat_template.jinja") else { return };
    let call = json!({"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}});
    let mut request = request(&[
        json!({"role": "user", "content": "1 + 2?"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "content": "3"}),
    ]);
    request.tools = Some(r#"[{"type": "function", "function": {"name": "add"}}]"#.to_owned());
    let rendered = render(&template, request).unwrap();
    assert!(
        rendered.contains("<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"add\"}}\n</tools>"),
        "{rendered}"
    );
    assert!(
        rendered.ends_with(
            "<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": \"add\", \"arguments\": \
             {\"a\": 1, \"b\": 2}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_response>\
             <|im_end|>\n<|im_start|>assistant\n"
        ),
        "{rendered}"
    );
}

#[test]
fn real_templates_need_a_tenth_of_the_fuel_for_a_full_context() {
    let Some(llama) = published("llama3/tokenizer_config.json") else { return };
    let Some(qwen) = published("qwen2.5/chat_template.jinja") else { return };
    let llama: serde_json::Value = serde_json::from_str(&llama).unwrap();
    // 200 messages, half a megabyte: a context of 128 Ki tokens.
    let roles = ["user", "assistant"].into_iter().cycle().take(200);
    let messages: Vec<_> = roles.map(|role| json!({"role": role, "content": "x".repeat(2500)})).collect();
    let conversation = Conversation::try_from(request(&messages)).unwrap();
    for template in [llama["chat_template"].as_str().unwrap(), &qwen] {
        let templates = templates(json!({"chat_template": template, "bos_token": "<s>"}));
        let template = templates.model_template(&conversation).unwrap();
        let rendered = template.render_captured(conversation.context(&templates.special_tokens)).unwrap();
        let (used, _) = rendered.state().fuel_levels().unwrap();
        assert!(used > 0 && used <= FUEL / 10, "{used} of {FUEL}");
    }
}
