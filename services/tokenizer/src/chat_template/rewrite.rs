//! Turns a template as Jinja2 reads it into one that means the same to the engine: line ends are line feeds,
//! `{% generation %}` blocks are scopes, and operators that the engine computes otherwise than Python are filters of ours
//! ([`operators`](super::operators)). A tag that is not understood stays as it is: the engine says what is wrong with it.

use super::literals;
use super::tokens::{Kind, Token, tokenize};

/// How deep expressions nest that are rewritten; the engine reads no deeper ones.
const MAX_DEPTH: usize = 150;

/// Rewrites a template.
pub(super) fn rewrite(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let marks_texts = source.contains("safe") || source.contains("escape");
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{").filter(|start| start + 1 < rest.len()) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let num_bytes = match tag.as_bytes()[1] {
            b'#' => tag.find("#}").map_or(tag.len(), |end| end + 2),
            b'{' | b'%' => rewrite_tag(tag, marks_texts, &mut out).unwrap_or(tag.len()),
            _ => 1,
        };
        if !matches!(tag.as_bytes()[1], b'{' | b'%') {
            out.push_str(&tag[..num_bytes]);
        }
        rest = &tag[num_bytes..];
    }
    out.push_str(rest);
    out
}

/// Writes one tag, a whole raw block included, and returns how long it was; none where it does not end.
fn rewrite_tag(source: &str, marks_texts: bool, out: &mut String) -> Option<usize> {
    let Some((tokens, end)) = tokenize(source) else {
        out.push_str(source);
        return None;
    };
    if let Some(raw_end) = raw_end(source, &tokens, end) {
        out.push_str(&source[..end]);
        // Jinja2 keeps the line feed behind the tag; the engine drops one.
        if source[end..].starts_with('\n') && !source[..end].ends_with("-%}") {
            out.push('\n');
        }
        out.push_str(&source[end..raw_end]);
        return Some(raw_end);
    }
    let opening = 2 + usize::from(source[2..].starts_with(['-', '+']));
    out.push_str(&source[..opening]);
    let begun = out.len();
    let mut tag = Tag { source, tokens: &tokens, next: 0, copied: opening, depth: 0, marks_texts, out };
    if tag.statement_or_expression(source.starts_with("{%")).is_none() {
        tag.out.truncate(begun);
        tag.copied = opening;
    }
    let copied = tag.copied;
    out.push_str(&source[copied..end]);
    Some(end)
}

/// Where a raw block ends that this tag begins: nothing in it is a tag.
fn raw_end(source: &str, tokens: &[Token<'_>], end: usize) -> Option<usize> {
    if !source.starts_with("{%") || tokens.first()?.text != "raw" {
        return None;
    }
    let mut from = end;
    while let Some(at) = source[from..].find("{%") {
        from += at;
        let Some((tokens, end)) = tokenize(&source[from..]) else { break };
        if tokens.first().is_some_and(|token| token.text == "endraw") {
            return Some(from + end);
        }
        from += 2;
    }
    Some(source.len())
}

/// A tag that is being written: its tokens are consumed one by one, and go to `out` with what stands before them.
struct Tag<'a> {
    source: &'a str,
    tokens: &'a [Token<'a>],
    next: usize,
    copied: usize,
    depth: usize,
    /// Whether `+` may join a text that is marked as safe.
    marks_texts: bool,
    out: &'a mut String,
}

