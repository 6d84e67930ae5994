//! Messages as OpenAI's clients send them, made what chat templates are written for.

use fused_status::{Error, Result};
use minijinja::Value;
use minijinja::value::ValueKind;

use super::parts::{ContentForm, ContentForms};

/// The names under which models' reasoning is passed; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Reads a message. A field that is null is one that is not there, an empty list of calls is none, and a message always
/// has a content: clients echo what servers sent them, and templates test only whether a field is there.
pub(super) fn message(field: &str, message: &Value) -> Result<Value> {
    let role = message.get_attr("role").unwrap_or_default();
    if role.as_str().is_none_or(str::is_empty) {
        let problem = format!("{field}.role must be a text such as \"user\"");
        return Err(Error::invalid(format!("{field}.role"), problem));
    }
    let mut fields = Vec::new();
    for (name, value) in entries(message) {
        let value = match (name.as_str(), value.kind()) {
            ("content", ValueKind::None) => Value::from(""),
            (_, ValueKind::None) => continue,
            ("content", _) => content(&format!("{field}.content"), value)?,
            ("tool_calls", ValueKind::Seq) if value.len() == Some(0) => continue,
            ("tool_calls", _) => tool_calls(&value),
            _ => value,
        };
        fields.push((name, value));
    }
    if !fields.iter().any(|(name, _)| name == "content") {
        fields.push(("content".to_owned(), Value::from("")));
    }
    alias_reasoning(&mut fields);
    Ok(Value::from_pairs(fields))
}

/// Puts a reasoning under the names by which templates read it, in the places where transformers puts them.
fn alias_reasoning(fields: &mut Vec<(String, Value)>) {
    let find = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let Some(reasoning) = REASONING.iter().find_map(|name| find(name)) else { return };
    let thinking = find("thinking").unwrap_or_else(|| reasoning.clone());
    fields.retain(|(name, _)| name != "thinking");
    fields.insert(0, ("thinking".to_owned(), thinking));
    match fields.iter_mut().find(|(name, _)| name == "reasoning_content") {
        Some((_, value)) => *value = reasoning,
        None => fields.push(("reasoning_content".to_owned(), reasoning)),
    }
}

pub(super) fn entries(map: &Value) -> impl Iterator<Item = (String, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.filter_map(|key| Some((key.as_str()?.to_owned(), map.get_item(&key).ok()?)))
}

/// A message's content: a text, or a list of parts, which all are texts.
fn content(field: &str, value: Value) -> Result<Value> {
    match value.kind() {
        ValueKind::String => Ok(value),
        ValueKind::Seq => {
            for (idx, part) in value.try_iter().into_iter().flatten().enumerate() {
                check_part(field, idx, &part)?;
            }
            Ok(value)
        }
        kind => Err(Error::invalid(field, format!("{field} must be a text or a list of parts, not {kind}"))),
    }
}

fn check_part(field: &str, idx: usize, part: &Value) -> Result<()> {
    let get = |name| part.get_attr(name).unwrap_or_default();
    let kind = get("type");
    match (kind.as_str(), get("text").as_str()) {
        (Some("text"), Some(_)) => Ok(()),
        (Some(kind), _) if kind != "text" => {
            let problem = format!("{field}[{idx}]: parts of type `{kind}` are not supported, only `text`");
            Err(Error::invalid(field, problem))
        }
        _ => Err(Error::invalid(field, format!("{field}[{idx}] must be a part with a type and a text"))),
    }
}

/// Gives contents the forms in which a template takes them: joined, for one that knows plain text only, as a list of one
/// part, for one that knows lists only.
pub(super) fn shape_contents(context: &Value, forms: &ContentForms) -> Value {
    let shaped = messages_of(context).map(|message| {
        let get = |name| message.get_attr(name).unwrap_or_default();
        let content = get("content");
        match (forms.of(get("role").as_str().unwrap_or_default()), content.kind()) {
            (ContentForm::Text, ValueKind::Seq) => with_field(&message, "content", &joined(&content)),
            (ContentForm::Parts, ValueKind::String) => with_field(&message, "content", &as_list(content)),
            _ => message,
        }
    });
    with_field(context, "messages", &shaped.collect())
}

pub(super) fn messages_of(context: &Value) -> impl Iterator<Item = Value> {
    let messages = context.get_attr("messages").unwrap_or_default();
    messages.try_iter().into_iter().flatten()
}

fn joined(parts: &Value) -> Value {
    let texts = parts.try_iter().into_iter().flatten().filter_map(|part| part.get_attr("text").ok());
    let texts: Vec<_> = texts.filter_map(|text| text.as_str().map(str::to_owned)).collect();
    Value::from(texts.join("\n"))
}

fn as_list(text: Value) -> Value {
    Value::from(vec![Value::from_pairs([("type", Value::from("text")), ("text", text)])])
}

/// A message's text, or that of its last part, and the message with a suffix to it; none where it has no text.
pub(super) fn with_suffix(message: &Value, suffix: &str) -> Option<(String, Value)> {
    let content = message.get_attr("content").ok()?;
    if let Some(text) = content.as_str() {
        let marked = Value::from(format!("{text}{suffix}"));
        return Some((text.to_owned(), with_field(message, "content", &marked)));
    }
    let mut parts: Vec<Value> = content.try_iter().ok()?.collect();
    let last = parts.last_mut()?;
    let text = last.get_attr("text").ok()?.as_str()?.to_owned();
    *last = with_field(last, "text", &Value::from(format!("{text}{suffix}")));
    Some((text, with_field(message, "content", &Value::from(parts))))
}

pub(super) fn with_field(map: &Value, field: &str, new: &Value) -> Value {
    let replace = |(name, value)| if name == field { (name, new.clone()) } else { (name, value) };
    Value::from_pairs(entries(map).map(replace))
}

/// Tool calls with their arguments as objects: the OpenAI API carries them as JSON texts, templates expect the objects.
fn tool_calls(calls: &Value) -> Value {
    let Ok(items) = calls.try_iter() else { return calls.clone() };
    items.map(|call| change(&call, "function", |function| change(function, "arguments", arguments))).collect()
}

fn change(map: &Value, field: &str, change: impl Fn(&Value) -> Value) -> Value {
    match map.get_attr(field) {
        Ok(value) if map.kind() == ValueKind::Map && !value.is_undefined() => {
            with_field(map, field, &change(&value))
        }
        _ => map.clone(),
    }
}

fn arguments(value: &Value) -> Value {
    let Some(text) = value.as_str() else { return value.clone() };
    // A call without arguments is often sent so.
    let text = if text.trim().is_empty() { "{}" } else { text };
    match serde_json::from_str::<Value>(text) {
        Ok(parsed) if parsed.kind() == ValueKind::Map => parsed,
        _ => value.clone(),
    }
}
