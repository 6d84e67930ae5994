//! A conversation's fields: messages, tools and the variables of the chat template. They go on as the client spelled
//! them, because templates read arbitrary fields of them; here is checked only what every template relies on.

use std::collections::BTreeMap;

use fused_proto::text::v1::Chat;
use fused_status::{Code, Error};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::Fault;
use crate::fields::{Fields, missing, parse, parse_items, unsupported, wrong};

/// Reads them.
pub(super) fn chat(fields: &mut Fields<'_>) -> Result<Chat, Error> {
    let messages_json = messages(fields)?;
    let tools_json = tools(fields)?;
    let template_variables_json = template_variables(fields)?;
    let continue_final_message: Option<bool> = fields.take("continue_final_message")?;
    let add_generation_prompt: Option<bool> = fields.take("add_generation_prompt")?;
    // To go on with the last message is not to open a new one.
    let add_generation_prompt = match (continue_final_message, add_generation_prompt) {
        (Some(true), Some(true)) => {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(Error::invalid("continue_final_message", message));
        }
        (Some(true), None) => Some(false),
        (_, add_generation_prompt) => add_generation_prompt,
    };
    Ok(Chat {
        messages_json,
        tools_json,
        add_generation_prompt,
        continue_final_message,
        template: fields.take("chat_template")?,
        template_variables_json,
    })
}

fn messages(fields: &mut Fields<'_>) -> Result<Vec<String>, Error> {
    let value = fields.raw("messages").ok_or_else(|| missing("messages"))?;
    let messages = parse_items("messages", value)?;
    if messages.is_empty() {
        return Err(Error::invalid("messages", "messages must not be empty"));
    }
    for (idx, message) in messages.iter().enumerate() {
        check_message(&format!("messages[{idx}]"), message)?;
    }
    Ok(messages.into_iter().map(|message| message.get().to_owned()).collect())
}

fn check_message(path: &str, message: &RawValue) -> Result<(), Error> {
    let message: Map<String, Value> = parse(path, message)?;
    // Which roles there are is the template's to say.
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    if role.is_empty() {
        let path = format!("{path}.role");
        let message = format!("{path} must be a text such as \"user\"");
        return Err(Error::invalid(path, message));
    }
    let path = format!("{path}.content");
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => check_parts(&path, parts),
        // It may have been calls alone, or nothing, and agents send back what they got.
        None | Some(Value::Null) if role == "assistant" => Ok(()),
        _ => Err(Error::invalid(path.as_str(), format!("{path} must be a string or an array of text parts"))),
    }
}

fn check_parts(path: &str, parts: &[Value]) -> Result<(), Error> {
    for (idx, part) in parts.iter().enumerate() {
        if part.get("type").and_then(Value::as_str) != Some("text") {
            return Err(unsupported(&format!("{path}[{idx}].type")));
        }
        if !part.get("text").is_some_and(Value::is_string) {
            let path = format!("{path}[{idx}].text");
            return Err(Error::invalid(path.as_str(), format!("{path} must be a string")));
        }
    }
    Ok(())
}

/// Tools are shown to the template. An empty list is none: clients that build it at run time send one.
fn tools(fields: &mut Fields<'_>) -> Result<Option<String>, Error> {
    let Some(tools) = fields.raw("tools") else { return Ok(None) };
    check_objects("tools", tools)?;
    Ok(Some(tools.get().to_owned())
        .filter(|_| parse_items("tools", tools).is_ok_and(|tools| !tools.is_empty())))
}

/// Refuses tools that the model might call. It may see them, but what it writes comes back as text: an agent that waits for
/// `tool_calls` would take a call for the final answer.
pub(super) fn check_tool_choice(choice: Option<&RawValue>, has_tools: bool) -> Result<(), Error> {
    let param = match choice {
        None if has_tools => "tools",
        None => return Ok(()),
        Some(choice) => match choice.get() {
            r#""none""# => return Ok(()),
            r#""auto""# if has_tools => "tools",
            r#""auto""# => return Ok(()),
            asked if asked == r#""required""# || asked.starts_with('{') => "tool_choice",
            _ => {
                return Err(wrong(
                    "tool_choice",
                    "\"none\", \"auto\", \"required\" or a tool's name",
                    choice,
                ));
            }
        },
    };
    let message = format!(
        "{param} is not supported here: calls are not read from the model's text as yet. With \"tool_choice\": \"none\" the \
         model sees the tools and answers with text"
    );
    Err(Error::new(Code::Unsupported, message).with_param(param))
}

