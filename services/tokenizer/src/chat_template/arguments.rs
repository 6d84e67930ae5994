use minijinja::value::{Kwargs, Rest, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

/// What a template may call with: values by position, then some by name.
pub(super) type Arguments = Rest<ValueOrKwargs>;

/// Gives each parameter its argument, whether it comes by position or by name, as calls in Python do.
///
/// # Errors
/// There are more arguments than parameters, one has a name that no parameter has, or a parameter is given twice.
pub(super) fn bind<const N: usize>(
    function: &str,
    arguments: &[Value],
    parameters: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let mut bound = [const { None }; N];
    bind_to(function, arguments, &parameters, &mut bound)?;
    Ok(bound)
}

pub(super) fn bind_to(
    function: &str,
    arguments: &[Value],
    parameters: &[&str],
    bound: &mut [Option<Value>],
) -> Result<(), Error> {
    let (positional, by_name) = match arguments.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (arguments, None),
    };
    if positional.len() > parameters.len() {
        let problem = format!("{function} takes {} arguments, not {}", parameters.len(), positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, problem));
    }
    for (slot, argument) in bound.iter_mut().zip(positional) {
        *slot = Some(argument.clone());
    }
    for name in by_name.iter().flat_map(Kwargs::args) {
        let slot = parameters.iter().position(|parameter| *parameter == name);
        let Some(slot) = slot.and_then(|idx| bound.get_mut(idx)).filter(|slot| slot.is_none()) else {
            let problem = format!("{function} has no argument {name:?}, or has it already");
            return Err(Error::new(ErrorKind::TooManyArguments, problem));
        };
        *slot = by_name.as_ref().map(|kwargs| kwargs.peek(name)).transpose()?;
    }
    Ok(())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// An argument that is a text.
pub(super) fn text_of<'a>(function: &str, argument: Option<&'a Value>) -> Result<&'a str, Error> {
    argument.and_then(Value::as_str).ok_or_else(|| invalid(format!("{function} needs a text")))
}

/// An argument that is a number; none where it is not given, or None.
pub(super) fn number_of(function: &str, argument: Option<&Value>) -> Result<Option<i64>, Error> {
    let given = argument.filter(|value| !value.is_none());
    let number = given.map(|value| i64::try_from(value.clone()));
    number.transpose().map_err(|_| invalid(format!("{function} needs a whole number")))
}

pub(super) fn is_set(argument: Option<&Value>) -> bool {
    argument.is_some_and(Value::is_true)
}
