//! Turns a template as Jinja2 reads it into one that means the same to the engine: line ends are line feeds,
//! `{% generation %}` blocks are scopes, and operators that the engine computes otherwise than Python are filters of ours
//! ([`operators`](super::operators)). A tag that is not understood stays as it is: the engine says what is wrong with it.

use super::macros::{self, Macros};
use super::tag::Tag;
use super::tokens::{Token, tokenize};

/// Rewrites a template.
pub(super) fn rewrite(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let context = Context {
        marks_texts: source.contains("safe") || source.contains("escape"),
        macros: macros::find(&source),
    };
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{").filter(|start| start + 1 < rest.len()) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let num_bytes = match tag.as_bytes()[1] {
            b'#' => tag.find("#}").map_or(tag.len(), |end| end + 2),
            b'{' | b'%' => rewrite_tag(tag, &context, &mut out).unwrap_or(tag.len()),
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

/// What a tag's meaning depends on beside its own code.
pub(super) struct Context {
    /// Whether `+` may join a text that is marked as safe.
    pub(super) marks_texts: bool,
    pub(super) macros: Macros,
}

/// Writes one tag, a whole raw block included, and returns how long it was; none where it does not end.
fn rewrite_tag(source: &str, context: &Context, out: &mut String) -> Option<usize> {
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
    let copied = Tag::new(source, &tokens, opening, context, out).write();
    if copied.is_none() {
        out.truncate(begun);
    }
    out.push_str(&source[copied.unwrap_or(opening)..end]);
    Some(end)
}

/// Where a raw block ends that this tag begins: nothing in it is a tag.
pub(super) fn raw_end(source: &str, tokens: &[Token<'_>], end: usize) -> Option<usize> {
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
            ("{% set a, b = c % d, e %}", "{% set a, b =(( c)|__percent( d)), e %}"),
            ("{{ '\\a\\/\\101\\U0001F600\\n\\\"' }}", "{{ '\u{7}\\\\/A😀\\n\"' }}"),
            ("{{ +1 - +a }}", "{{  1 -  a }}"),
            ("{% for a, b in c if d %}", "{% for a, b in(( c)|__iterated()) if d %}"),
            ("{% for a in b recursive %}", "{% for a in(( b)|__iterated()) recursive %}"),
            ("{%- generation -%}{% endgeneration %}", "{%- with -%}{% endwith %}"),
            ("{% import 'a' as b %}", "{% import_is_not_offered 'a' as b %}"),
            ("a\r\nb\rc", "a\nb\nc"),
            (
                "{% macro m(a, b=[1, 2]) %}{{ varargs }}{% endmacro %}{{ m(1, 2, f(3), 4, b=5) }}",
                "{% macro m(a, b=[1, 2], varargs=()) %}{{ varargs }}{% endmacro %}{{ m(1,  2, varargs=( f(3),  4,), b=5) }}",
            ),
            (
                "{% macro m() %}{{ kwargs }}{% endmacro %}{% call m(x=1) %}{% endcall %}{{ o.m(1) }}",
                "{% macro m(kwargs={}) %}{{ kwargs }}{% endmacro %}{% call m(kwargs={'x': 1}) %}{% endcall %}{{ o.m(1) }}",
            ),
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
