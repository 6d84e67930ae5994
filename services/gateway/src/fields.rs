//! The fields of a JSON object from outside, read one by one, so that every refusal names the field, what it must be
//! and what it was. `null` stands for absent, as in OpenAI's API.
//!
//! Values stay unparsed until they are asked for: messages and tools go on exactly as the client spelled them.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};

use fused_status::{Code, Error};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

type Result<T> = std::result::Result<T, Error>;

/// The fields not yet asked for.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    by_name: BTreeMap<String, &'a RawValue>,
    /// Path of the object itself with a dot at its end; empty for the body.
    prefix: String,
}

/// What a field can hold.
pub(crate) trait Kind: DeserializeOwned {
    /// After "must be".
    const EXPECTED: &'static str;

    /// What a number that is no integer by its spelling stands for; none: nothing of this kind.
    fn from_whole(_: i64) -> Option<Self> {
        None
    }
}

impl Kind for bool {
    const EXPECTED: &'static str = "true or false";
}
impl Kind for String {
    const EXPECTED: &'static str = "a string";
}
impl Kind for f64 {
    const EXPECTED: &'static str = "a number";
}
impl Kind for i64 {
    const EXPECTED: &'static str = "an integer";

    fn from_whole(number: i64) -> Option<Self> {
        Some(number)
    }
}
impl Kind for u32 {
    const EXPECTED: &'static str = "an integer from 0 to 4294967295";

    fn from_whole(number: i64) -> Option<Self> {
        Self::try_from(number).ok()
    }
}
impl Kind for serde_json::Map<String, Value> {
    const EXPECTED: &'static str = "an object";
}

impl<'a> Fields<'a> {
    /// The fields of a request's body. Of a name given twice the last counts.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self> {
        let malformed =
            |why: String| Error::new(Code::InvalidArgument, format!("the body is not valid JSON: {why}"));
        let text = std::str::from_utf8(body)
            .map_err(|error| malformed(format!("no UTF-8 at byte {}", error.valid_up_to())))?;
        let value: &RawValue = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let by_name = serde_json::from_str(value.get()).map_err(|_| {
            Error::new(Code::InvalidArgument, format!("the body must be a JSON object, got {}", shown(value)))
        })?;
        Ok(Self { by_name, prefix: String::new() })
    }

    /// The fields of the object at `path`.
    pub(crate) fn of(path: &str, value: &'a RawValue) -> Result<Self> {
        let by_name = serde_json::from_str(value.get()).map_err(|_| wrong(path, "an object", value))?;
        Ok(Self { by_name, prefix: format!("{path}.") })
    }

    /// The path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A field as it was sent.
    pub(crate) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.by_name.remove(name).filter(|value| value.get() != "null")
    }

    /// A field of one kind.
    pub(crate) fn take<T: Kind>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        parse(&self.path(name), value).map(Some)
    }

    /// A field whose object has fields of its own.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        Fields::of(&self.path(name), value).map(Some)
    }

    /// A field that holds an array.
    pub(crate) fn array<T: Kind>(&mut self, name: &str) -> Result<Option<Vec<T>>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        parse_array(&self.path(name), value).map(Some)
    }

    /// An integer within a range.
    pub(crate) fn integer<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take::<i64>(name)? else { return Ok(None) };
        let in_range = Some(value).filter(|value| range.contains(value));
        in_range.and_then(|value| T::try_from(value).ok()).map(Some).ok_or_else(|| {
            let (low, high) = range.into_inner();
            // A bound that only the type sets helps nobody.
            let expected = if high >= i64::from(u32::MAX) && value < low {
                format!("at least {low}")
            } else {
                format!("between {low} and {high}")
            };
            out_of_range(&self.path(name), &expected, value)
        })
    }

    /// A number within a range, rounded to what the model computes with. Checked after rounding: the smallest numbers
    /// above zero round to zero.
    pub(crate) fn number(&mut self, name: &str, range: NumberRange) -> Result<Option<f32>> {
        let Some(value) = self.take::<f64>(name)? else { return Ok(None) };
        #[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
        let rounded = value as f32;
        if rounded.is_finite() && range.contains(rounded) {
            Ok(Some(rounded))
        } else {
            Err(out_of_range(&self.path(name), &range.describe(), value))
        }
    }

    /// Refuses the request where one of these fields is set to anything but its neutral values or to what says nothing: the
    /// answer would not be what was asked for.
    pub(crate) fn refuse_unless_neutral(&mut self, fields: &[(&str, &[&str])]) -> Result<()> {
        for (name, neutral) in fields {
            let Some(value) = self.raw(name) else { continue };
            let meant = serde_json::from_str::<Value>(value.get()).ok();
            let is_neutral = |meant: &Value| {
                is_off(meant)
                    || neutral.iter().any(|neutral| {
                        serde_json::from_str(neutral).is_ok_and(|neutral| same(&neutral, meant))
                    })
            };
            if !meant.as_ref().is_some_and(is_neutral) {
                return Err(unsupported(&self.path(name)));
            }
        }
        Ok(())
    }

    /// Drops fields that change nothing here, and returns the names of those that are left.
    pub(crate) fn unknown(&mut self, harmless: &[&str]) -> Vec<&str> {
        self.by_name.retain(|name, _| !harmless.contains(&name.as_str()));
        self.by_name.keys().map(String::as_str).collect()
    }
}

