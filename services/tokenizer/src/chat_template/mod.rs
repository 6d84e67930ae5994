//! Chat templates: Jinja as transformers runs it (trimmed blocks, loop controls, generation blocks, values and their
//! methods as Python has them: [`rewrite`](mod@rewrite), [`filters`], [`operators`], [`methods`], [`repr`]), with fuel, so
//! that no template can run on, and on a stack of its own, so that none ends the process by being deep. What fuel does
//! not see (comparing, joining and dropping values that contain one another a thousand times) a model's template may
//! still do; a request's own one, where the server allows it, is rendered by a process of its own, whose memory and
//! time the operating system bounds.

mod arguments;
mod conversation;
mod deep_stack;
mod environment;
mod filters;
mod isolated;
mod literals;
mod macros;
mod messages;
mod methods;
mod operators;
mod parts;
mod repr;
mod rewrite;
mod source;
mod tag;
mod text_methods;
mod tojson;
mod tokens;
mod value_tests;
mod views;

use std::collections::BTreeMap;
use std::path::PathBuf;

use fused_status::{Code, Error, Result};
use minijinja::{Environment, ErrorKind, Value};

pub(crate) use conversation::{ChatRequest, Conversation};
use deep_stack::on_deep_stack;
use environment::environment;
pub use isolated::{RENDER_COMMAND, answer_render_job, render_chat_template};
use messages::shape_contents;
use parts::ContentForms;
use rewrite::rewrite;
use source::check_source;

use crate::events;
use crate::tokenizer_config::TokenizerConfig;

/// The largest template that a request may bring.
const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// The largest that a model may have; the largest published ones have some 30 KB. How deep a template nests is bounded by
/// its length and that of its tags, and by that the stack that it takes.
const MAX_MODEL_TEMPLATE_BYTES: usize = 128 << 10;
const DEFAULT: &str = "default";
/// The template for conversations with tools, where a model has one of its own for them.
const TOOL_USE: &str = "tool_use";

/// What becomes of a template that a request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestTemplates {
    /// It is rendered by a process of its own: this program, called with [`RENDER_COMMAND`].
    Isolated(PathBuf),
    Refused,
}

/// The model's chat templates, compiled.
pub(crate) struct ChatTemplates {
    request_templates: RequestTemplates,
    environment: Environment<'static>,
    /// In which form each template takes contents.
    forms: BTreeMap<String, ContentForms>,
    special_tokens: Vec<(String, Value)>,
}

impl ChatTemplates {
    /// Compiles the model's templates, or the one that is given in their place.
    ///
    /// # Errors
    /// The given one cannot be compiled. A model whose own is beyond us can still complete text.
    pub(crate) fn load(
        config: &TokenizerConfig,
        given: Option<&str>,
        request_templates: RequestTemplates,
    ) -> std::result::Result<Self, minijinja::Error> {
        let mut environment = environment();
        if let Some(template) = given {
            add_template(&mut environment, DEFAULT, template)?;
        } else {
            for (name, template) in config.chat_templates() {
                if let Err(error) = add_template(&mut environment, name, template) {
                    events::broken_chat_template(name, &error);
                }
            }
        }
        let special_tokens: Vec<_> =
            config.special_tokens().into_iter().map(|(name, text)| (name, Value::from(text))).collect();
        let context = Conversation::default().context(&special_tokens);
        let templates = environment.templates();
        let forms = templates.map(|(name, template)| {
            // Where no thread is to be had for it, contents are texts.
            let forms = on_deep_stack(|| ContentForms::of_template(&template, &context, |_| true));
            (name.to_owned(), forms.unwrap_or_default())
        });
        let forms = forms.collect();
        Ok(Self { request_templates, environment, forms, special_tokens })
    }

    /// Whether the model has a template for conversations that can be used.
    pub(crate) fn has_default(&self) -> bool {
        self.environment.get_template(DEFAULT).is_ok()
    }

    /// Renders a conversation to the prompt's text.
    pub(crate) fn render(&self, conversation: &Conversation) -> Result<String> {
        let context = conversation.context(&self.special_tokens);
        let text = match (&conversation.template, &self.request_templates) {
            (Some(_), RequestTemplates::Refused) => {
                let message = "this server renders the model's own chat template only; its setting \
                               `trust_request_chat_template` allows others";
                return Err(Error::new(Code::Unsupported, message).with_param("chat_template"));
            }
            (Some(template), _) if template.len() > MAX_TEMPLATE_BYTES => {
                let message = format!("the template has {} bytes, over {MAX_TEMPLATE_BYTES}", template.len());
                return Err(Error::invalid("chat_template", message));
            }
            (Some(template), RequestTemplates::Isolated(program)) => {
                let checked = check_source(template);
                checked.map_err(|error| Error::invalid("chat_template", error.to_string()))?;
                isolated::render(program, template, &context)?
            }
            (None, _) => {
                let template = self.model_template(conversation)?;
                let forms = self.forms.get(template.name()).copied().unwrap_or_default();
                // What the template made is dropped there, too, an error's part of it included.
                let render =
                    || template.render(shape_contents(&context, &forms)).map_err(|error| refusal(&error));
                let rendered = on_deep_stack(render).map_err(|error| Error::internal(&error))?;
                rendered.map_err(|message| Error::invalid("messages", message))?
            }
        };
        conversation.cut_to_continue(text)
    }

    fn model_template(&self, conversation: &Conversation) -> Result<minijinja::Template<'_, '_>> {
        let special =
            if conversation.has_tools() { self.environment.get_template(TOOL_USE).ok() } else { None };
        special.or_else(|| self.environment.get_template(DEFAULT).ok()).ok_or_else(|| {
            let message = match self.request_templates {
                RequestTemplates::Isolated(_) => {
                    "this model has no usable chat template; send one in `chat_template`, or use completions"
                }
                RequestTemplates::Refused => "this model has no usable chat template; use completions",
            };
            Error::new(Code::Unsupported, message).with_param("messages")
        })
    }
}

fn add_template(
    environment: &mut Environment<'static>,
    name: &str,
    template: &str,
) -> std::result::Result<(), minijinja::Error> {
    if template.len() > MAX_MODEL_TEMPLATE_BYTES {
        let problem = format!("it has {} bytes, over {MAX_MODEL_TEMPLATE_BYTES}", template.len());
        return Err(minijinja::Error::new(ErrorKind::SyntaxError, problem));
    }
    check_source(template)?;
    let name = name.to_owned();
    on_deep_stack(|| environment.add_template_owned(name, rewrite(template))).unwrap_or_else(|error| {
        let problem = "there is no thread to read it on";
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem).with_source(error))
    })
}

/// A template that fails has, as a rule, been given something that it was not made for.
fn refusal(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => {
            "the chat template needs more work for this conversation than is allowed".to_owned()
        }
        _ => format!("the chat template refuses this conversation: {error}"),
    }
}

#[cfg(test)]
mod parity;
#[cfg(test)]
mod tests;
