use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::arguments::{Arguments, bind, invalid, is_set};
use super::environment::{BYTES_A_FUEL, check_extent};
use super::repr;

/// The filter `tojson` as transformers has it: Python's `json.dumps`, which keeps characters as they are unless it is told
/// otherwise. Models were trained on its spaces.
pub(super) fn tojson(state: &State, value: &Value, arguments: Arguments) -> Result<Value, Error> {
    check_extent(state, value)?;
    let style = Style::read(&arguments.into_values())?;
    let mut json = Json { out: String::new(), style, state };
    json.write(value, 0)?;
    Ok(Value::from(json.out))
}

struct Style {
    indent: Option<String>,
    between_items: String,
    after_key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// The widest indent, in bytes: each line of each level repeats it.
const MAX_INDENT: usize = 16;

impl Style {
    fn read(arguments: &[Value]) -> Result<Self, Error> {
        let parameters = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ensure_ascii, indent, separators, sort_keys] = bind("tojson", arguments, parameters)?;
        let indent = indent.filter(|indent| !indent.is_none()).map(|indent| {
            match (indent.as_str(), indent.as_i64()) {
                (Some(text), _) if text.len() <= MAX_INDENT => Ok(text.to_owned()),
                (None, Some(width)) => Ok(" ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT))),
                _ => {
                    Err(invalid(format!("tojson: indent must be a number, or a text of {MAX_INDENT} bytes")))
                }
            }
        });
        let indent = indent.transpose()?;
        let (between_items, after_key) = match separators.filter(|separators| !separators.is_none()) {
            Some(separators) => {
                let texts = separators.try_iter()?.take(3);
                let texts: Vec<_> = texts.map(|text| text.as_str().map(str::to_owned)).collect();
                let [Some(between), Some(after)] = texts.as_slice() else {
                    return Err(invalid("tojson: separators must be two texts"));
                };
                (between.clone(), after.clone())
            }
            None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        };
        let (ensure_ascii, sort_keys) = (is_set(ensure_ascii.as_ref()), is_set(sort_keys.as_ref()));
        Ok(Self { indent, between_items, after_key, ensure_ascii, sort_keys })
    }
}

struct Json<'a, 'template, 'env> {
    out: String,
    style: Style,
    state: &'a State<'template, 'env>,
}

impl Json<'_, '_, '_> {
    fn write(&mut self, value: &Value, level: usize) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.write_text(text);
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::Seq => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.write_all("[", "]", &items, level, |json, item| json.write(item, level + 1))?;
            }
            ValueKind::Map => {
                let pairs = value.try_iter()?.map(|key| Ok((key_text(&key)?, value.get_item(&key)?)));
                let mut pairs = pairs.collect::<Result<Vec<_>, Error>>()?;
                if self.style.sort_keys {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.write_all("{", "}", &pairs, level, |json, (key, value)| {
                    json.write_text(key);
                    json.out.push_str(&json.style.after_key);
                    json.write(value, level + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of type {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn write_all<T>(
        &mut self,
        open: &str,
        close: &str,
        items: &[T],
        level: usize,
        write: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        for (idx, item) in items.iter().enumerate() {
            if idx > 0 {
                self.out.push_str(&self.style.between_items);
            }
            self.begin_line(level + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.begin_line(level)?;
        }
        self.out.push_str(close);
        Ok(())
    }

    fn begin_line(&mut self, level: usize) -> Result<(), Error> {
        if let Some(indent) = &self.style.indent {
            self.state.consume_fuel((indent.len() * level) as u64 / BYTES_A_FUEL)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(level));
        }
        Ok(())
    }

    fn write_text(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(char),
                '\u{7f}'.. if !self.style.ensure_ascii => self.out.push(char),
                _ => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        // Writing to a text cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
            }
        }
        self.out.push('"');
    }
}

fn number(value: &Value) -> String {
    match repr::as_float(value) {
        Some(float) if float.is_nan() => "NaN".to_owned(),
        Some(float) if float.is_infinite() => (if float > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
        _ => repr::text(value).into_owned(),
    }
}

/// Keys that are no texts are written as JSON writes them, in quotes.
fn key_text(key: &Value) -> Result<String, Error> {
    match (key.as_str(), key.kind()) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, ValueKind::None) => Ok("null".to_owned()),
        (None, ValueKind::Bool) => Ok((if key.is_true() { "true" } else { "false" }).to_owned()),
        (None, ValueKind::Number) => Ok(number(key)),
        (None, kind) => Err(invalid(format!("tojson: a key of type {kind} cannot be written as JSON"))),
    }
}
