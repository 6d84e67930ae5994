use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::arguments::{bind, invalid};
use super::environment::{BYTES_A_FUEL, check_extent};
use super::views::View;
use super::{repr, text_methods};

/// Methods that change what they are called on; transformers' sandbox refuses them, too.
const CHANGING: [&str; 11] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

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
        state.consume_fuel(text.len() as u64 / BYTES_A_FUEL)?;
        if let Some(result) = text_methods::call(state, text, method, arguments)? {
            return Ok(result);
        }
    }
    match (value.kind(), method) {
        (ValueKind::Map | ValueKind::Seq, "copy") => {
            let [] = bind(method, arguments, [])?;
            Ok(value.clone())
        }
        (ValueKind::Map, "keys" | "values" | "items") => {
            let [] = bind(method, arguments, [])?;
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
            View::of(value, method).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))
        }
        (ValueKind::Seq, "index") => {
            let [item] = bind(method, arguments, ["value"])?;
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
            let idx = value.try_iter()?.position(|candidate| Some(candidate) == item);
            idx.map(Value::from).ok_or_else(|| invalid("index: the list has no such item"))
        }
        (ValueKind::Number, "is_integer") => {
            let [] = bind(method, arguments, [])?;
            Ok(Value::from(repr::as_float(value).is_none_or(|float| float.fract() == 0.0)))
        }
        (ValueKind::Map | ValueKind::Seq, _) if CHANGING.contains(&method) => {
            Err(invalid(format!("{method}: a chat template may not change a list or an object")))
        }
        (ValueKind::Undefined, _) => Err(Error::from(ErrorKind::UndefinedError)),
        _ => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}
