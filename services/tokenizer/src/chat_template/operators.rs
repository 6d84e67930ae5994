//! Operators of Python that differ from the engine's, as the filters that [`rewrite`](mod@super::rewrite) puts in their
//! places.

use std::cmp::Ordering;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value, tests};

use super::arguments::{Arguments, invalid};
use super::environment::{BYTES_A_FUEL, check_extent};
use super::filters::{escaped, read_out};
use super::{repr, text_methods};

type Result<T> = std::result::Result<T, Error>;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("__iterated", iterated);
    environment.add_filter("format", format_filter);
    environment.add_filter("__add", add);
    environment.add_filter("__concat", concat);
    environment.add_filter("__percent", percent);
    environment.add_filter("__slice", slice);
    environment.add_filter("__in", contained);
    environment
        .add_filter("__not_in", |state: &State, a: &Value, b: &Value| contained(state, a, b).map(|is| !is));
    environment
        .add_filter("__lt", |a: &Value, b: &Value| Ok::<_, Error>(order(a, b)? == Some(Ordering::Less)));
    environment
        .add_filter("__gt", |a: &Value, b: &Value| Ok::<_, Error>(order(a, b)? == Some(Ordering::Greater)));
    environment.add_filter("__le", |a: &Value, b: &Value| {
        Ok::<_, Error>(matches!(order(a, b)?, Some(Ordering::Less | Ordering::Equal)))
    });
    environment.add_filter("__ge", |a: &Value, b: &Value| {
        Ok::<_, Error>(matches!(order(a, b)?, Some(Ordering::Greater | Ordering::Equal)))
    });
}

/// What a loop goes through: None has no items, and a loop knows its length.
fn iterated(value: Value) -> Result<Value> {
    if value.is_none() { Err(invalid("None cannot be iterated over")) } else { read_out(value) }
}

/// `a + b + c` in a template that marks texts as safe: beside such a one, others are escaped.
fn add(state: &State, value: Value, others: Arguments) -> Result<Value> {
    others.into_values().iter().try_fold(value, |sum, other| add_one(state, &sum, other))
}

fn add_one(state: &State, a: &Value, b: &Value) -> Result<Value> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        state.consume_fuel((left.len() + right.len()) as u64 / BYTES_A_FUEL)?;
        return Ok(match (a.is_safe(), b.is_safe()) {
            (false, false) => Value::from(format!("{left}{right}")),
            (true, true) => Value::from_safe_string(format!("{left}{right}")),
            (true, false) => Value::from_safe_string(format!("{left}{}", escaped(right))),
            (false, true) => Value::from_safe_string(format!("{}{right}", escaped(left))),
        });
    }
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    match (a.kind(), b.kind()) {
        _ if is_number(a) && is_number(b) => {
            if repr::as_float(a).is_some() || repr::as_float(b).is_some() {
                return Ok(Value::from(f64::try_from(a.clone())? + f64::try_from(b.clone())?));
            }
            let sum = i128::try_from(a.clone())?.checked_add(i128::try_from(b.clone())?);
            sum.map(Value::from).ok_or_else(|| invalid("+ makes too large a number"))
        }
        (ValueKind::Seq, ValueKind::Seq) if a.is_tuple() == b.is_tuple() => {
            state.consume_fuel((a.len().unwrap_or(0) + b.len().unwrap_or(0)) as u64)?;
            let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
            Ok(if a.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        (a, b) => Err(invalid(format!("{a} and {b} cannot be added"))),
    }
}

/// `a ~ b ~ c`.
fn concat(state: &State, value: &Value, others: Arguments) -> Result<String> {
    let mut out = String::new();
    for value in std::iter::once(value).chain(&others.into_values()) {
        check_extent(state, value)?;
        let text = repr::text(value);
        state.consume_fuel(text.len() as u64 / BYTES_A_FUEL)?;
        out.push_str(&text);
    }
    Ok(out)
}

/// `a % b`: of a text, printf's formatting.
fn percent(state: &State, value: &Value, operand: &Value) -> Result<Value> {
    let Some(text) = value.as_str() else { return remainder(value, operand) };
    check_extent(state, operand)?;
    let arguments: Vec<Value> = match operand.kind() {
        ValueKind::Map => {
            let names = operand.try_iter()?.filter_map(|name| Some((name.as_str()?.to_owned(), name)));
            let named = names.map(|(text, name)| Ok((text, operand.get_item(&name)?)));
            vec![named.collect::<Result<Kwargs>>()?.into()]
        }
        _ if operand.is_tuple() => operand.try_iter()?.collect(),
        _ => vec![operand.clone()],
    };
    printf(state, text, &arguments)
}

/// The filter `format`.
fn format_filter(state: &State, text: &str, arguments: Arguments) -> Result<Value> {
    let arguments = arguments.into_values();
    for argument in &arguments {
        check_extent(state, argument)?;
    }
    printf(state, text, &arguments)
}

fn printf(state: &State, text: &str, arguments: &[Value]) -> Result<Value> {
    check_fields(text)?;
    let num_bytes = text_methods::formatted_bytes(text, arguments)?;
    state.consume_fuel(num_bytes as u64 / BYTES_A_FUEL)?;
    format(FormatStyle::Printf, text, arguments).map(Value::from)
}

/// Refuses fields that are none: the engine's reader ends the process over some of them.
fn check_fields(text: &str) -> Result<()> {
    let mut rest = text;
    while let Some((_, field)) = rest.split_once('%') {
        let spec = match field.strip_prefix('(') {
            Some(name) => name.split_once(')').filter(|(name, _)| name.is_ascii()).map(|(_, spec)| spec),
            None => Some(field),
        };
        let spec = spec.map(|spec| spec.trim_start_matches(|char: char| "-+ #.0123456789".contains(char)));
        let after = spec.and_then(|spec| spec.strip_prefix(|char: char| "diouxXeEfFgGcs%".contains(char)));
        rest = after.ok_or_else(|| invalid("%: there is a field without a conversion that is known"))?;
    }
    Ok(())
}

fn remainder(value: &Value, operand: &Value) -> Result<Value> {
    let numbers = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !numbers(value) || !numbers(operand) {
        return Err(invalid(format!("% takes numbers, not {} and {}", value.kind(), operand.kind())));
    }
    if !operand.is_true() {
        return Err(invalid("% by zero"));
    }
    if repr::as_float(value).is_none() && repr::as_float(operand).is_none() {
        let (value, operand) = (i128::try_from(value.clone())?, i128::try_from(operand.clone())?);
        let rest = value.wrapping_rem(operand);
        let opposite = rest != 0 && (rest < 0) != (operand < 0);
        return Ok(Value::from(if opposite { rest + operand } else { rest }));
    }
    let (value, operand) = (f64::try_from(value.clone())?, f64::try_from(operand.clone())?);
    let rest = value % operand;
    let opposite = rest != 0.0 && (rest < 0.0) != (operand < 0.0);
    Ok(Value::from(if opposite { rest + operand } else { rest }))
}

/// How two values stand to each other; none where that is neither, as with NaN.
///
/// # Errors
/// They are not of kinds that Python compares.
pub(super) fn order(a: &Value, b: &Value) -> Result<Option<Ordering>> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let is_list = |value: &Value| value.kind() == ValueKind::Seq;
    let alike = (is_number(a) && is_number(b))
        || (a.as_str().is_some() && b.as_str().is_some())
        || (is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple());
    if !alike {
        return Err(invalid(format!("{} and {} cannot be compared", a.kind(), b.kind())));
    }
    if [a, b].iter().any(|value| repr::as_float(value).is_some_and(f64::is_nan)) {
        return Ok(None);
    }
    Ok(Some(a.cmp(b)))
}