/// The bounds of a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberRange {
    pub(crate) low: Bound<f32>,
    pub(crate) high: Bound<f32>,
}

impl NumberRange {
    pub(crate) const fn between(low: f32, high: f32) -> Self {
        Self { low: Bound::Included(low), high: Bound::Included(high) }
    }

    fn contains(&self, value: f32) -> bool {
        std::ops::RangeBounds::contains(&(self.low, self.high), &value)
    }

    fn describe(&self) -> String {
        match (self.low, self.high) {
            (Bound::Included(low), Bound::Included(high)) => format!("between {low} and {high}"),
            (Bound::Excluded(low), Bound::Included(high)) => format!("over {low} and at most {high}"),
            (Bound::Excluded(low), _) => format!("over {low}"),
            _ => "finite".to_owned(),
        }
    }
}

/// What clients send for a field that they leave alone.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An empty schema asks for JSON of any form.
        Value::Object(_) => false,
    }
}

/// Whether two values are the same, however a number is spelled.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// The integer that a number such as `16.0` or `1e2` stands for: some clients know no others.
fn whole(value: &RawValue) -> Option<i64> {
    /// Beyond it not every integer is a floating-point number.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    let number: f64 = serde_json::from_str(value.get()).ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and within the bounds")]
    (number.fract() == 0.0 && number.abs() <= MAX_EXACT).then_some(number as i64)
}

/// A value of one kind.
pub(crate) fn parse<T: Kind>(path: &str, value: &RawValue) -> Result<T> {
    serde_json::from_str(value.get())
        .or_else(|error| whole(value).and_then(T::from_whole).ok_or(error))
        .map_err(|error| {
            // The one string that is none: half of a surrogate pair, escaped.
            let message = error.to_string();
            if message.contains("surrogate") || message.contains("hex escape") {
                return Error::invalid(
                    path,
                    format!("{path} holds half of a surrogate pair, which is no character"),
                );
            }
            wrong(path, T::EXPECTED, value)
        })
}

/// An array of one kind.
pub(crate) fn parse_array<T: Kind>(path: &str, value: &RawValue) -> Result<Vec<T>> {
    // At once: a prompt may be a hundred thousand token ids. Only a wrong one is searched item by item.
    serde_json::from_str(value.get()).or_else(|_| {
        let items = parse_items(path, value)?;
        items.into_iter().enumerate().map(|(idx, item)| parse(&format!("{path}[{idx}]"), item)).collect()
    })
}

/// An array's items as they were sent.
pub(crate) fn parse_items<'a>(path: &str, value: &'a RawValue) -> Result<Vec<&'a RawValue>> {
    serde_json::from_str(value.get()).map_err(|_| wrong(path, "an array", value))
}

/// A field holds something else than it must.
pub(crate) fn wrong(path: &str, expected: &str, value: &RawValue) -> Error {
    Error::invalid(path, format!("{path} must be {expected}, got {}", shown(value)))
}

/// A field is needed and not there.
pub(crate) fn missing(path: &str) -> Error {
    Error::invalid(path, format!("{path} is required"))
}

/// A field asks for something that is not offered.
pub(crate) fn unsupported(path: &str) -> Error {
    Error::new(Code::Unsupported, format!("{path} is not supported here; leave it out")).with_param(path)
}

fn out_of_range(path: &str, expected: &str, value: impl std::fmt::Display) -> Error {
    Error::invalid(path, format!("{path} must be {expected}, got {value}"))
}

