//! In which form a template takes the content of messages: as text, or as a list of parts. Templates do not say; so each
//! is tried once, with a conversation of each role, on a list and on a text.

use minijinja::{Template, Value};

use super::messages::with_field;

/// How a template takes a content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ContentForm {
    /// Text only: a list would be refused, or written out as one.
    #[default]
    Text,
    /// Either.
    Any,
    /// A list only: of a text it writes nothing.
    Parts,
}

/// The roles that are tried; others are taken to be treated as the first.
const ROLES: [&str; 5] = ["user", "system", "developer", "assistant", "tool"];
/// What is looked for in what a template makes of a content.
const FIRST: &str = "first-part";
const SECOND: &str = "second-part";

/// The form for each role.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContentForms([ContentForm; ROLES.len()]);

impl ContentForms {
    /// Tries a template, beside what else it sees, with the roles that are wanted.
    pub(super) fn of_template(
        template: &Template<'_, '_>,
        context: &Value,
        wanted: impl Fn(&str) -> bool,
    ) -> Self {
        Self(
            ROLES.map(
                |role| if wanted(role) { form(template, context, role) } else { ContentForm::default() },
            ),
        )
    }

    pub(super) fn of(&self, role: &str) -> ContentForm {
        let idx = ROLES.iter().position(|known| *known == role).unwrap_or(0);
        self.0.get(idx).copied().unwrap_or_default()
    }
}

fn form(template: &Template<'_, '_>, context: &Value, role: &str) -> ContentForm {
    let part = |text: &str| Value::from_pairs([("type", "text"), ("text", text)]);
    let written = |content: Value| {
        let context = with_field(context, "messages", &conversation(role, content));
        template.render(context).unwrap_or_default()
    };
    let of_list = written(Value::from(vec![part(FIRST), part(SECOND)]));
    let of_text = written(Value::from(FIRST));
    // A list that is written out as one shows its keys.
    let num_keys = |written: &str| written.matches("text").count();
    let takes_list = of_list.contains(FIRST) && num_keys(&of_list) <= num_keys(&of_text);
    match (takes_list && of_list.contains(SECOND), of_text.contains(FIRST)) {
        (true, true) => ContentForm::Any,
        (_, false) if takes_list => ContentForm::Parts,
        // One that writes the first part only loses nothing of a text.
        _ => ContentForm::Text,
    }
}

/// A short conversation with a content in a message of one role, where templates expect such a message.
fn conversation(role: &str, content: Value) -> Value {
    let message =
        |role: &str, content: Value| Value::from_pairs([("role", Value::from(role)), ("content", content)]);
    let tried = message(role, content);
    let other = message("user", Value::from("x"));
    Value::from(match role {
        "user" => vec![tried],
        "system" | "developer" => vec![tried, other],
        _ => vec![other.clone(), tried, other],
    })
}
