use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::{filters, methods, operators, repr, value_tests};

type Result<T> = std::result::Result<T, Error>;

/// What one rendering may cost, in the template engine's measure: an instruction is 1, and so are 64 bytes that a template
/// writes, copies or looks through. So it bounds the time (half a million instructions) as well as the memory (32 MB).
/// The templates of Llama 3 and Qwen 2.5 take 38,000 to 45,000 for 200 messages that fill a context of 128 Ki tokens.
pub(super) const FUEL: u64 = 500_000;
/// How deep a value may nest that is written out. What came as JSON nests 128 levels at most, of messages in a list.
const MAX_DEPTH: usize = 160;
/// Bytes that one fuel pays for.
pub(super) const BYTES_A_FUEL: u64 = 64;

pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    // An error would hold, and might show, what is in the conversation.
    environment.set_debug(false);
    environment.set_unknown_method_callback(methods::call);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, state, value| {
        check_extent(state, value)?;
        match (value.as_object(), repr::as_float(value)) {
            (None, None) => minijinja::escape_formatter(out, state, value),
            _ => Ok(out.write_str(&repr::text(value))?),
        }
    });
    filters::add_to(&mut environment);
    operators::add_to(&mut environment);
    value_tests::add_to(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: &str) -> Result<Value> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Today's date, in UTC, so that replicas agree.
fn strftime_now(format: &str) -> Result<String> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Charges for all that a value contains, as often as it contains it, and refuses one that contains itself: the engine
/// writes a value out in one go and charges for it afterwards.
pub(super) fn check_extent(state: &State, value: &Value) -> Result<()> {
    // What is no container the engine charges for itself.
    if value.as_object().is_some() { check_depth(state, value, MAX_DEPTH) } else { Ok(()) }
}

fn check_depth(state: &State, value: &Value, levels: usize) -> Result<()> {
    let is_map = match value.kind() {
        ValueKind::Map | ValueKind::Plain => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return state.consume_fuel(value.as_str().map_or(0, |text| text.len() as u64 / BYTES_A_FUEL)),
    };
    let Some(levels) = levels.checked_sub(1) else {
        let problem = format!("a value nests deeper than {MAX_DEPTH} levels, or contains itself");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    };
    // What can be read only once is charged for when it is read.
    if value.kind() == ValueKind::Iterable && value.len().is_none() {
        return Ok(());
    }
    // Some objects have nothing in them.
    let Ok(items) = value.try_iter() else { return Ok(()) };
    for item in items {
        state.consume_fuel(1)?;
        check_depth(state, &item, levels)?;
        if is_map {
            check_depth(state, &value.get_item(&item)?, levels)?;
        }
    }
    Ok(())
}