/// `item in value`: only a text is part of a text.
fn contained(state: &State, item: &Value, value: &Value) -> Result<bool> {
    if value.as_str().is_some() && item.as_str().is_none() {
        return Err(invalid(format!("a text contains texts only, not a value of type {}", item.kind())));
    }
    let has_items = matches!(
        value.kind(),
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined
    );
    if has_items {
        tests::is_in(state, item, value)
    } else {
        Err(invalid(format!("{} has no items", value.kind())))
    }
}

/// `value[start:stop:step]`, as a list where it is one.
fn slice(state: &State, value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value> {
    let place = |value: &Value| match value.kind() {
        ValueKind::None => Ok(None),
        _ => i64::try_from(value.clone()).map(Some).map_err(|_| invalid("a slice needs whole numbers")),
    };
    let (start, stop, step) = (place(start)?, place(stop)?, place(step)?.unwrap_or(1));
    let text = value.as_str();
    let num_items = match (text, value.kind()) {
        (Some(text), _) => text.chars().count(),
        (None, ValueKind::Seq) => value.len().unwrap_or(0),
        // Jinja2 looks up an attribute of that name, and does not find it.
        (None, ValueKind::Number | ValueKind::Bool | ValueKind::Map) => return Ok(Value::UNDEFINED),
        (None, kind) => return Err(invalid(format!("a value of type {kind} has no slices"))),
    };
    state.consume_fuel(num_items as u64 / if text.is_some() { BYTES_A_FUEL } else { 1 })?;
    let places = places(start, stop, step, num_items).ok_or_else(|| invalid("a slice's step is zero"))?;
    match text {
        Some(text) if step == 1 => {
            let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
            let (first, num) = (places.clone().next().unwrap_or(0), places.count());
            Ok(Value::from(text.get(byte(first)..byte(first + num)).unwrap_or_default()))
        }
        Some(text) => {
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::from(places.filter_map(|place| chars.get(place)).collect::<String>()))
        }
        None => {
            let items = places.map(|place| value.get_item_by_index(place)).collect::<Result<Vec<_>>>()?;
            Ok(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
    }
}

/// The places that a slice takes of so many items, in order; none for a step of zero.
fn places(
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
    num_items: usize,
) -> Option<impl Iterator<Item = usize> + Clone> {
    let num_items = i64::try_from(num_items).ok()?;
    // Walking backwards, the place before the first one is a stop of its own.
    let (least, most) = if step < 0 { (-1, num_items - 1) } else { (0, num_items) };
    let within = |place: i64| {
        let place = if place < 0 { place.saturating_add(num_items) } else { place };
        place.clamp(least, most)
    };
    let (first, end) = if step < 0 { (most, least) } else { (least, most) };
    let (first, end) = (start.map_or(first, within), stop.map_or(end, within));
    let width = usize::try_from(step.unsigned_abs()).ok().filter(|width| *width > 0)?;
    let distance = if step < 0 { first - end } else { end - first };
    let num = usize::try_from(distance).unwrap_or(0).div_ceil(width);
    let first = usize::try_from(first).unwrap_or(0);
    Some((0..num).map(move |idx| if step < 0 { first - idx * width } else { first + idx * width }))
}
