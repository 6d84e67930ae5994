//! Macros that take more arguments than they name. Jinja2 gives a macro whose body names `varargs` or `kwargs` what its
//! callers pass beyond its parameters; the engine has no such thing, so that these become parameters of the macro, and
//! its calls pass them. A call by another name than the macro's own stays as it is; of two macros of one name both must take
//! them, or the engine refuses the call.

use std::collections::HashMap;

use super::rewrite::raw_end;
use super::tokens::{Kind, Token, tokenize};

const VARARGS: &str = "varargs";
const KWARGS: &str = "kwargs";

/// The macros of a template that take further arguments, by name.
pub(super) type Macros = HashMap<String, Macro>;

/// A macro's parameters, and which further arguments it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Macro {
    parameters: Vec<String>,
    takes_varargs: bool,
    takes_kwargs: bool,
}

/// The arguments of one call, as they are written.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<String>,
    pub(super) named: Vec<(String, String)>,
}

/// The macros of a template.
pub(super) fn find(source: &str) -> Macros {
    let mut macros = Macros::new();
    if !source.contains(VARARGS) && !source.contains(KWARGS) {
        return macros;
    }
    let mut open: Vec<(String, Macro)> = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = &rest[start..];
        let num_bytes = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{' | b'%') => {
                let Some((tokens, end)) = tokenize(rest) else { break };
                note(rest, &tokens, &mut open, &mut macros);
                raw_end(rest, &tokens, end).unwrap_or(end)
            }
            _ => 1,
        };
        rest = &rest[num_bytes..];
    }
    macros
}

fn note(tag: &str, tokens: &[Token<'_>], open: &mut Vec<(String, Macro)>, macros: &mut Macros) {
    let statement = tokens.first().filter(|_| tag.starts_with("{%")).map(|token| token.text);
    match (statement, tokens.get(1)) {
        (Some("macro"), Some(name)) => open.push((name.text.to_owned(), Macro::new(&tokens[2..]))),
        (Some("endmacro"), _) => {
            if let Some((name, found)) = open.pop().filter(|(_, found)| found.takes_more()) {
                macros.insert(name, found);
            }
        }
        _ => {
            let Some((_, innermost)) = open.last_mut() else { return };
            for token in tokens.iter().filter(|token| token.kind == Kind::Name) {
                let is_own = |name: &str| innermost.parameters.iter().any(|parameter| parameter == name);
                innermost.takes_varargs |= token.text == VARARGS && !is_own(VARARGS);
                innermost.takes_kwargs |= token.text == KWARGS && !is_own(KWARGS);
            }
        }
    }
}

impl Macro {
    /// `tokens` are those behind its name.
    fn new(tokens: &[Token<'_>]) -> Self {
        let mut depth = 0_usize;
        let mut parameters = Vec::new();
        let mut before = "";
        for token in tokens {
            if depth == 1 && token.kind == Kind::Name && matches!(before, "(" | ",") {
                parameters.push(token.text.to_owned());
            }
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            before = token.text;
        }
        Self { parameters, ..Self::default() }
    }

    fn takes_more(&self) -> bool {
        self.takes_varargs || self.takes_kwargs
    }

    /// What stands behind its own parameters.
    pub(super) fn hidden_parameters(&self) -> String {
        let separator = if self.parameters.is_empty() { "" } else { ", " };
        let varargs = self.takes_varargs.then_some("varargs=()");
        let kwargs = self.takes_kwargs.then_some("kwargs={}");
        let hidden: Vec<_> = varargs.into_iter().chain(kwargs).collect();
        format!("{separator}{}", hidden.join(", "))
    }

    /// A call's arguments, with those that it does not name where it finds them.
    pub(super) fn pass(&self, Arguments { mut positional, named }: Arguments) -> String {
        let further = positional.split_off(positional.len().min(self.parameters.len()));
        let is_own = |name: &String| self.parameters.contains(name) || name == "caller";
        let (own, others): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(name, _)| !self.takes_kwargs || is_own(name));
        let mut passed = positional;
        if self.takes_varargs && !further.is_empty() {
            passed.push(format!("varargs=({},)", further.join(", ")));
        } else {
            // Too many, as the engine will say.
            passed.extend(further);
        }
        passed.extend(own.into_iter().map(|(name, value)| format!("{name}={value}")));
        if !others.is_empty() {
            let entries: Vec<_> =
                others.into_iter().map(|(name, value)| format!("'{name}': {value}")).collect();
            passed.push(format!("kwargs={{{}}}", entries.join(", ")));
        }
        passed.join(", ")
    }
}
