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

/// Address ranges and physical pages, joined and parted by hand.
///
/// All offsets and lengths are bytes and whole numbers of [pages](Self::page_bytes). A call that fails has changed
/// nothing, but for [`set_access`](Self::set_access) and [`unmap`](Self::unmap), which go handle by handle and may have
/// done the first ones.
///
/// # Errors
/// Every call fails on illegal use ([`Error::Illegal`](crate::Error::Illegal)) and on whatever the system refuses.
pub trait VirtualMemory: Send + 'static {
    /// The unit of everything here, in bytes.
    fn page_bytes(&self) -> usize;

    /// Reserves `len` bytes of addresses. Costs no physical memory.
    ///
    /// # Errors
    /// See the trait.
    fn reserve(&mut self, len: usize) -> Result<RangeId>;

    /// Allocates `len` bytes of physical memory, zeroed where host memory is; mapped nowhere as yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), and see the trait.
    fn create(&mut self, len: usize) -> Result<HandleId>;

    /// Maps the whole handle at `offset` of the range, with [`Access::None`]. A handle may be mapped several times.
    ///
    /// # Errors
    /// See the trait.
    fn map(&mut self, range: RangeId, offset: usize, handle: HandleId) -> Result<()>;

    /// Sets the access of all mappings in the span, which covers whole mappings without a gap.
    ///
    /// # Errors
    /// See the trait; [`IllegalUse::Aliased`](crate::IllegalUse::Aliased) where it would make pages writable
    /// that are accessible elsewhere, or accessible that are writable elsewhere.
    fn set_access(&mut self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()>;

    /// Unmaps the span, which covers whole mappings without a gap. The handles keep their content.
    ///
    /// # Errors
    /// See the trait.
    fn unmap(&mut self, range: RangeId, offset: usize, len: usize) -> Result<()>;

    /// Gives a handle's physical memory back. It must not be mapped.
    ///
    /// # Errors
    /// See the trait.
    fn release(&mut self, handle: HandleId) -> Result<()>;

    /// Gives a range's addresses back. Nothing may be mapped in it.
    ///
    /// # Errors
    /// See the trait.
    fn free(&mut self, range: RangeId) -> Result<()>;
}

/// Virtual memory that the host can read and write.
pub trait HostMemory: VirtualMemory + Sync {
    /// The bytes of a span, which need not be whole pages.
    ///
    /// # Errors
    /// A page of the span is not mapped or not readable.
    fn bytes(&self, range: RangeId, offset: usize, len: usize) -> Result<&[u8]>;

    /// The bytes of a span, which need not be whole pages, to write.
    ///
    /// # Errors
    /// A page of the span is not mapped or not writable.
    fn bytes_mut(&mut self, range: RangeId, offset: usize, len: usize) -> Result<&mut [u8]>;
}
