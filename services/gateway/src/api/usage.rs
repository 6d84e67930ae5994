//! What an answer took, whole and while it streams.

use fused_proto::text::v1 as text;
use fused_proto::text::v1::generate_response::Message;
use fused_status::Error;
use serde::Serialize;

use crate::fields::Fields;

/// OpenAI's usage object, with what the base vocabulary would have taken beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_base_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_base_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct PromptTokensDetails {
    cached_tokens: u64,
}

impl Usage {
    /// Of a request with several prompts: the sum.
    pub(super) fn total(usages: &[text::Usage]) -> Self {
        let mut total = Self::default();
        for usage in usages {
            total.add(usage);
        }
        total
    }

    fn add(&mut self, usage: &text::Usage) {
        self.prompt_tokens += u64::from(usage.prompt_tokens());
        self.completion_tokens += u64::from(usage.completion_tokens());
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.prompt_tokens_details.cached_tokens += u64::from(usage.cached_prompt_tokens());
        add_known(&mut self.prompt_base_tokens, usage.prompt_base_tokens);
        add_known(&mut self.completion_base_tokens, usage.completion_base_tokens);
    }
}

fn add_known(sum: &mut Option<u64>, count: Option<u32>) {
    if let Some(count) = count {
        *sum = Some(sum.unwrap_or_default() + u64::from(count));
    }
}

/// When a stream tells its usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamUsage {
    Never,
    /// One more chunk, without choices, at the end. Only on request: some clients cannot read it.
    AtEnd,
    /// On every chunk, and at the end.
    Always,
}

impl StreamUsage {
    /// Reads `stream_options`.
    pub(super) fn from_fields(mut options: Fields<'_>) -> Result<Self, Error> {
        let at_end = options.take("include_usage")?.unwrap_or(false);
        let always = options.take("continuous_usage_stats")?.unwrap_or(false);
        Ok(match (at_end, always) {
            (false, _) => Self::Never,
            (true, false) => Self::AtEnd,
            (true, true) => Self::Always,
        })
    }
}

/// The usage of a stream while it runs.
#[derive(Debug)]
pub(super) struct RunningUsage {
    when: StreamUsage,
    running: Usage,
    finished: Usage,
}

impl RunningUsage {
    pub(super) fn new(when: StreamUsage) -> Self {
        Self { when, running: Usage::default(), finished: Usage::default() }
    }

    /// Counts an answer.
    pub(super) fn count(&mut self, message: &Message) {
        match message {
            Message::PromptInfo(info) => self.running.prompt_tokens += u64::from(info.prompt_tokens()),
            Message::Text(increment) => self.running.completion_tokens += increment.token_ids.len() as u64,
            Message::Finish(_) => {}
            Message::Usage(usage) => self.finished.add(usage),
        }
        self.running.total_tokens = self.running.prompt_tokens + self.running.completion_tokens;
    }

    /// The field `usage` of a chunk: absent, null, or the counts up to here.
    pub(super) fn of_chunk(&self) -> Option<Option<Usage>> {
        match self.when {
            StreamUsage::Never => None,
            StreamUsage::AtEnd => Some(None),
            StreamUsage::Always => Some(Some(self.running)),
        }
    }

    /// What the last chunk tells, where there is one.
    pub(super) fn at_end(&self) -> Option<Usage> {
        (self.when != StreamUsage::Never).then_some(self.finished)
    }
}
