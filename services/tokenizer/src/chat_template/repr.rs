//! How Python writes values: `str()` for what stands alone, `repr()` for what stands in a list or an object.

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::Value;
use minijinja::value::ValueKind;

use super::views::View;

/// Python's `str(value)`. How deep a value nests is the caller's to check.
pub(super) fn text(value: &Value) -> Cow<'_, str> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => Cow::Borrowed(text),
        (None, ValueKind::Undefined) => Cow::Borrowed(""),
        _ => {
            let mut out = String::new();
            push_repr(&mut out, value);
            Cow::Owned(out)
        }
    }
}

/// Python's `repr(value)`.
pub(super) fn push_repr(out: &mut String, value: &Value) {
    if let Some(text) = value.as_str() {
        return push_text_repr(out, text);
    }
    if let Some(float) = as_float(value) {
        return out.push_str(&float_repr(float));
    }
    if let Some(view) = value.downcast_object_ref::<View>() {
        return view.push_repr(out);
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq if value.is_tuple() => {
            let close = if value.len() == Some(1) { ",)" } else { ")" };
            push_items(out, value, "(", close);
        }
        // One without a length can be read only once.
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => push_items(out, value, "[", "]"),
        ValueKind::Map => {
            out.push('{');
            for (idx, key) in value.try_iter().into_iter().flatten().enumerate() {
                if idx > 0 {
                    out.push_str(", ");
                }
                push_repr(out, &key);
                out.push_str(": ");
                push_repr(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        _ => {
            // Writing to a text cannot fail.
            let _ = write!(out, "{value}");
        }
    }
}

fn push_items(out: &mut String, value: &Value, open: &str, close: &str) {
    out.push_str(open);
    for (idx, item) in value.try_iter().into_iter().flatten().enumerate() {
        if idx > 0 {
            out.push_str(", ");
        }
        push_repr(out, &item);
    }
    out.push_str(close);
}

fn push_text_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if char == quote => out.extend(['\\', quote]),
            _ if is_printable(char) => out.push(char),
            _ => {
                let code = u32::from(char);
                let _ = match code {
                    ..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// What Python calls printable: Rust escapes the same characters, and marks that combine where nothing stands before.
pub(super) fn is_printable(char: char) -> bool {
    match char {
        ' '..='~' => true,
        ..='\u{ff}' => char > '\u{a0}' && char != '\u{ad}',
        _ => String::from_iter(['a', char]).escape_debug().nth(2).is_none(),
    }
}

pub(super) fn as_float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok())?
}

/// The shortest digits that give the number back, with an exponent where it is under -4 or over 15.
pub(super) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    let mut text = format!("{float:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    match exponent.parse::<i32>() {
        Ok(-4..=15) => {
            text = float.to_string();
            if !text.contains('.') {
                text.push_str(".0");
            }
        }
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            text = format!("{mantissa}e{sign}{:02}", exponent.abs());
        }
        Err(_) => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (float, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_repr(float), expected);
        }
    }

    #[test]
    fn texts_in_lists_are_quoted_and_escaped_as_python_does() {
        let written = |text: &str| {
            let mut out = String::new();
            push_repr(&mut out, &Value::from(text));
            out
        };
        assert_eq!(written("it's"), r#""it's""#);
        assert_eq!(written("'\"\\\n"), r#"'\'"\\\n'"#);
        assert_eq!(written("é日😀e\u{301}"), "'é日😀e\u{301}'");
        assert_eq!(
            written("\0\u{7f}\u{a0}\u{ad}\u{200b}\u{feff}\u{e0001}"),
            r"'\x00\x7f\xa0\xad\u200b\ufeff\U000e0001'"
        );
    }
}
