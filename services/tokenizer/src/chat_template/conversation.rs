use std::collections::BTreeMap;

use fused_status::{Error, Result};
use minijinja::Value;
use minijinja::value::ValueKind;

use super::messages::{entries, message, with_suffix};

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
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
    variables: BTreeMap<String, Value>,
    pub(super) template: Option<String>,
    add_generation_prompt: bool,
    /// The last message's text, where the answer is to go on from it.
    to_continue: Option<String>,
}

/// What stands behind a text that is to be continued while it is rendered: wherever the template puts the text, the
/// prompt ends there. Behind it a space, which goes where the template trims the text.
const END_MARK: &str = "THE_TEXT_GOES_ON_HERE_7F3A91C2";

impl TryFrom<ChatRequest> for Conversation {
    type Error = Error;

    fn try_from(request: ChatRequest) -> Result<Self> {
        if request.messages.is_empty() {
            return Err(Error::invalid("messages", "the conversation has no message"));
        }
        let messages = request.messages.iter().enumerate();
        let messages = messages.map(|(idx, json)| {
            let field = format!("messages[{idx}]");
            message(&field, &parse(json, &field, ValueKind::Map)?)
        });
        let mut messages = messages.collect::<Result<Vec<_>>>()?;
        let tools = request.tools.as_deref().map(|json| parse(json, "tools", ValueKind::Seq)).transpose()?;
        let variables = match request.variables.as_deref() {
            Some(json) => entries(&parse(json, "chat_template_kwargs", ValueKind::Map)?).collect(),
            None => BTreeMap::new(),
        };
        let mut to_continue = None;
        if request.continue_final_message {
            if request.add_generation_prompt == Some(true) {
                let message = "continue_final_message and add_generation_prompt exclude each other";
                return Err(Error::invalid("continue_final_message", message));
            }
            to_continue = Some(mark_end(&mut messages)?);
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
    pub(super) fn context(&self, special_tokens: &[(String, Value)]) -> Value {
        let none = || Value::from(());
        let mut context = BTreeMap::from([("documents".to_owned(), none())]);
        context.extend(special_tokens.iter().cloned());
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
        let place = text.rfind(END_MARK).filter(|_| text.contains(to_continue.trim()));
        let Some(end) = place else {
            let message = "the chat template changes the last message, so that it cannot be continued";
            return Err(Error::invalid("continue_final_message", message));
        };
        let keeps_spaces = text[end + END_MARK.len()..].starts_with(' ');
        text.truncate(end);
        // A template that trims would have taken the spaces before the mark, too.
        if !keeps_spaces {
            text.truncate(text.trim_end().len());
        }
        // A template may write a message twice.
        if text.contains(END_MARK) {
            text = text.replace(&format!("{END_MARK} "), "").replace(END_MARK, "");
        }
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

/// Marks the end of the last message's text, and returns the text.
fn mark_end(messages: &mut [Value]) -> Result<String> {
    let problem = || Error::invalid("continue_final_message", "the last message has no text to continue");
    let last = messages.last_mut().ok_or_else(problem)?;
    let (text, marked) = with_suffix(last, &format!("{END_MARK} ")).ok_or_else(problem)?;
    *last = marked;
    Ok(text)
}
