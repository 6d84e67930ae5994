use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::arguments::{bind, invalid, is_set, number_of, text_of};
use super::environment::BYTES_A_FUEL;
use super::repr::is_printable;

type Result<T> = std::result::Result<T, Error>;

/// Python's methods of texts, as far as the engine's own do not do; none where the method is not among them.
pub(super) fn call(state: &State, text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>> {
    let charge = |num_bytes: usize| state.consume_fuel(num_bytes as u64 / BYTES_A_FUEL);
    let result = match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(method, arguments, ["chars"])?;
            Value::from(strip(text, method, chars.as_ref())?)
        }
        "split" | "rsplit" => {
            let [separator, maxsplit] = bind(method, arguments, ["sep", "maxsplit"])?;
            let most = number_of(method, maxsplit.as_ref())?.and_then(|most| usize::try_from(most).ok());
            let separator = separator.filter(|separator| !separator.is_none());
            let separator = separator.as_ref().map(|text| text_of(method, Some(text))).transpose()?;
            Value::from_iter(split(text, separator, most.unwrap_or(usize::MAX), method == "rsplit")?)
        }
        "splitlines" => {
            let [keepends] = bind(method, arguments, ["keepends"])?;
            Value::from_iter(lines(text, is_set(keepends.as_ref())))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(method, arguments, ["sep"])?;
            let separator = not_empty(text_of(method, separator.as_ref())?)?;
            let parts = match method {
                "partition" => text.split_once(separator).map(|(before, after)| [before, separator, after]),
                _ => text.rsplit_once(separator).map(|(before, after)| [before, separator, after]),
            };
            let whole = if method == "partition" { [text, "", ""] } else { ["", "", text] };
            Value::from(Tuple::from(parts.unwrap_or(whole).map(Value::from)))
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = bind(method, arguments, ["prefix", "start", "end"])?;
            let affix = affix.unwrap_or_default();
            let affixes = if affix.is_tuple() { affix.try_iter()?.collect() } else { vec![affix] };
            let window = window(method, text, start.as_ref(), end.as_ref())?;
            let mut found = false;
            for affix in &affixes {
                let affix = text_of(method, Some(affix))?;
                found |= window.is_some_and(|(window, _)| match method {
                    "startswith" => window.starts_with(affix),
                    _ => window.ends_with(affix),
                });
            }
            Value::from(found)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, end] = bind(method, arguments, ["sub", "start", "end"])?;
            let wanted = text_of(method, wanted.as_ref())?;
            let window = window(method, text, start.as_ref(), end.as_ref())?;
            let found = window.and_then(|(window, num_before)| {
                let at = if method.starts_with('r') { window.rfind(wanted) } else { window.find(wanted) };
                at.and_then(|at| window.get(..at)).map(|before| num_before + before.chars().count())
            });
            match (method, found) {
                ("count", _) => Value::from(window.map_or(0, |(window, _)| window.matches(wanted).count())),
                (_, Some(idx)) => Value::from(idx),
                ("find" | "rfind", None) => Value::from(-1),
                _ => return Err(invalid(format!("{method}: the text is not found"))),
            }
        }
        "replace" => {
            let [from, to, count] = bind(method, arguments, ["old", "new", "count"])?;
            let (from, to) = (text_of(method, from.as_ref())?, text_of(method, to.as_ref())?);
            let count = number_of(method, count.as_ref())?.and_then(|count| usize::try_from(count).ok());
            let count = count.unwrap_or(usize::MAX);
            charge(text.matches(from).count().min(count).saturating_mul(to.len()))?;
            Value::from(text.replacen(from, to, count))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = bind(method, arguments, ["affix"])?;
            let affix = text_of(method, affix.as_ref())?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            Value::from(rest.unwrap_or(text))
        }
        "join" => {
            let [items] = bind(method, arguments, ["iterable"])?;
            let items: Vec<_> = items.unwrap_or_default().try_iter()?.collect();
            let texts = items.iter().map(|item| text_of(method, Some(item)));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            let num_bytes =
                texts.iter().fold(0_usize, |sum, item| sum.saturating_add(item.len() + text.len()));
            charge(num_bytes)?;
            Value::from(texts.join(text))
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let [width, fill] = bind(method, arguments, ["width", "fillchar"])?;
            let width = number_of(method, width.as_ref())?.and_then(|width| usize::try_from(width).ok());
            let width = width.unwrap_or(0);
            let fill = fill.as_ref().map_or(Ok(" "), |fill| text_of(method, Some(fill)))?;
            if fill.chars().count() != 1 {
                return Err(invalid(format!("{method} fills with one character")));
            }
            charge(width.saturating_mul(fill.len()))?;
            Value::from(pad(text, method, width, fill))
        }
        "title" => {
            let [] = bind(method, arguments, [])?;
            Value::from(title(text))
        }
        "swapcase" => {
            let [] = bind(method, arguments, [])?;
            let swapped = |char: char| -> String {
                if char.is_uppercase() {
                    char.to_lowercase().collect()
                } else {
                    char.to_uppercase().collect()
                }
            };
            Value::from(text.chars().map(swapped).collect::<String>())
        }
        "casefold" => {
            let [] = bind(method, arguments, [])?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isspace" | "isdecimal" | "isprintable" | "isidentifier" | "istitle" => {
            let [] = bind(method, arguments, [])?;
            Value::from(is(text, method))
        }
        "format" => {
            charge(formatted_bytes(text, arguments)?)?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// What Python calls whitespace.
pub(super) fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

/// `strip`, `lstrip`, `rstrip`: of whitespace, or of any of the characters.
pub(super) fn strip<'a>(text: &'a str, method: &str, chars: Option<&Value>) -> Result<&'a str> {
    let chars =
        chars.filter(|chars| !chars.is_none()).map(|chars| text_of(method, Some(chars))).transpose()?;
    let goes = |char: char| chars.map_or_else(|| is_space(char), |chars| chars.contains(char));
    Ok(match method {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    })
}