/// What was sent, short: numbers and words as they are, the rest by kind.
fn shown(value: &RawValue) -> String {
    const MAX_NUMBER_BYTES: usize = 32;
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => "a string".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'{') => "an object".to_owned(),
        _ if text.len() <= MAX_NUMBER_BYTES => text.to_owned(),
        _ => "a number".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: std::fmt::Debug>(
        body: &str,
        read: impl Fn(&mut Fields<'_>) -> Result<T>,
    ) -> (String, String) {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let error = read(&mut fields).unwrap_err();
        (error.param().unwrap_or_default().to_owned(), error.message().to_owned())
    }

    #[test]
    fn null_is_absent_and_the_last_of_a_name_counts() {
        let mut fields = Fields::parse(br#"{"a": null, "b": 1, "b": 2}"#).unwrap();
        assert_eq!(fields.take::<i64>("a").unwrap(), None);
        assert_eq!(fields.take::<i64>("b").unwrap(), Some(2));
        assert_eq!(fields.take::<i64>("b").unwrap(), None);
    }

    #[test]
    fn whole_numbers_are_integers_however_they_are_spelled() {
        let mut fields =
            Fields::parse(br#"{"a": 16.0, "b": [1.0, 2e2], "c": 2.5, "d": 1e300, "e": -1.0}"#).unwrap();
        assert_eq!(fields.integer::<u32>("a", 1..=20).unwrap(), Some(16));
        assert_eq!(fields.array::<u32>("b").unwrap().unwrap(), [1, 200]);
        for name in ["c", "d"] {
            assert!(fields.take::<i64>(name).unwrap_err().message().contains("must be an integer"));
        }
        assert!(fields.take::<u32>("e").is_err());
    }

    #[test]
    fn what_says_nothing_is_taken_and_what_asks_for_something_is_refused() {
        let refused = |value: &str| {
            let body = format!(r#"{{"a": {value}}}"#);
            Fields::parse(body.as_bytes())
                .unwrap()
                .refuse_unless_neutral(&[("a", &["0", r#"{"type": "text"}"#])])
                .is_err()
        };
        for value in ["null", "false", "\"\"", "[]", "0", "0.0", r#"{"type":"text"}"#] {
            assert!(!refused(value), "{value}");
        }
        for value in ["true", "1", r#""x""#, "[0]", "{}", r#"{"type": "json_object"}"#, "1e999"] {
            assert!(refused(value), "{value}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let say = |param: &str, message: &str| (param.to_owned(), message.to_owned());
        assert_eq!(
            error(r#"{"n": "two"}"#, |f| f.take::<i64>("n")),
            say("n", "n must be an integer, got a string")
        );
        assert_eq!(error(r#"{"n": 1.5}"#, |f| f.take::<i64>("n")), say("n", "n must be an integer, got 1.5"));
        assert_eq!(
            error(r#"{"n": 0}"#, |f| f.integer::<u32>("n", 1..=128)),
            say("n", "n must be between 1 and 128, got 0")
        );
        assert_eq!(
            error(r#"{"n": -1}"#, |f| f.integer::<u32>("n", 1..=i64::from(u32::MAX))),
            say("n", "n must be at least 1, got -1")
        );
        assert_eq!(
            error(r#"{"ids": [1, 2, -3]}"#, |f| f.array::<u32>("ids")),
            say("ids[2]", "ids[2] must be an integer from 0 to 4294967295, got -3")
        );
        assert_eq!(
            error(r#"{"o": {"i": 1}}"#, |f| f.object("o").unwrap().unwrap().take::<bool>("i")),
            say("o.i", "o.i must be true or false, got 1")
        );
    }

    #[test]
    fn numbers_are_checked_as_the_model_sees_them() {
        let range = NumberRange { low: Bound::Excluded(0.0), high: Bound::Included(1.0) };
        for sent in ["0", "-1", "1.01", "1e-60", "1e300", "1e999"] {
            let body = format!(r#"{{"p": {sent}}}"#);
            let (param, message) = error(&body, |f| f.number("p", range));
            assert_eq!(param, "p", "{sent}");
            assert!(message.starts_with("p must be "), "{message}");
        }
        let mut fields = Fields::parse(br#"{"p": 1}"#).unwrap();
        assert_eq!(fields.number("p", range).unwrap(), Some(1.0));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (body, part) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[1]", "must be a JSON object, got an array"),
            ("3", "must be a JSON object, got 3"),
            ("{} x", "trailing"),
            ("{\"a\": tru}", "expected ident"),
        ] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert!(error.message().contains(part), "{body}: {error}");
        }
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").unwrap_err().message().contains("no UTF-8 at byte 7"));
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let deep = format!(r#"{{"a": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let mut fields = Fields::parse(deep.as_bytes()).unwrap();
        assert!(fields.refuse_unless_neutral(&[("a", &["[]"])]).is_err());
        let mut fields = Fields::parse(deep.as_bytes()).unwrap();
        assert!(fields.array::<String>("a").is_err());
    }
}
