/// How much memory there is and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct KvSize {
    /// Sequences that run at the same time.
    pub num_slots: usize,
    /// Tokens of the longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Physical memory, in bytes; rounded down to whole pages.
    pub pool_bytes: usize,
}

/// Where the pages are, in bytes. `mapped + parked + free = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    /// The pool.
    pub total_bytes: usize,
    /// In live slots.
    pub mapped_bytes: usize,
    /// In slots that were given back, for the next who acquires them.
    pub parked_bytes: usize,
    /// In no slot.
    pub free_bytes: usize,
    /// Slots in use.
    pub live_slots: usize,
}
