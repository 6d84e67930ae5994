use anyhow::{Context, bail};
use serde_json::Value;

/// The events of a stream.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Every event's JSON, in order.
    pub chunks: Vec<Value>,
    /// Whether `[DONE]` came last.
    pub is_done: bool,
}

impl Events {
    /// The text of one choice of a completions stream.
    #[must_use]
    pub fn text(&self, index: u64) -> String {
        self.choices(index).filter_map(|choice| choice["text"].as_str()).collect()
    }

    /// The text of one choice of a chat stream.
    #[must_use]
    pub fn content(&self, index: u64) -> String {
        self.choices(index).filter_map(|choice| choice["delta"]["content"].as_str()).collect()
    }

    /// Every finish reason of one choice; a well-formed stream has one.
    #[must_use]
    pub fn finish_reasons(&self, index: u64) -> Vec<&str> {
        self.choices(index).filter_map(|choice| choice["finish_reason"].as_str()).collect()
    }

    fn choices(&self, index: u64) -> impl Iterator<Item = &Value> {
        self.chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].as_array())
            .flatten()
            .filter(move |choice| choice["index"] == index)
    }
}

/// Takes a whole event stream apart.
///
/// # Errors
/// A line that belongs to no event stream, or an event after `[DONE]`.
pub fn events(body: &str) -> anyhow::Result<Events> {
    let mut events = Events::default();
    for line in body.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
        let data = line.strip_prefix("data: ").with_context(|| format!("no event: {line}"))?;
        if events.is_done {
            bail!("an event after [DONE]: {data}");
        }
        if data == "[DONE]" {
            events.is_done = true;
        } else {
            events.chunks.push(serde_json::from_str(data).with_context(|| data.to_owned())?);
        }
    }
    Ok(events)
}
