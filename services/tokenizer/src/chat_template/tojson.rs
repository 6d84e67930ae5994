use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::environment::check_extent;

/// The filter `tojson` as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it: models were trained
/// on its spaces.
pub(super) fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_extent(state, value)?;
    let indent: Option<usize> = kwargs.get("indent")?;
    // Characters are never escaped here; a template that says so itself may.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let text = match indent {
        None => write(value, Spaced),
        Some(indent) => write(value, PrettyFormatter::with_indent(" ".repeat(indent.min(16)).as_bytes())),
    };
    text.map(Value::from_safe_string)
}

fn write(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut out = Vec::new();
    let invalid = |error| {
        Error::new(ErrorKind::BadSerialization, "no JSON can be made of the value").with_source(error)
    };
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter)).map_err(invalid)?;
    String::from_utf8(out).map_err(|_| Error::new(ErrorKind::BadSerialization, "JSON is UTF-8"))
}

/// `", "` between items and `": "` after keys.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
