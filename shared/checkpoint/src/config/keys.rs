use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// What is wrong with one key; the words follow the key's name.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) key: String,
    pub(super) problem: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }

    pub(super) fn missing(key: &str) -> Self {
        Self::new(key, "is missing")
    }

    pub(super) fn unsupported(key: &str, found: &str, known: &str) -> Self {
        Self::new(key, format!("is `{found}`, which is not supported; known are {known}"))
    }
}

/// Reads values out of a JSON object so that every complaint names its key. `null` counts as absent, as transformers
/// writes it for what it calls `None`.
#[derive(Default)]
pub(super) struct Keys<'a> {
    map: Option<&'a Map<String, Value>>,
    prefix: String,
}

impl<'a> Keys<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map: Some(map), prefix: String::new() }
    }

    /// Whether there is no key at all.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_none_or(Map::is_empty)
    }

    /// Whether another object says the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.map == other.map
    }

    /// Whether the key is there, `null` included.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.is_some_and(|map| map.contains_key(key))
    }

    /// Whether the key has a value.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the key's value is an object that says something.
    pub(super) fn is_object(&self, key: &str) -> bool {
        self.value(key).and_then(Value::as_object).is_some_and(|map| !map.is_empty())
    }

    /// The keys of an object inside this one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Keys<'a>>, Problem> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Keys { map: Some(map), prefix: format!("{}{key}.", self.prefix) }))
            }
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, value, "a list of strings"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Problem> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, value, expected))
            }
        }
    }

    pub(super) fn required_count(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, Problem> {
        self.count(key, range)?.ok_or_else(|| Problem::missing(&self.full(key)))
    }

    pub(super) fn real(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64().filter(|real| range.contains(real)) {
            Some(real) => Ok(Some(real)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, value, expected))
            }
        }
    }

    pub(super) fn required_real(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, Problem> {
        self.real(key, range)?.ok_or_else(|| Problem::missing(&self.full(key)))
    }

    pub(super) fn required_reals(&self, key: &str, range: RangeInclusive<f64>) -> Result<Vec<f64>, Problem> {
        let value = self.value(key).ok_or_else(|| Problem::missing(&self.full(key)))?;
        let in_range = |real: &Value| real.as_f64().filter(|real| range.contains(real));
        let reals = value.as_array().and_then(|list| list.iter().map(in_range).collect());
        reals.ok_or_else(|| {
            self.wrong(key, value, format!("a list of numbers from {} to {}", range.start(), range.end()))
        })
    }

    /// One token id or a list of them; empty where there is none.
    pub(super) fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, Problem> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let in_vocabulary = |id: &Value| {
            let id = u32::try_from(id.as_u64()?).ok()?;
            usize::try_from(id).ok().filter(|&idx| idx < vocab_size).map(|_| id)
        };
        let expected = || format!("token ids under vocab_size {vocab_size}");
        ids.iter().map(in_vocabulary).collect::<Option<_>>().ok_or_else(|| self.wrong(key, value, expected()))
    }

    /// The key with the names of the objects around it.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map?.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, expected: impl Display) -> Problem {
        // Outside data of any length: the message shows its beginning.
        let shown: String = found.to_string().chars().take(80).collect();
        Problem::new(self.full(key), format!("must be {expected}, got {shown}"))
    }
}
