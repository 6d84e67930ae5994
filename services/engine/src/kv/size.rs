use super::KvLayout;

/// Virtual addresses that all slots take together, at most: half of what a process on x86-64 has.
const MAX_ADDRESS_BYTES: usize = 1 << 46;

/// How much memory there is and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct KvSize {
    /// Sequences that run at the same time.
    pub num_sequences: usize,
    /// The most ranges of addresses, each for one sequence; at least `num_sequences`. What is beyond those keeps the keys
    /// and values of ended sequences for prompts that begin alike. They are reserved as they are needed.
    pub num_slots: usize,
    /// Tokens of the longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Physical memory, in bytes; rounded down to whole pages.
    pub pool_bytes: usize,
    /// Whether sequences that begin alike use the same keys and values.
    pub shares_prefixes: bool,
}

impl KvSize {
    /// With as many slots as are of use: memory, not a number of slots, bounds how many ended sequences are kept. Each
    /// keeps a page at least, so that there are never more than the pool has pages.
    #[must_use]
    pub fn with_slots_for(self, layout: KvLayout, page_bytes: usize) -> Self {
        let slot_bytes = self.max_model_len.saturating_mul(layout.token_bytes()).max(page_bytes).max(1);
        let num_kept = if self.shares_prefixes { self.pool_bytes / page_bytes.max(1) } else { 0 };
        let num_addressable = MAX_ADDRESS_BYTES / slot_bytes;
        let num_slots = self.num_sequences.saturating_add(num_kept).min(num_addressable);
        Self { num_slots: num_slots.max(self.num_sequences), ..self }
    }
}
