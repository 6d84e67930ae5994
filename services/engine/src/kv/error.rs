use super::{KvSize, SlotId};

/// Why KV memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All pages are needed by live sequences: somebody must give way.
    #[error("all pages of KV memory are in use")]
    OutOfPages,
    /// One sequence of the greatest length does not fit.
    #[error("one sequence needs {slot_bytes} bytes of KV memory, and the pool has {pool_bytes}")]
    PoolTooSmall {
        /// Bytes of the longest sequence, in whole pages.
        slot_bytes: usize,
        /// Bytes of the pool, in whole pages.
        pool_bytes: usize,
    },
    /// The sizes do not make sense: zero, or beyond what can be addressed.
    #[error("no KV memory of this shape can be addressed: {0:?}")]
    Unaddressable(KvSize),
    /// A slot that nobody has acquired, or tokens that were not ensured in it.
    #[error("slot {slot:?} does not hold {num_tokens} tokens")]
    NotHeld {
        /// Which slot.
        slot: SlotId,
        /// How many tokens were asked for.
        num_tokens: usize,
    },
    /// No slot is long enough.
    #[error("{num_tokens} tokens are longer than any slot, which has {max_model_len}")]
    TooLong {
        /// How many tokens were to be held.
        num_tokens: usize,
        /// How many a slot holds.
        max_model_len: usize,
    },
    /// The system has no thread to give for mapping ahead.
    #[error("the mapper's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// The thread that maps ahead has ended before its time.
    #[error("the mapper's thread has ended")]
    MapperEnded,
    /// The system refused.
    #[error("virtual memory for keys and values failed")]
    Memory(#[from] fused_virtual_memory::Error),
}

impl Error {
    /// Where the system has no memory to map with, somebody must give way as where there are no pages.
    pub(super) fn or_out_of_pages(self) -> Self {
        use fused_virtual_memory::Error::{OutOfMemory, TooManyMappings};
        match self {
            Self::Memory(OutOfMemory { .. } | TooManyMappings { .. }) => Self::OutOfPages,
            other => other,
        }
    }
}