impl Tag<'_> {
    fn peek(&self, ahead: usize) -> Option<&Token<'_>> {
        self.tokens.get(self.next + ahead)
    }

    fn is(&self, text: &str) -> bool {
        self.peek(0).is_some_and(|token| token.kind != Kind::Text && token.text == text)
    }

    /// Copies the next token.
    fn take(&mut self) -> Option<()> {
        let token = self.tokens.get(self.next)?;
        let end = token.start + token.text.len();
        self.out.push_str(&self.source[self.copied..end]);
        (self.next, self.copied) = (self.next + 1, end);
        Some(())
    }

    fn take_if(&mut self, text: &str) -> bool {
        self.is(text) && self.take().is_some()
    }

    fn expect(&mut self, text: &str) -> Option<()> {
        self.take_if(text).then_some(())
    }

    /// Consumes the next token, and writes another text in its place.
    fn replace(&mut self, text: &str) -> Option<()> {
        let token = self.tokens.get(self.next)?;
        self.out.push_str(&self.source[self.copied..token.start]);
        self.out.push_str(text);
        (self.next, self.copied) = (self.next + 1, token.start + token.text.len());
        Some(())
    }

    /// Puts a filter's call in the place of what is written from `start` on.
    fn call(&mut self, start: usize, filter: &str, value: &str, arguments: &str) {
        self.out.truncate(start);
        self.out.extend(["((", value, ")|", filter, "(", arguments, "))"]);
    }

    fn written(&self, start: usize) -> String {
        self.out[start..].to_owned()
    }

    fn statement_or_expression(&mut self, is_statement: bool) -> Option<()> {
        if is_statement {
            match self.peek(0)?.text {
                "generation" => return self.replace("with"),
                "endgeneration" => return self.replace("endwith"),
                // There are no other templates. The engine's reader of imports ends the process over some of them.
                word @ ("import" | "from" | "include" | "extends") => {
                    return self.replace(&format!("{word}_is_not_offered"));
                }
                "for" => self.loop_head()?,
                _ => self.take()?,
            }
        }
        if !is_statement {
            let start = self.out.len();
            self.expression()?;
            let is_tuple = self.is(",");
            while self.take_if(",") && self.next < self.tokens.len() {
                self.expression()?;
            }
            if is_tuple {
                let items = self.written(start);
                self.out.truncate(start);
                self.out.extend(["(", &items, ")"]);
            }
            return (self.next == self.tokens.len()).then_some(());
        }
        // A statement is expressions and what stands between them: `set a, b = 1, 2`.
        while self.next < self.tokens.len() {
            let (next, length, copied) = (self.next, self.out.len(), self.copied);
            if self.expression().is_none() {
                self.out.truncate(length);
                (self.next, self.copied) = (next, copied);
                self.take()?;
            }
        }
        Some(())
    }

    /// `for targets in items`: None has no items.
    fn loop_head(&mut self) -> Option<()> {
        self.take()?;
        while !self.is("in") {
            self.take()?;
        }
        self.take()?;
        let start = self.out.len();
        loop {
            self.any_of()?;
            if !self.take_if(",") {
                break;
            }
        }
        let items = self.written(start);
        self.call(start, "__iterated", &items, "");
        Some(())
    }

    /// `a if b else c`.
    fn expression(&mut self) -> Option<()> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        self.any_of()?;
        while self.take_if("if") {
            self.any_of()?;
            if self.take_if("else") {
                self.expression()?;
            }
        }
        self.depth -= 1;
        Some(())
    }

    /// `a or b`, `a and b`, `not a`.
    fn any_of(&mut self) -> Option<()> {
        loop {
            while self.take_if("not") {}
            self.comparison()?;
            if !self.take_if("or") && !self.take_if("and") {
                return Some(());
            }
        }
    }

    fn comparison(&mut self) -> Option<()> {
        let start = self.out.len();
        self.sum()?;
        let value_end = self.out.len();
        let (mut filter, mut num_operators, mut operand) = (None, 0, value_end);
        loop {
            let is_negated = self.is("not") && self.peek(1).is_some_and(|token| token.text == "in");
            filter = match self.peek(0).filter(|token| token.kind != Kind::Text).map(|token| token.text) {
                Some("<") => Some("__lt"),
                Some("<=") => Some("__le"),
                Some(">") => Some("__gt"),
                Some(">=") => Some("__ge"),
                Some("in") => Some("__in"),
                Some("not") if is_negated => Some("__not_in"),
                Some("==" | "!=") => None,
                // A chain of comparisons stays as it is: each operand of it is to be computed once.
                _ if num_operators == 1 => break,
                _ => return Some(()),
            };
            if is_negated {
                self.take()?;
            }
            self.take()?;
            num_operators += 1;
            operand = self.out.len();
            self.sum()?;
        }
        if let Some(filter) = filter {
            let (value, argument) = (self.out[start..value_end].to_owned(), self.written(operand));
            self.call(start, filter, &value, &argument);
        }
        Some(())
    }

    fn sum(&mut self) -> Option<()> {
        let start = self.out.len();
        self.concatenation()?;
        loop {
            if self.marks_texts && self.is("+") {
                self.chain(start, "+", "__add", Self::concatenation)?;
            } else if self.take_if("+") || self.take_if("-") {
                self.concatenation()?;
            } else {
                return Some(());
            }
        }
    }

    /// `a ~ b ~ c`.
    fn concatenation(&mut self) -> Option<()> {
        let start = self.out.len();
        self.product()?;
        if self.is("~") { self.chain(start, "~", "__concat", Self::product) } else { Some(()) }
    }

    /// Operands behind a first one, all between the same operator, as the arguments of one filter.
    fn chain(
        &mut self,
        start: usize,
        operator: &str,
        filter: &str,
        operand: fn(&mut Self) -> Option<()>,
    ) -> Option<()> {
        let value = self.written(start);
        let others = self.out.len();
        while self.is(operator) {
            self.replace(",")?;
            operand(self)?;
        }
        let others = self.written(others);
        self.call(start, filter, &value, others.trim_start_matches([' ', '\n', '\t', ',']));
        Some(())
    }

    fn product(&mut self) -> Option<()> {
        let start = self.out.len();
        self.power()?;
        loop {
            if self.is("%") {
                let value = self.written(start);
                self.take()?;
                let operand = self.out.len();
                self.power()?;
                let operand = self.written(operand);
                self.call(start, "__percent", &value, &operand);
            } else if self.take_if("*") || self.take_if("/") || self.take_if("//") {
                self.power()?;
            } else {
                return Some(());
            }
        }
    }

    fn power(&mut self) -> Option<()> {
        self.unary()?;
        while self.take_if("**") {
            self.unary()?;
        }
        Some(())
    }

    /// A value with its sign, its filters and its tests. The engine does not know the sign `+`.
    fn unary(&mut self) -> Option<()> {
        while self.is("-") || self.is("+") {
            if self.is("+") { self.replace(" ")? } else { self.take()? }
        }
        self.operand()?;
        loop {
            if self.take_if("|") {
                self.name()?;
            } else if self.take_if("is") {
                self.take_if("not");
                self.name()?;
                let ends = ["and", "or", "else", "is", "if", "not", "in"];
                let is_value = self.peek(0).is_some_and(|token| match token.kind {
                    Kind::Name => !ends.contains(&token.text),
                    Kind::Text | Kind::Number => true,
                    Kind::Operator => matches!(token.text, "[" | "{"),
                });
                if is_value {
                    self.operand()?;
                }
            } else {
                return Some(());
            }
            if self.is("(") {
                self.arguments()?;
            }
        }
    }

    /// A filter's or a test's name.
    fn name(&mut self) -> Option<()> {
        loop {
            self.peek(0).filter(|token| token.kind == Kind::Name)?;
            self.take()?;
            if !self.take_if(".") {
                return Some(());
            }
        }
    }

    /// A value with its attributes, items, slices and calls.
    fn operand(&mut self) -> Option<()> {
        let start = self.out.len();
        match self.peek(0)? {
            Token { kind: Kind::Text, .. } => {
                while let Some(token) = self.peek(0).filter(|token| token.kind == Kind::Text) {
                    match literals::rewritten(token.text) {
                        Some(literal) => self.replace(&literal)?,
                        None => self.take()?,
                    }
                }
            }
            Token { kind: Kind::Name | Kind::Number, .. } => self.take()?,
            Token { text: "(", .. } => self.list(")")?,
            Token { text: "[", .. } => self.list("]")?,
            Token { text: "{", .. } => self.list("}")?,
            _ => return None,
        }
        loop {
            if self.take_if(".") {
                self.peek(0).filter(|token| matches!(token.kind, Kind::Name | Kind::Number))?;
                self.take()?;
            } else if self.is("(") {
                self.arguments()?;
            } else if self.is("[") {
                self.subscript(start)?;
            } else {
                return Some(());
            }
        }
    }

    /// Items up to a closing bracket, of an object with their keys.
    fn list(&mut self, close: &str) -> Option<()> {
        self.take()?;
        while !self.take_if(close) {
            self.expression()?;
            if close == "}" {
                self.expect(":")?;
                self.expression()?;
            }
            if !self.take_if(",") && !self.is(close) {
                return None;
            }
        }
        Some(())
    }

    fn arguments(&mut self) -> Option<()> {
        self.expect("(")?;
        while !self.take_if(")") {
            if !self.take_if("*") && !self.take_if("**") {
                let is_named = self.peek(1).is_some_and(|token| token.text == "=");
                if is_named {
                    self.take()?;
                    self.take()?;
                }
            }
            self.expression()?;
            if !self.take_if(",") && !self.is(")") {
                return None;
            }
        }
        Some(())
    }

    /// `value[item]` or `value[start:stop:step]`, where the value is written from `start` on.
    fn subscript(&mut self, start: usize) -> Option<()> {
        let value = self.written(start);
        self.take()?;
        let mut places = Vec::new();
        let mut is_slice = false;
        loop {
            let place = self.out.len();
            if !self.is(":") && !self.is("]") {
                self.expression()?;
            }
            let place = self.written(place);
            places.push(if place.trim().is_empty() { "none".to_owned() } else { place });
            if !self.take_if(":") {
                break;
            }
            is_slice = true;
        }
        self.expect("]")?;
        if is_slice {
            places.resize(3, "none".to_owned());
            self.call(start, "__slice", &value, &places.join(","));
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn operators_become_filters() {
        for (source, expected) in [
            ("{{ a % b }}", "{{(( a)|__percent( b)) }}"),
            ("{{- a ~ b ~ 'c' -}}", "{{-(( a)|__concat(b , 'c')) -}}"),
            ("{% if a < b + 1 %}", "{% if(( a)|__lt( b + 1)) %}"),
            ("{% if not a not in b %}", "{% if not(( a)|__not_in( b)) %}"),
            ("{{ a|safe + b - c + d }}", "{{(((( a|safe)|__add(b)) - c)|__add(d)) }}"),
            ("{{ a[1:] }}", "{{(( a)|__slice(1,none,none)) }}"),
            ("{{ f(x=a[::-1]).b }}", "{{ f(x=((a)|__slice(none,none,-1))).b }}"),
            ("{{ a, b }}", "{{( a, b) }}"),
            ("{{ '\\a\\/\\101\\U0001F600\\n\\\"' }}", "{{ '\u{7}\\\\/A😀\\n\"' }}"),
            ("{{ +1 - +a }}", "{{  1 -  a }}"),
            ("{% for a, b in c if d %}", "{% for a, b in(( c)|__iterated()) if d %}"),
            ("{% for a in b recursive %}", "{% for a in(( b)|__iterated()) recursive %}"),
            ("{%- generation -%}{% endgeneration %}", "{%- with -%}{% endwith %}"),
            ("{% import 'a' as b %}", "{% import_is_not_offered 'a' as b %}"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{% raw %}\n{{ a % b }}{% endraw %}\n", "{% raw %}\n\n{{ a % b }}{% endraw %}\n"),
        ] {
            assert_eq!(rewrite(source), expected, "{source}");
        }
    }

    #[test]
    fn what_means_the_same_to_both_stays() {
        for source in [
            "{{ a.b['c'](d, e=1)|f(2)|g is not h and -i ** 2 == [1, (2,), {'k': 'v'}] }}",
            "{% set a, b.c = 1, 'x' 'y' if d else none %}",
            "{% macro m(a, b='%') %}{% endmacro %}{# a % b #}{ % } {{'{{'}}",
            "{{ a < b < c }}",
            // What the engine refuses, and then says why.
            "{{ a % }}",
            "{{ 'unfinished }}",
            "{% for %}{% if %}{{ (",
            "{{ a ~~ b }}",
        ] {
            assert_eq!(rewrite(source), source);
        }
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(2000), " % 2)".repeat(2000));
        assert_eq!(rewrite(&deep), deep);
    }

    proptest! {
        #[test]
        fn anything_is_rewritten(source in r#"(\{\{|\}\}|\{%|%\}|\{#|#\}|[-+a1 é'"\\.,:~%<>=!|()\[\]{}\r\n]|in|if|not|for|is|raw|endraw){0,40}"#) {
            let _ = rewrite(&source);
        }
    }
}
