use std::collections::BTreeMap;

use fused_status::{Error, Result};
use minijinja::Value;
use minijinja::value::ValueKind;

/// A conversation as it came from the caller: JSON texts, because templates read arbitrary fields of them, in their
/// order.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatRequest {
    pub(crate) messages: Vec<String>,
    pub(crate) tools: Option<String>,
    pub(crate) variables: Option<String>,
    pub(crate) template: Option<String>,
    /// None: yes, unless the last message is to be continued.
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: bool,
}

/// A conversation that a template can render.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
    variables: BTreeMap<String, Value>,
    pub(super) template: Option<String>,
    add_generation_prompt: bool,
    /// The last message's text, where the answer is to go on from it.
    to_continue: Option<String>,
}

impl TryFrom<ChatRequest> for Conversation {
    type Error = Error;

    fn try_from(request: ChatRequest) -> Result<Self> {
        if request.messages.is_empty() {
            return Err(Error::invalid("messages", "the conversation has no message"));
        }
        let messages = request.messages.iter().enumerate();
        let messages = messages.map(|(idx, json)| message(idx, json)).collect::<Result<Vec<_>>>()?;
        let tools = request.tools.as_deref().map(|json| parse(json, "tools", ValueKind::Seq)).transpose()?;
        let variables = match request.variables.as_deref() {
            Some(json) => entries(&parse(json, "chat_template_kwargs", ValueKind::Map)?).collect(),
            None => BTreeMap::new(),
        };
        let to_continue = request.continue_final_message.then(|| final_text(&messages)).transpose()?;
        if to_continue.is_some() && request.add_generation_prompt == Some(true) {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(Error::invalid("continue_final_message", message));
        }
        Ok(Self {
            messages,
            tools: tools.filter(|tools| tools.len() != Some(0)),
            variables,
            template: request.template,
            add_generation_prompt: request.add_generation_prompt.unwrap_or(to_continue.is_none()),
            to_continue,
        })
    }
}

impl Conversation {
    pub(super) fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// What the template sees. The caller's variables come first: they do not replace the conversation.
    pub(super) fn context(&self, special_tokens: &[(&'static str, Value)]) -> Value {
        let none = || Value::from(());
        let mut context = BTreeMap::from([("documents".to_owned(), none())]);
        context.extend(special_tokens.iter().map(|(name, text)| ((*name).to_owned(), text.clone())));
        context.extend(self.variables.clone());
        context.insert("messages".to_owned(), Value::from(self.messages.clone()));
        context.insert("tools".to_owned(), self.tools.clone().unwrap_or_else(none));
        context.insert("add_generation_prompt".to_owned(), Value::from(self.add_generation_prompt));
        Value::from(context)
    }

    /// Ends the rendered text right after the last message's text, where that is to be continued: what the template sets
    /// behind a message would end it.
    pub(super) fn cut_to_continue(&self, mut text: String) -> Result<String> {
        let Some(to_continue) = &self.to_continue else { return Ok(text) };
        let trimmed = to_continue.trim();
        let Some(start) = text.rfind(trimmed) else {
            let message = "the chat template changes the last message, so that it cannot be continued";
            return Err(Error::invalid("continue_final_message", message));
        };
        let mut end = start + trimmed.len();
        // A template that does not trim keeps the spaces after the message; so does its continuation.
        let spaces = &to_continue[to_continue.trim_end().len()..];
        if text[end..].starts_with(spaces) {
            end += spaces.len();
        }
        text.truncate(end);
        Ok(text)
    }
}

fn parse(json: &str, field: &str, kind: ValueKind) -> Result<Value> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| Error::invalid(field, format!("{field} is not valid JSON: {error}")))?;
    if value.kind() == kind {
        Ok(value)
    } else {
        let expected = if kind == ValueKind::Seq { "an array" } else { "an object" };
        Err(Error::invalid(field, format!("{field} must be {expected}, not {}", value.kind())))
    }
}

fn entries(map: &Value) -> impl Iterator<Item = (String, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.filter_map(|key| Some((key.as_str()?.to_owned(), map.get_item(&key).ok()?)))
}

fn message(idx: usize, json: &str) -> Result<Value> {
    let field = format!("messages[{idx}]");
    let message = parse(json, &field, ValueKind::Map)?;
    let role = message.get_attr("role").unwrap_or_default();
    if role.as_str().is_none_or(str::is_empty) {
        let problem = format!("{field}.role must be a text such as \"user\"");
        return Err(Error::invalid(format!("{field}.role"), problem));
    }
    let fields = entries(&message).map(|(name, value)| {
        let value = match name.as_str() {
            "content" => content(&format!("{field}.content"), value)?,
            "tool_calls" => tool_calls(&value),
            _ => value,
        };
        Ok((name, value))
    });
    Ok(Value::from_pairs(fields.collect::<Result<Vec<_>>>()?))
}

/// A message's content. Parts are joined by line breaks: templates are written for plain text.
fn content(field: &str, value: Value) -> Result<Value> {
    match value.kind() {
        ValueKind::String | ValueKind::None => Ok(value),
        ValueKind::Seq => {
            let parts = value.try_iter().into_iter().flatten().enumerate();
            let texts: Vec<_> =
                parts.map(|(idx, part)| part_text(field, idx, &part)).collect::<Result<_>>()?;
            Ok(Value::from(texts.join("\n")))
        }
        kind => Err(Error::invalid(field, format!("{field} must be a text or a list of parts, not {kind}"))),
    }
}

fn part_text(field: &str, idx: usize, part: &Value) -> Result<String> {
    let get = |name| part.get_attr(name).unwrap_or_default();
    let kind = get("type");
    match (kind.as_str(), get("text").as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some(kind), _) if kind != "text" => {
            let problem = format!("{field}[{idx}]: parts of type `{kind}` are not supported, only `text`");
            Err(Error::invalid(field, problem))
        }
        _ => Err(Error::invalid(field, format!("{field}[{idx}] must be a part with a type and a text"))),
    }
}

/// Tool calls with their arguments as objects: the OpenAI API carries them as JSON texts, templates expect the objects.
fn tool_calls(calls: &Value) -> Value {
    let map = |value: &Value, name: &str, change: &dyn Fn(Value) -> Value| {
        if value.kind() != ValueKind::Map {
            return value.clone();
        }
        let change = |(key, value)| if key == name { (key, change(value)) } else { (key, value) };
        Value::from_pairs(entries(value).map(change))
    };
    let arguments = |value: Value| match value.as_str().map(serde_json::from_str::<Value>) {
        Some(Ok(parsed)) if parsed.kind() == ValueKind::Map => parsed,
        _ => value,
    };
    let function = |value: Value| map(&value, "arguments", &arguments);
    match calls.try_iter() {
        Ok(calls) => calls.map(|call| map(&call, "function", &function)).collect(),
        Err(_) => calls.clone(),
    }
}

fn final_text(messages: &[Value]) -> Result<String> {
    let last = messages.last().and_then(|message| message.get_attr("content").ok());
    match last.as_ref().and_then(Value::as_str) {
        Some(text) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => Err(Error::invalid("continue_final_message", "the last message has no text to continue")),
    }
}
