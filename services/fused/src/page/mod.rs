//! What HTML pages are made with: numbers and plots as they are shown, and one style sheet. A page is one file that needs
//! nothing else.

pub(crate) mod figures;
pub(crate) mod plot;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value};

use figures::{number, percent};

const STYLE: &str = include_str!("style.css");

/// Templates that escape whatever they are given, and have the style sheet as `style.css`.
pub(crate) fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_filter("number", number);
    environment.add_filter("percent", percent);
    environment.add_template("style.css", STYLE)?;
    Ok(environment)
}

/// Markup of our own, which is not escaped.
pub(crate) fn safe(markup: String) -> Value {
    Value::from_safe_string(markup)
}
