use std::ptr::NonNull;
use std::time::Duration;

use crate::Result;

/// A reserved range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeId(pub(crate) u64);

/// An extent: one physical allocation of one or more pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub(crate) u64);

/// What may be done through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing: the state after [`VirtualMemory::map`].
    None,
    /// Reading.
    Read,
    /// Reading and writing. Only while no other mapping of the same pages has any access.
    ReadWrite,
}

/// One pin, to be ended by [`VirtualMemory::unpin`]. Only who has it can end the pin, so that a reference into pinned
/// memory stays good; forgotten, it leaves the range pinned for ever. [`Pinned`](crate::Pinned) looks after it.
#[derive(Debug)]
#[must_use = "the range stays pinned until this goes to `unpin`"]
pub struct PinToken {
    pub(crate) range: RangeId,
    pub(crate) id: u64,
}

/// Address ranges and physical pages, joined and parted by hand.
///
/// All offsets and lengths are bytes and whole numbers of [pages](Self::page_bytes), but for those of [`pin`](Self::pin).
/// A call that fails has changed nothing, but for [`set_access`](Self::set_access) and [`unmap`](Self::unmap), which go
/// handle by handle and may have done the first ones.
///
/// Any thread may call. The intended division of labour is one thread that maps ahead (two at once are slower: they wait
/// for each other in the driver), while another works on what it has pinned. `pin` waits for a `set_access` or `unmap`
/// that another thread is in the middle of: many handles are better done in several calls.
///
/// # Errors
/// Every call fails on illegal use ([`Error::Illegal`](crate::Error::Illegal)) and on whatever the system refuses.
pub trait VirtualMemory: Send + Sync + 'static {
    /// The unit of everything here, in bytes.
    fn page_bytes(&self) -> usize;

    /// How long the calls until now would have taken; no time where they took real time.
    fn spent(&self) -> Duration {
        Duration::ZERO
    }

    /// Reserves `len` bytes of addresses. Costs no physical memory.
    ///
    /// # Errors
    /// See the trait.
    fn reserve(&self, len: usize) -> Result<RangeId>;

    /// Allocates `len` bytes of physical memory, zeroed where host memory is; mapped nowhere as yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), and see the trait.
    fn create(&self, len: usize) -> Result<HandleId>;

    /// Maps the whole handle at `offset` of the range, with [`Access::None`]. A handle may be mapped several times.
    ///
    /// # Errors
    /// See the trait.
    fn map(&self, range: RangeId, offset: usize, handle: HandleId) -> Result<()>;

    /// Sets the access of all mappings in the span, which covers whole mappings without a gap.
    ///
    /// # Errors
    /// See the trait; [`IllegalUse::Aliased`](crate::IllegalUse::Aliased) where it would make pages writable
    /// that are accessible elsewhere, or accessible that are writable elsewhere;
    /// [`IllegalUse::Pinned`](crate::IllegalUse::Pinned) where it would take away what a step needs.
    fn set_access(&self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()>;

    /// Unmaps the span, which covers whole mappings without a gap. The handles keep their content.
    ///
    /// # Errors
    /// See the trait; [`IllegalUse::Pinned`](crate::IllegalUse::Pinned) where a step holds a mapping of it. A mapping that
    /// the system fails to unmap is left without access.
    fn unmap(&self, range: RangeId, offset: usize, len: usize) -> Result<()>;

    /// Gives a handle's physical memory back. It must not be mapped.
    ///
    /// # Errors
    /// See the trait.
    fn release(&self, handle: HandleId) -> Result<()>;

    /// Gives a range's addresses back. Nothing may be mapped in it, and nobody may have it pinned.
    ///
    /// # Errors
    /// See the trait.
    fn free(&self, range: RangeId) -> Result<()>;

    /// Holds the first `len` bytes of a range, which need not be whole pages, for a step that is about to work on them.
    /// Until [`unpin`](Self::unpin) nothing of it is unmapped, and no access falls below what the step needs: reading
    /// before `writable_from`, reading and writing from there on. What lies behind `len` may still be mapped and changed.
    ///
    /// On the host and in simulation a range is pinned at most once at a time, on a device any number of times.
    ///
    /// # Errors
    /// See the trait; [`IllegalUse::NotMapped`](crate::IllegalUse::NotMapped) and
    /// [`IllegalUse::NoAccess`](crate::IllegalUse::NoAccess) where a page lacks the access;
    /// [`IllegalUse::AlreadyPinned`](crate::IllegalUse::AlreadyPinned).
    fn pin(&self, range: RangeId, len: usize, writable_from: usize) -> Result<PinToken>;

    /// Ends one pin.
    fn unpin(&self, pin: PinToken);
}

/// Virtual memory that the host can read and write, through [`Pinned`](crate::Pinned).
///
/// # Safety
/// An implementer holds, from a successful [`pin`](VirtualMemory::pin) of a range until `unpin` takes that pin's token:
/// - `base` answers one and the same address, and behind it the pinned bytes may be read and from `writable_from` on
///   written, as one initialised allocation;
/// - no second pin of the range succeeds;
/// - bytes that are pinned for writing can be reached at no other address of any other pin, and nothing but this process
///   writes to bytes that are pinned.
#[expect(unsafe_code, reason = "`Pinned` makes slices from what an implementer promises")]
pub unsafe trait HostMemory: VirtualMemory {
    /// Where a range begins; `Some` while it is pinned.
    fn base(&self, range: RangeId) -> Option<NonNull<u8>>;
}
