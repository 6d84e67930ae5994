/// How much memory there is and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct KvSize {
    /// Sequences that run at the same time.
    pub num_sequences: usize,
    /// Ranges of addresses, each for one sequence; at least `num_sequences`. What is beyond those keeps the keys and
    /// values of ended sequences for prompts that begin alike.
    pub num_slots: usize,
    /// Tokens of the longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Physical memory, in bytes; rounded down to whole pages.
    pub pool_bytes: usize,
    /// Whether sequences that begin alike use the same keys and values.
    pub shares_prefixes: bool,
}

/// Where the pages are, in bytes. `mapped + parked + free = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    /// The pool.
    pub total_bytes: usize,
    /// In extents that a live sequence needs; one that several share counts once.
    pub mapped_bytes: usize,
    /// In extents that are mapped and that no live sequence needs: whoever needs them may take them.
    pub parked_bytes: usize,
    /// Mapped nowhere.
    pub free_bytes: usize,
    /// Of `parked_bytes`: behind the need of a live sequence, for its next tokens.
    pub ahead_bytes: usize,
    /// Of `mapped_bytes`: where no keys and values are as yet.
    pub unused_bytes: usize,
    /// Slots in use.
    pub live_slots: usize,
}
