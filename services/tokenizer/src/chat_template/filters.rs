//! Jinja2's filters where the engine's own differ: they take arguments by position and by name, refuse None where Python
//! does, and write values as Python does.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, State, Value, filters, functions};
use minijinja_contrib::{filters as more_filters, globals};

use super::arguments::{Arguments, bind, bind_to, invalid, is_set, number_of, text_of};
use super::environment::{BYTES_A_FUEL, check_extent};
use super::{operators, repr, text_methods, tojson};

type Result<T> = std::result::Result<T, Error>;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    for (name, filter, parameters) in of_the_engine() {
        environment.add_filter(name, move |state: &mut State, value: Value, arguments: Arguments| {
            call_engine(state, name, &filter, parameters, value, &arguments.into_values())
        });
    }
    for (name, filter) in generators() {
        environment.add_filter(name, move |state: &mut State, arguments: Arguments| {
            let items = filter.call(state, &arguments.into_values())?;
            Ok::<_, Error>(Value::make_one_shot_iterator(items.try_iter()?))
        });
    }
    environment.add_filter("last", last);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("tojson", tojson::tojson);
    environment.add_filter("string", string);
    environment.add_filter("list", list);
    environment.add_filter("join", join);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("trim", trim);
    environment.add_filter("indent", indent);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", wordcount);
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_filter("filesizeformat", more_filters::filesizeformat);
    environment.add_filter("striptags", more_filters::striptags);
    environment.add_function("cycler", |items: Arguments| globals::cycler(items.into_values()));
    environment.add_function("joiner", globals::joiner);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
    // What transformers does not offer, a template may have as a name of its own.
    environment.remove_global("debug");
}

