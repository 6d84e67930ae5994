use crate::kv::{Coming, SlotId};

/// How much of a sequence is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Tokens of prompt and output, as far as they have arrived or been drawn.
    pub(super) num_tokens: usize,
    /// Of those, the prompt's; counted once all of it has arrived.
    pub(super) num_prompt: usize,
    /// The most tokens it can come to; known, as this shows, once all of the prompt is.
    pub(super) max_tokens: Option<usize>,
    /// Of those known, how many others had computed, or were about to, when that was looked up last.
    pub(super) num_cached: usize,
    /// What must come of its prompt before it asks for a slot.
    pub(super) waits_for: WaitsFor,
    /// How often it had to give way to an older one.
    pub(super) num_preemptions: u32,
    /// What another sequence computes for it.
    pub(super) coming: Option<Coming>,
    /// Tokens of sequences behind it that were admitted while there was no room for it.
    pub(super) num_passed_tokens: usize,
}

/// What a sequence waits for whose prompt is still arriving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Nothing: what is known can be computed.
    #[default]
    Nothing,
    /// More of it: others have computed what is known.
    More,
    /// All of it: it has given way before that was there, and should not have to do so again.
    All,
}

/// A sequence with a slot.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) progress: Progress,
    pub(super) slot: SlotId,
    /// Tokens whose keys and values are in the slot.
    pub(super) num_computed: usize,
}

impl Progress {
    pub(super) fn prompt_is_complete(&self) -> bool {
        self.max_tokens.is_some()
    }

    /// Tokens that may be computed. The last one of a prompt that is still arriving is kept back: an empty chunk may mark
    /// the end, and then the token is needed to draw the next; and it predicts one that is not known as yet.
    pub(super) fn num_ready(&self) -> usize {
        match (self.prompt_is_complete(), self.waits_for) {
            (true, _) => self.num_tokens,
            (false, WaitsFor::Nothing) => self.num_tokens.saturating_sub(1),
            (false, WaitsFor::More | WaitsFor::All) => 0,
        }
    }

    /// Tokens that have been drawn.
    pub(super) fn num_output(&self) -> usize {
        self.num_tokens.saturating_sub(self.num_prompt)
    }

    /// Tokens that may still be drawn.
    pub(super) fn num_left(&self) -> usize {
        self.max_tokens.map_or(0, |max_tokens| max_tokens.saturating_sub(self.num_tokens))
    }

    /// Of the tokens that may be computed, the ones that nobody has, as far as is known.
    pub(super) fn num_uncached(&self) -> usize {
        self.num_ready().saturating_sub(self.num_cached)
    }
}

impl Running {
    pub(super) fn num_uncomputed(&self) -> usize {
        self.progress.num_ready() - self.num_computed
    }

    /// Whether it holds its slot for a prompt that does not come on.
    pub(super) fn is_stalled(&self) -> bool {
        !self.progress.prompt_is_complete() && self.num_uncomputed() == 0
    }

    /// Whether only the token drawn last is to be computed (or the last one of a prompt, which is the same work).
    pub(super) fn is_decode(&self) -> bool {
        self.progress.prompt_is_complete() && self.num_uncomputed() <= 1
    }
}
