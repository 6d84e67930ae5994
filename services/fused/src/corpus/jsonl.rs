use std::fmt;

use anyhow::{anyhow, bail};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::lines::{Appended, Lines};
use super::{MAX_DOCUMENT_BYTES, utf8};

/// So many of a line's fields are named where the one asked for is missing.
const MAX_NAMED: usize = 16;

/// The documents of a file with one JSON object a line; empty lines are left out.
pub(super) struct Documents {
    lines: Lines,
    line_number: u64,
    field: String,
}

impl Documents {
    pub(super) fn new(lines: Lines, field: &str) -> Self {
        Self { lines, line_number: 0, field: field.to_owned() }
    }

    fn next_document(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let start = self.lines.offset();
            let mut bytes = Vec::new();
            self.line_number += 1;
            match self.lines.append(&mut bytes)? {
                Appended::Line => {}
                Appended::End => return Ok(None),
                Appended::TooLong => {
                    bail!(
                        "line {} is over {MAX_DOCUMENT_BYTES} bytes (it begins at byte {start})",
                        self.line_number
                    )
                }
            }
            let line = utf8(bytes, start)?;
            if !line.trim().is_empty() {
                return self.parse(&line).map(Some);
            }
        }
    }

    fn parse(&self, line: &str) -> anyhow::Result<String> {
        let number = self.line_number;
        let mut json = serde_json::Deserializer::from_str(line);
        let found =
            Record { field: &self.field }.deserialize(&mut json).and_then(|found| json.end().map(|()| found));
        match found {
            Ok(Found::Text(text)) => Ok(text),
            Ok(Found::Missing(names)) => bail!("line {number}: {}", missing(&self.field, &names)),
            Err(error) => {
                let hint = if error.is_eof() { ": a record stands on one line, or in an array" } else { "" };
                Err(anyhow!("line {number}, column {}: {}{hint}", error.column(), problem(&error)))
            }
        }
    }
}

impl Iterator for Documents {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_document().transpose()
    }
}

/// What a record without the field is told.
pub(super) fn missing(field: &str, names: &[String]) -> String {
    format!("no field `{field}` (--field); there are: {}", names.join(", "))
}

/// What is wrong, without the place, which the parser counts from the record's beginning.
pub(super) fn problem(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

pub(super) enum Found {
    Text(String),
    /// The names of the fields that there are.
    Missing(Vec<String>),
}

/// Takes one field out of an object without keeping the others; a string is a document itself.
pub(super) struct Record<'a> {
    pub(super) field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Found, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object or a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Found, E> {
        Ok(Found::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Found, A::Error> {
        let (mut text, mut names) = (None, Vec::new());
        while let Some(name) = object.next_key::<String>()? {
            if name == self.field {
                text = Some(object.next_value_seed(Text { field: self.field })?);
            } else {
                object.next_value::<IgnoredAny>()?;
                match names.len() {
                    ..MAX_NAMED => names.push(format!("`{name}`")),
                    MAX_NAMED => names.push("…".to_owned()),
                    _ => {}
                }
            }
        }
        Ok(text.map_or(Found::Missing(names), Found::Text))
    }
}

struct Text<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<String, D::Error> {
        json.deserialize_string(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string in field `{}`", self.field)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}
