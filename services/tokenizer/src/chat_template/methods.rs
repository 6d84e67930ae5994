use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::environment::{BYTES_A_FUEL, check_extent};

/// Python's methods of texts, lists and objects. The engine charges for what they make once it is made; here it is paid
/// for before, where a method can make much of little.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    for argument in arguments {
        check_extent(state, argument)?;
    }
    if let Some(text) = value.as_str() {
        let num_bytes = match method {
            "replace" => replaced_bytes(text, arguments),
            "join" => joined_bytes(text, arguments),
            "format" => formatted_bytes(text, arguments)?,
            _ => text.len(),
        };
        state.consume_fuel(num_bytes as u64 / BYTES_A_FUEL)?;
    }
    pycompat::unknown_method_callback(state, value, method, arguments)
}

fn argument(arguments: &[Value], idx: usize) -> &str {
    arguments.get(idx).and_then(Value::as_str).unwrap_or_default()
}

fn replaced_bytes(text: &str, arguments: &[Value]) -> usize {
    let (from, to) = (argument(arguments, 0), argument(arguments, 1));
    let num_matches = text.matches(from).count();
    text.len().saturating_add(num_matches.saturating_mul(to.len()))
}

/// Items that are no texts were charged for with the list.
fn joined_bytes(separator: &str, arguments: &[Value]) -> usize {
    let items = arguments.first().and_then(|items| items.try_iter().ok()).into_iter().flatten();
    items.fold(0_usize, |sum, item| {
        sum.saturating_add(separator.len()).saturating_add(item.as_str().map_or(0, str::len))
    })
}

/// A field may ask for as many bytes as any number in the text says; every field may have every argument.
fn formatted_bytes(text: &str, arguments: &[Value]) -> Result<usize, Error> {
    if text.contains(":{") {
        let problem = "format: a field's width cannot be given by another field";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let numbers = text.split(|char: char| !char.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths =
        numbers.fold(0_usize, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)));
    let longest = arguments.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0);
    let fields = text.matches('{').count().saturating_mul(longest);
    Ok(text.len().saturating_add(widths).saturating_add(fields))
}
