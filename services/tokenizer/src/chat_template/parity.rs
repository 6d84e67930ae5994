//! Templates render what Jinja2 renders as transformers runs it, and refuse what it refuses: see
//! `tests/golden/make_templates.py`.

use fused_testkit::{golden, repository};
use serde_json::{Value, json};

use super::*;

fn rendered(template: &str, conversation: &Value) -> Option<String> {
    let config =
        json!({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"});
    let config = serde_json::from_value(config).unwrap();
    let templates = ChatTemplates::load(&config, None, RequestTemplates::Refused).unwrap();
    let json = |field: &str| conversation.get(field).map(Value::to_string);
    let request = ChatRequest {
        messages: conversation["messages"].as_array().unwrap().iter().map(Value::to_string).collect(),
        tools: json("tools"),
        variables: json("variables"),
        template: None,
        add_generation_prompt: conversation["add_generation_prompt"].as_bool(),
        continue_final_message: conversation["continue_final_message"].as_bool().unwrap_or(false),
    };
    templates.render(&Conversation::try_from(request).unwrap()).ok()
}

fn check(differing: &[String]) {
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

fn difference(what: &str, expected: Option<&str>, actual: Option<&str>) -> Option<String> {
    (expected != actual).then(|| format!("{what}\n  Jinja2: {expected:?}\n  here:   {actual:?}"))
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let golden = golden("chat_templates.json").unwrap();
    let folder = repository().join("tests/golden/chat_templates");
    let conversations = golden["conversations"].as_object().unwrap();
    let mut differing = Vec::new();
    let mut num_texts = 0;
    for (file, outcomes) in golden["templates"].as_object().unwrap() {
        let template = std::fs::read_to_string(folder.join(file)).unwrap();
        for (name, conversation) in conversations {
            let expected = outcomes[name].as_str();
            num_texts += usize::from(expected.is_some());
            let actual = rendered(&template, conversation);
            differing.extend(difference(&format!("{file}, {name}"), expected, actual.as_deref()));
        }
    }
    check(&differing);
    assert!(num_texts > 200, "{num_texts} texts");
}

#[test]
fn expressions_mean_what_they_mean_to_jinja2() {
    let golden = golden("chat_templates.json").unwrap();
    let expressions = golden["expressions"].as_array().unwrap();
    let differing = expressions.iter().filter_map(|expression| {
        let template = expression[0].as_str().unwrap();
        let actual = rendered(template, &golden["expressions_conversation"]);
        difference(template, expression[1].as_str(), actual.as_deref())
    });
    check(&differing.collect::<Vec<_>>());
    assert!(expressions.len() > 300, "{} expressions", expressions.len());
}