fn not_empty(separator: &str) -> Result<&str> {
    if separator.is_empty() { Err(invalid("the separator is empty")) } else { Ok(separator) }
}

/// At most so many splits, from the end where it is asked for.
fn split<'a>(text: &'a str, separator: Option<&str>, most: usize, from_end: bool) -> Result<Vec<&'a str>> {
    let num_parts = most.saturating_add(1);
    let Some(separator) = separator else { return Ok(split_at_space(text, most, from_end)) };
    let separator = not_empty(separator)?;
    if !from_end {
        return Ok(text.splitn(num_parts, separator).collect());
    }
    let mut parts: Vec<_> = text.rsplitn(num_parts, separator).collect();
    parts.reverse();
    Ok(parts)
}

/// At runs of whitespace, without what is empty at both ends; what is left after the last split keeps its far end.
fn split_at_space(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    if from_end {
        let mut rest = text.trim_end_matches(is_space);
        while !rest.is_empty() {
            let space = rest.char_indices().rfind(|(_, char)| is_space(*char));
            let cut = space.filter(|_| parts.len() < most).map_or(0, |(at, char)| at + char.len_utf8());
            let (before, part) = rest.split_at(cut);
            parts.push(part);
            rest = before.trim_end_matches(is_space);
        }
        parts.reverse();
    } else {
        let mut rest = text.trim_start_matches(is_space);
        while !rest.is_empty() {
            let cut = rest.find(is_space).filter(|_| parts.len() < most).unwrap_or(rest.len());
            let (part, behind) = rest.split_at(cut);
            parts.push(part);
            rest = behind.trim_start_matches(is_space);
        }
    }
    parts
}

/// The text between two places, which count characters, from the end where they are negative, and how many characters
/// stand before it; none where the beginning is behind the end.
fn window<'a>(
    method: &str,
    text: &'a str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(&'a str, usize)>> {
    let (start, end) = (number_of(method, start)?, number_of(method, end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let num_chars = text.chars().count();
    let place = |place: i64| {
        let distance = usize::try_from(place.unsigned_abs()).unwrap_or(usize::MAX);
        if place < 0 { num_chars.saturating_sub(distance) } else { distance }
    };
    let (start, end) = (start.map_or(0, place), end.map_or(num_chars, place).min(num_chars));
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    let window = if start <= end { text.get(byte(start)..byte(end)) } else { None };
    Ok(window.map(|window| (window, start)))
}

/// Lines end at whatever Python takes for the end of a line.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |char: char| {
        matches!(
            char,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let (line, behind) = rest.split_at(at);
        let num_end = match behind.starts_with("\r\n") {
            true => 2,
            false => behind.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(if keep_ends { &rest[..at + num_end] } else { line });
        rest = &behind[num_end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn pad(text: &str, method: &str, width: usize, fill: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    // Python's, too, puts the odd one before where the width is odd.
    let before = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    if method == "zfill" {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    format!("{}{text}{}", fill.repeat(before), fill.repeat(missing - before))
}

fn is_cased(char: char) -> bool {
    char.is_lowercase() || char.is_uppercase()
}

/// A letter is a capital one where none stands before it.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for char in text.chars() {
        if inside {
            out.extend(char.to_lowercase());
        } else {
            out.extend(char.to_uppercase());
        }
        inside = is_cased(char);
    }
    out
}

fn is(text: &str, method: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    match method {
        "isspace" => all(is_space),
        "isdecimal" => all(char::is_numeric),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let is_first = |char: char| char == '_' || char.is_alphabetic();
            text.starts_with(is_first) && text.chars().all(|char| is_first(char) || char.is_numeric())
        }
        _ => text.chars().any(is_cased) && title(text) == text,
    }
}

/// A field may ask for as many bytes as any number in the text says; every field may have every argument.
pub(super) fn formatted_bytes(text: &str, arguments: &[Value]) -> Result<usize> {
    if text.contains(":{") {
        return Err(invalid("format: a field's width cannot be given by another field"));
    }
    let numbers = text.split(|char: char| !char.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths =
        numbers.fold(0_usize, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)));
    let named = arguments.last().filter(|last| last.kind() == ValueKind::Map);
    let named = named.and_then(|last| Kwargs::try_from(last.clone()).ok());
    let named: Vec<Value> =
        named.iter().flat_map(|kwargs| kwargs.args().filter_map(|name| kwargs.peek(name).ok())).collect();
    let lengths = arguments.iter().chain(&named).filter_map(Value::as_str).map(str::len);
    let fields = text.matches(['{', '%']).count().saturating_mul(lengths.max().unwrap_or(0));
    Ok(text.len().saturating_add(widths).saturating_add(fields))
}