/// The engine's filters over the items of a value, with Jinja2's parameters; `=` marks those that the engine takes by
/// name.
fn of_the_engine() -> Vec<(&'static str, Value, &'static [&'static str])> {
    vec![
        ("sort", Value::from_function(filters::sort), &["reverse=", "case_sensitive=", "attribute="]),
        ("min", Value::from_function(filters::min), &["case_sensitive=", "attribute="]),
        ("max", Value::from_function(filters::max), &["case_sensitive=", "attribute="]),
        ("unique", Value::from_function(filters::unique), &["case_sensitive=", "attribute="]),
        ("sum", Value::from_function(filters::sum), &["attribute=", "start="]),
        ("dictsort", Value::from_function(filters::dictsort), &["case_sensitive=", "by=", "reverse="]),
        ("groupby", Value::from_function(filters::groupby), &["attribute", "default=", "case_sensitive="]),
        ("batch", Value::from_function(filters::batch), &["linecount", "fill_with"]),
        ("slice", Value::from_function(filters::slice), &["slices", "fill_with"]),
        (
            "truncate",
            Value::from_function(more_filters::truncate),
            &["length=", "killwords=", "end=", "leeway="],
        ),
    ]
}

/// What is a generator in Python: it has no length, is always true, and can be read once.
fn generators() -> [(&'static str, Value); 5] {
    [
        ("map", Value::from_function(filters::map)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
    ]
}

fn is_generator(value: &Value) -> bool {
    value.kind() == ValueKind::Iterable && value.len().is_none()
}

/// A list of what a generator gives; any other value as it is.
pub(super) fn read_out(value: Value) -> Result<Value> {
    if is_generator(&value) {
        value.try_iter()?.checked().collect::<Result<Vec<_>>>().map(Value::from)
    } else {
        Ok(value)
    }
}

fn last(value: Value) -> Result<Value> {
    if is_generator(&value) { Err(invalid("last: a generator has no end")) } else { filters::last(value) }
}

fn length(value: &Value) -> Result<usize> {
    if is_generator(value) { Err(invalid("length: a generator has none")) } else { filters::length(value) }
}

fn call_engine(
    state: &mut State,
    name: &str,
    filter: &Value,
    parameters: &[&str],
    value: Value,
    arguments: &[Value],
) -> Result<Value> {
    if value.is_none() {
        return Err(invalid(format!("{name}: None has no items")));
    }
    let value = read_out(value)?;
    check_extent(state, &value)?;
    let names: Vec<_> = parameters.iter().map(|name| name.trim_end_matches('=')).collect();
    let mut bound = vec![None; names.len()];
    bind_to(name, arguments, &names, &mut bound)?;
    if matches!(name, "sort" | "min" | "max") {
        let attribute = bound.last().and_then(Option::as_ref);
        check_comparable(&value, attribute.and_then(Value::as_str))?;
    }
    let mut call = vec![value];
    let mut by_name = Vec::new();
    for ((parameter, name), argument) in parameters.iter().zip(&names).zip(bound) {
        match argument {
            Some(argument) if parameter.ends_with('=') => by_name.push(((*name).to_owned(), argument)),
            Some(argument) => call.push(argument),
            None => {}
        }
    }
    if !by_name.is_empty() {
        call.push(by_name.into_iter().collect::<Kwargs>().into());
    }
    filter.call(state, &call)
}

/// The engine puts values of any kinds in some order; Python compares only what is alike.
fn check_comparable(value: &Value, attribute: Option<&str>) -> Result<()> {
    // Paths of attributes and lists of them are left to the engine.
    if attribute.is_some_and(|attribute| attribute.contains(['.', ','])) {
        return Ok(());
    }
    let mut items = value.try_iter()?.map(|item| match attribute {
        Some(attribute) => item.get_attr(attribute).unwrap_or_default(),
        None => item,
    });
    let Some(first) = items.next() else { return Ok(()) };
    items.try_for_each(|item| operators::order(&first, &item).map(|_: Option<Ordering>| ()))
}

fn string(state: &State, value: &Value) -> Result<Value> {
    check_extent(state, value)?;
    Ok(if value.as_str().is_some() { value.clone() } else { Value::from(repr::text(value)) })
}

fn list(state: &State, value: Value) -> Result<Value> {
    if value.is_none() {
        return Err(invalid("list: None has no items"));
    }
    filters::list(state, value)
}

fn join(state: &State, value: Value, arguments: Arguments) -> Result<String> {
    let value = read_out(value)?;
    let [separator, attribute] = bind("join", &arguments.into_values(), ["d", "attribute"])?;
    check_extent(state, &value)?;
    let separator = separator.as_ref().map(repr::text).unwrap_or_default();
    let attribute = attribute.as_ref().filter(|attribute| !attribute.is_none());
    let attribute = attribute.map(|attribute| text_of("join", Some(attribute))).transpose()?;
    if value.is_none() {
        return Err(invalid("join: None has no items"));
    }
    let mut out = String::new();
    for (idx, item) in value.try_iter()?.enumerate() {
        state.consume_fuel(1 + separator.len() as u64 / BYTES_A_FUEL)?;
        if idx > 0 {
            out.push_str(&separator);
        }
        let item = match attribute {
            Some(path) => path.split('.').try_fold(item, |item, name| item.get_attr(name))?,
            None => item,
        };
        out.push_str(&repr::text(&item));
    }
    Ok(out)
}

fn default(value: &Value, arguments: Arguments) -> Result<Value> {
    let [default, boolean] = bind("default", &arguments.into_values(), ["default_value", "boolean"])?;
    let replaces = value.is_undefined() || (is_set(boolean.as_ref()) && !value.is_true());
    Ok(if replaces { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn int(value: &Value, arguments: Arguments) -> Result<Value> {
    let [default, base] = bind("int", &arguments.into_values(), ["default", "base"])?;
    let base = number_of("int", base.as_ref())?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    defined(value)?;
    let whole = |float: f64| {
        let whole = float.trunc();
        (whole.abs() < 1e18).then(|| i128::try_from(Value::from(whole)).ok())?
    };
    let number = match value.as_str() {
        Some(text) => {
            let digits = text.trim_matches(text_methods::is_space);
            let sign = if digits.starts_with('-') { "-" } else { "" };
            let bare = digits.trim_start_matches(['-', '+']).to_ascii_lowercase();
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let bare = format!("{sign}{}", bare.strip_prefix(prefix).unwrap_or(&bare));
            let exact = (2..=36).contains(&base).then(|| i128::from_str_radix(&bare, base).ok()).flatten();
            exact.or_else(|| digits.parse().ok().and_then(whole))
        }
        None if value.is_integer() || value.kind() == ValueKind::Bool => i128::try_from(value.clone()).ok(),
        None => repr::as_float(value).and_then(whole),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from))
}

fn float(value: &Value, arguments: Arguments) -> Result<Value> {
    let [default] = bind("float", &arguments.into_values(), ["default"])?;
    defined(value)?;
    let number = match value.as_str() {
        Some(text) => text.trim_matches(text_methods::is_space).parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn defined(value: &Value) -> Result<()> {
    if value.is_undefined() { Err(invalid("the value is undefined")) } else { Ok(()) }
}

fn trim(state: &State, value: &Value, arguments: Arguments) -> Result<Value> {
    let [chars] = bind("trim", &arguments.into_values(), ["chars"])?;
    check_extent(state, value)?;
    Ok(Value::from(text_methods::strip(&repr::text(value), "trim", chars.as_ref())?))
}

fn indent(state: &State, value: &Value, arguments: Arguments) -> Result<String> {
    let [width, first, blank] = bind("indent", &arguments.into_values(), ["width", "first", "blank"])?;
    let text = text_of("indent", Some(value))?;
    let (first, blank) = (is_set(first.as_ref()), is_set(blank.as_ref()));
    let width = width.unwrap_or_else(|| Value::from(4));
    let (before, num_bytes) = match width.as_str() {
        Some(text) => (text, 1),
        None => (" ", usize::try_from(number_of("indent", Some(&width))?.unwrap_or(0)).unwrap_or(0)),
    };
    let num_lines = text.matches('\n').count() + 1;
    let added = before.len().saturating_mul(num_bytes).saturating_mul(num_lines);
    state.consume_fuel((text.len().saturating_add(added)) as u64 / BYTES_A_FUEL)?;
    let before = before.repeat(num_bytes);
    let mut out = String::new();
    for (idx, line) in text.split('\n').enumerate() {
        if idx > 0 {
            out.push('\n');
        }
        if if idx == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&before);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn escape(state: &State, value: &Value) -> Result<Value> {
    check_extent(state, value)?;
    Ok(Value::from_safe_string(escaped(&repr::text(value))))
}

/// With the escapes of Python's markupsafe.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(char),
        }
    }
    out
}

fn center(state: &mut State, value: &Value, arguments: Arguments) -> Result<Value> {
    let [width] = bind("center", &arguments.into_values(), ["width"])?;
    let width = width.unwrap_or_else(|| Value::from(80));
    check_extent(state, value)?;
    let centered = text_methods::call(state, &repr::text(value), "center", &[width])?;
    Ok(centered.unwrap_or_default())
}

fn wordcount(state: &State, value: &Value) -> Result<usize> {
    check_extent(state, value)?;
    let text = repr::text(value);
    let words = text.split(|char: char| !char.is_alphanumeric() && char != '_');
    Ok(words.filter(|word| !word.is_empty()).count())
}

fn dict(state: &State, arguments: Arguments) -> Result<Value> {
    let mut pairs = Vec::new();
    for argument in &arguments.into_values() {
        check_extent(state, argument)?;
        let is_map = argument.kind() == ValueKind::Map;
        for item in argument.try_iter()? {
            let (key, value) =
                if is_map { (item.clone(), &item) } else { (item.get_item_by_index(0)?, &item) };
            let value = if is_map { argument.get_item(value)? } else { value.get_item_by_index(1)? };
            pairs.push((key, value));
        }
    }
    Ok(Value::from_pairs(pairs))
}

fn namespace(state: &State, arguments: Arguments) -> Result<Value> {
    let fields = dict(state, arguments)?;
    if fields.try_iter()?.any(|name| name.as_str().is_some_and(|name| name.starts_with('_'))) {
        return Err(invalid("namespace: a name may not begin with an underscore"));
    }
    functions::namespace(Some(fields.into()))
}
