//! Jinja2's tests of what a value is, where the engine's own differ.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// Texts and objects have a length and items, too, and what is undefined has none.
fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::String, ValueKind::Seq, ValueKind::Map, ValueKind::Undefined];
    kinds.contains(&value.kind())
}

/// What is undefined has a method for it, which fails; methods, too, are undefined until they are called.
fn is_callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
}
