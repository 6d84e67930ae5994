use crate::{HandleId, RangeId};

/// A result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No memory is left to create physical pages from: give some back first.
    #[error("out of physical memory for {len} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        len: usize,
    },
    /// The process has as many mappings as the system allows: larger pages or a higher limit are needed.
    #[error("the process has reached vm.max_map_count = {limit} mappings; use larger pages or raise it")]
    TooManyMappings {
        /// The system's limit.
        limit: usize,
    },
    /// The system refused a call for a reason of its own.
    #[error("the system call {call} failed")]
    System {
        /// Which call.
        call: &'static str,
        /// What it reported.
        #[source]
        source: std::io::Error,
    },
    /// There is no CUDA driver that could be used: install one, or choose another backend.
    #[error("there is no usable CUDA driver: {reason}")]
    NoDriver {
        /// What is missing.
        reason: String,
    },
    /// The machine has no such GPU.
    #[error("there is no CUDA device {device}; the driver knows {num_devices}, counted from 0")]
    NoDevice {
        /// The number asked for.
        device: i32,
        /// How many there are.
        num_devices: i32,
    },
    /// The CUDA driver refused a call.
    #[error("the driver call {call} failed with {name}")]
    Driver {
        /// Which call.
        call: &'static str,
        /// The driver's name for what went wrong.
        name: String,
    },
    /// A caller broke the rules of [`VirtualMemory`](crate::VirtualMemory).
    #[error("illegal use of virtual memory")]
    Illegal(#[from] IllegalUse),
}

/// A call that no correct caller makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalUse {
    /// The page size is no multiple of what the backend can map.
    #[error("a page of {page_bytes} bytes is no multiple of {granularity}")]
    PageSize {
        /// The page size asked for.
        page_bytes: usize,
        /// What it must be a multiple of.
        granularity: usize,
    },
    /// An offset or a length is no multiple of the page size, or a length is zero.
    #[error("{bytes} bytes are no whole number of pages")]
    NotWholePages {
        /// The offset or length.
        bytes: usize,
    },
    /// No such range, or it was freed.
    #[error("there is no range {0:?}")]
    UnknownRange(RangeId),
    /// No such handle, or it was released.
    #[error("there is no handle {0:?}")]
    UnknownHandle(HandleId),
    /// The span does not lie inside the range.
    #[error("the span of {len} bytes at {offset} leaves its range")]
    OutsideRange {
        /// Where the span starts.
        offset: usize,
        /// Its length.
        len: usize,
    },
    /// Something is mapped there already.
    #[error("something is mapped at {offset} already")]
    AlreadyMapped {
        /// Where the mapping would start.
        offset: usize,
    },
    /// Nothing is mapped there.
    #[error("nothing is mapped at {offset}")]
    NotMapped {
        /// The first such offset.
        offset: usize,
    },
    /// A handle maps, changes its access and unmaps as a whole.
    #[error("the span covers a part of the handle around {offset} only")]
    PartOfHandle {
        /// Where the span cuts it.
        offset: usize,
    },
    /// The same physical pages would be writable at one address and accessible at another.
    #[error("the pages at {offset} are accessible at another address")]
    Aliased {
        /// The first such offset.
        offset: usize,
    },
    /// The pages there may not be used that way.
    #[error("the pages at {offset} do not allow this access")]
    NoAccess {
        /// The first such offset.
        offset: usize,
    },
    /// The range or the handle still takes part in a mapping.
    #[error("it is still mapped")]
    StillMapped,
    /// A step holds the mapping there, or something of the range, and needs the access it has.
    #[error("the mapping at {offset} is pinned by a step")]
    Pinned {
        /// Where the mapping starts.
        offset: usize,
    },
    /// A range of this backend is pinned at most once at a time.
    #[error("the range {0:?} is pinned already")]
    AlreadyPinned(RangeId),
    /// Fewer spans were pinned.
    #[error("span {0} is not among the pinned ones")]
    NoSuchSpan(usize),
    /// The bytes are not pinned, or not for writing.
    #[error("the bytes {start}..{end} are not pinned for this use")]
    OutsideSpan {
        /// The first byte.
        start: usize,
        /// Behind the last one.
        end: usize,
    },
}
