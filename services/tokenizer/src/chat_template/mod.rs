//! Chat templates: Jinja as transformers runs it (trimmed blocks, loop controls, Python's string methods), with fuel, so
//! that no template can run on. A request's own template is rendered only where the server trusts it.

mod conversation;
mod tojson;

use fused_status::{Code, Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};

pub(crate) use conversation::{ChatRequest, Conversation};

use crate::events;
use crate::tokenizer_config::TokenizerConfig;

/// What one rendering may cost, in the template engine's measure: an instruction is 1, and so are 64 bytes that a template
/// writes, copies or looks through. So it bounds the time (half a million instructions) as well as the memory (32 MB).
/// The templates of Llama 3 and Qwen 2.5 take 38,000 to 45,000 for 200 messages that fill a context of 128 Ki tokens.
const FUEL: u64 = 500_000;
/// The largest template that a request may bring.
const MAX_TEMPLATE_BYTES: usize = 64 << 10;
const DEFAULT: &str = "default";
/// The template for conversations with tools, where a model has one of its own for them.
const TOOL_USE: &str = "tool_use";

/// What becomes of a template that a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestTemplates {
    /// It is rendered: whoever may send requests is trusted.
    Rendered,
    Refused,
}

/// The model's chat templates, compiled.
pub(crate) struct ChatTemplates {
    request_templates: RequestTemplates,
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, Value)>,
}

impl ChatTemplates {
    pub(crate) fn load(config: &TokenizerConfig, request_templates: RequestTemplates) -> Self {
        let mut environment = environment();
        for (name, template) in config.chat_templates() {
            // A model whose template is beyond us can still complete text.
            if let Err(error) = environment.add_template_owned(name.to_owned(), template.to_owned()) {
                events::broken_chat_template(name, &error);
            }
        }
        let special_tokens =
            config.special_tokens().map(|(name, text)| (name, Value::from(text.to_owned()))).collect();
        Self { request_templates, environment, special_tokens }
    }

    /// Renders a conversation to the prompt's text.
    pub(crate) fn render(&self, conversation: &Conversation) -> Result<String> {
        let context = conversation.context(&self.special_tokens);
        let rendered = match &conversation.template {
            Some(_) if self.request_templates == RequestTemplates::Refused => {
                let message = "this server renders the model's own chat template only; its setting \
                               `trust_request_chat_template` allows others";
                return Err(Error::new(Code::Unsupported, message).with_param("chat_template"));
            }
            Some(template) if template.len() > MAX_TEMPLATE_BYTES => {
                let message = format!("the template has {} bytes, over {MAX_TEMPLATE_BYTES}", template.len());
                return Err(Error::invalid("chat_template", message));
            }
            Some(template) => self.environment.render_str(template, context),
            None => self.model_template(conversation)?.render(context),
        };
        let text = rendered.map_err(|error| refused(&error))?;
        conversation.cut_to_continue(text)
    }

    fn model_template(&self, conversation: &Conversation) -> Result<minijinja::Template<'_, '_>> {
        let special =
            if conversation.has_tools() { self.environment.get_template(TOOL_USE).ok() } else { None };
        special.or_else(|| self.environment.get_template(DEFAULT).ok()).ok_or_else(|| {
            let message = match self.request_templates {
                RequestTemplates::Rendered => {
                    "this model has no usable chat template; send one in `chat_template`, or use completions"
                }
                RequestTemplates::Refused => "this model has no usable chat template; use completions",
            };
            Error::new(Code::Unsupported, message).with_param("messages")
        })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson::tojson);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: &str) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Today's date, in UTC, so that replicas agree.
fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// A template that fails has, as a rule, been given something that it was not made for.
fn refused(error: &minijinja::Error) -> Error {
    let message = match error.kind() {
        ErrorKind::OutOfFuel => {
            "the chat template needs more work for this conversation than is allowed".to_owned()
        }
        _ => format!("the chat template refuses this conversation: {error}"),
    };
    Error::invalid("messages", message)
}

#[cfg(test)]
mod tests;