/// `chat_template_kwargs`, and the fields that templates know under their own names.
fn template_variables(fields: &mut Fields<'_>) -> Result<Option<String>, Error> {
    const KWARGS: &str = "chat_template_kwargs";
    let mut variables: BTreeMap<String, &RawValue> = BTreeMap::new();
    if let Some(kwargs) = fields.raw(KWARGS) {
        parse::<Map<String, Value>>(KWARGS, kwargs)?;
        variables = serde_json::from_str(kwargs.get()).map_err(|_| wrong(KWARGS, "an object", kwargs))?;
    }
    if let Some(documents) = fields.raw("documents") {
        check_objects("documents", documents)?;
        variables.insert("documents".to_owned(), documents);
    }
    if let Some(effort) = fields.raw("reasoning_effort") {
        parse::<String>("reasoning_effort", effort)?;
        variables.insert("reasoning_effort".to_owned(), effort);
    }
    if variables.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::to_string(&variables).map_err(Fault::from)?))
}

fn check_objects(path: &str, array: &RawValue) -> Result<(), Error> {
    for (idx, item) in parse_items(path, array)?.into_iter().enumerate() {
        parse::<Map<String, Value>>(&format!("{path}[{idx}]"), item)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_tools_and_variables_go_on_as_they_were_spelled() {
        let body = r#"{"messages": [{"role": "user", "content": "\u00e4", "z": 1, "a": 2}],
            "tools": [{"type": "function", "a": {"z": 1, "b": 2}}],
            "documents": [{"title": "t"}], "chat_template_kwargs": {"x": {"z": 1, "b": 2}}}"#;
        let chat = chat(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!(chat.messages_json, [r#"{"role": "user", "content": "\u00e4", "z": 1, "a": 2}"#]);
        assert_eq!(chat.tools_json.unwrap(), r#"[{"type": "function", "a": {"z": 1, "b": 2}}]"#);
        let variables = r#"{"documents":[{"title": "t"}],"x":{"z": 1, "b": 2}}"#;
        assert_eq!(chat.template_variables_json.unwrap(), variables);
        assert_eq!(chat.add_generation_prompt, None);
    }

    #[test]
    fn going_on_with_a_message_opens_no_new_one() {
        let body = r#"{"messages": [{"role": "assistant", "content": "a"}], "continue_final_message": true}"#;
        let chat = chat(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!(chat.add_generation_prompt, Some(false));
    }

    #[test]
    fn an_assistant_may_have_said_nothing_roles_are_the_templates_and_no_tools_are_none() {
        let body = r#"{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": null},
            {"role": "assistant"}], "tools": []}"#;
        let chat = chat(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!((chat.messages_json.len(), chat.tools_json), (3, None));
    }

    #[test]
    fn tools_are_seen_and_never_called() {
        let param = |choice: Option<&str>, has_tools| {
            let choice = choice.map(|choice| serde_json::from_str::<Box<RawValue>>(choice).unwrap());
            check_tool_choice(choice.as_deref(), has_tools)
                .err()
                .map(|error| error.param().unwrap().to_owned())
        };
        for choice in [None, Some(r#""auto""#), Some(r#""none""#)] {
            assert_eq!(param(choice, false), None, "{choice:?}");
        }
        assert_eq!(param(Some(r#""none""#), true), None);
        assert_eq!(
            [None, Some(r#""auto""#)].map(|choice| param(choice, true)),
            ["tools", "tools"].map(|p| Some(p.to_owned()))
        );
        for choice in [r#""required""#, r#"{"type": "function", "function": {"name": "f"}}"#, "7"] {
            assert_eq!(param(Some(choice), true).as_deref(), Some("tool_choice"));
        }
    }

    #[test]
    fn what_templates_rely_on_is_checked() {
        for (message, param) in [
            ("7", "messages[0]"),
            ("{}", "messages[0].role"),
            (r#"{"role": "", "content": "a"}"#, "messages[0].role"),
            (r#"{"role": 7, "content": "a"}"#, "messages[0].role"),
            (r#"{"role": "user"}"#, "messages[0].content"),
            (r#"{"role": "user", "content": 7}"#, "messages[0].content"),
            (r#"{"role": "user", "content": [{"type": "image_url"}]}"#, "messages[0].content[0].type"),
            (r#"{"role": "user", "content": [{"type": "text"}]}"#, "messages[0].content[0].text"),
            // Half a surrogate pair is no string, though JSON's grammar allows it.
            (r#"{"role": "user", "content": "\ud800"}"#, "messages[0]"),
        ] {
            let body = format!(r#"{{"messages": [{message}]}}"#);
            let error = chat(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.param(), Some(param), "{message}: {error}");
        }
    }
}
