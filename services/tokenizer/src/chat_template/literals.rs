use std::iter::Peekable;
use std::str::Chars;

/// A text in quotes as the engine reads it, where it reads escapes otherwise than Python does; none where both read the
/// same.
pub(super) fn rewritten(literal: &str) -> Option<String> {
    let mut chars = literal.chars();
    let mut differs = false;
    while let Some(char) = chars.next() {
        // The same to both are backslashes, quotes, n, r, t, b, f, x and u, and what neither knows.
        differs |= char == '\\'
            && chars.next().is_some_and(|escape| matches!(escape, 'a' | 'v' | 'U' | '/' | '\n' | '0'..='7'));
    }
    differs.then(|| {
        let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
        let mut text = String::from("'");
        let mut chars = inner.chars().peekable();
        while let Some(char) = chars.next() {
            if char == '\\' {
                push_escape(&mut text, &mut chars);
            } else {
                push(&mut text, char);
            }
        }
        text.push('\'');
        text
    })
}

/// What Python reads behind a backslash.
fn push_escape(text: &mut String, chars: &mut Peekable<Chars<'_>>) {
    match chars.next() {
        // The line goes on.
        Some('\n') | None => {}
        Some('a') => text.push('\u{7}'),
        Some('v') => text.push('\u{b}'),
        Some('U') => match code(chars, 16, 8) {
            Some(char) => push(text, char),
            None => text.push_str("\\\\U"),
        },
        Some(first @ '0'..='7') => {
            let first = first.to_digit(8).unwrap_or(0);
            let rest = (0..2).map_while(|_| chars.next_if(|char| char.is_digit(8)));
            let octal = rest.fold(first, |code, digit| code * 8 + digit.to_digit(8).unwrap_or(0));
            push(text, char::from_u32(octal).unwrap_or_default());
        }
        Some('/') => text.push_str("\\\\/"),
        // The engine reads the rest as Python does.
        Some('"') => text.push('"'),
        Some(char) => text.extend(['\\', char]),
    }
}

/// So many digits of a character's code, which are consumed where they are there.
fn code(chars: &mut Peekable<Chars<'_>>, radix: u32, num_digits: usize) -> Option<char> {
    let digits: String = chars.clone().take(num_digits).collect();
    let char = char::from_u32(u32::from_str_radix(&digits, radix).ok()?)?;
    chars.by_ref().take(num_digits).for_each(drop);
    Some(char)
}

fn push(text: &mut String, char: char) {
    match char {
        '\'' | '\\' => text.extend(['\\', char]),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        _ => text.push(char),
    }
}
