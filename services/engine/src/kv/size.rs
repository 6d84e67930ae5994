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
