use fused_gpu::{Buffer, Gpu, Pinned, View};
use fused_kernels::{Bias, Occurrence};

use super::Error;
use super::in_turn::InTurn;

/// Entries at first, 12 MiB of them: a thousand tokens of each of a thousand sequences. More where a step needs them, which,
/// with the lists that are kept, is the one thing that a step may allocate.
const FIRST_CAPACITY: usize = 1 << 20;
pub(super) const ENTRY_BYTES: usize = size_of::<Occurrence>();
const _: () = assert!(size_of::<Bias>() == ENTRY_BYTES);

/// What rows are sampled with and is longer than a row's parameters: biases, and of what penalties count those lists that are
/// not there as yet.
#[derive(Debug)]
pub(super) struct Lists {
    host: InTurn<Pinned>,
    device: Buffer,
}

/// The lists of one step in the making.
pub(super) struct OpenLists<'a> {
    bytes: &'a mut [u8],
    /// Where they will begin on the device.
    address: u64,
    /// Bytes that are written.
    len: usize,
}

impl Lists {
    pub(super) fn new(gpu: &Gpu) -> fused_gpu::Result<Self> {
        Self::with_capacity(gpu, FIRST_CAPACITY)
    }

    fn with_capacity(gpu: &Gpu, num_entries: usize) -> fused_gpu::Result<Self> {
        let len = ENTRY_BYTES * num_entries;
        Ok(Self { host: InTurn::new(|| gpu.pinned(len))?, device: gpu.alloc(len)? })
    }

    /// Begins the lists of a step, with so many entries in all.
    pub(super) fn open(&mut self, gpu: &Gpu, num_entries: usize) -> Result<OpenLists<'_>, Error> {
        if ENTRY_BYTES * num_entries > self.device.len() {
            // Their addresses are in no graph, but in what each step sends. The old buffer stays as long as there are graphs, which
            // is no more again than the new one, because sizes are powers of two.
            *self = Self::with_capacity(gpu, num_entries.next_power_of_two())?;
        }
        // Most steps list nothing, and need not ask whether the memory is free again.
        let bytes = if num_entries > 0 { self.host.next().as_mut_slice()? } else { &mut [] };
        Ok(OpenLists { bytes, address: self.device.address(), len: 0 })
    }

    /// What the device has of them, at an address that [`OpenLists::push`] has given.
    pub(super) fn view(&self, address: u64, len: usize) -> fused_gpu::Result<View<'_>> {
        let start = address.wrapping_sub(self.device.address()) as usize;
        self.device.slice(start..start.saturating_add(len))
    }

    /// Sends the first `len` bytes of what was written last to the device.
    pub(super) fn send(&self, gpu: &Gpu, len: usize) -> Result<(), Error> {
        if len > 0 {
            gpu.copy_to_device(self.host.current(), 0..len, &self.device, 0)?;
        }
        Ok(())
    }
}

impl OpenLists<'_> {
    /// Appends a list. Returns its address and length.
    pub(super) fn push<T: bytemuck::NoUninit>(&mut self, entries: &[T]) -> Result<(u64, u32), Error> {
        let list: &[u8] = bytemuck::cast_slice(entries);
        if list.is_empty() {
            return Ok((0, 0));
        }
        // The kernel wants them there.
        let start = self.len.next_multiple_of(8);
        self.len = start + list.len();
        let place = self.bytes.get_mut(start..self.len);
        let place = place.ok_or_else(|| Error::Batch("lists are longer than was said".to_owned()))?;
        place.copy_from_slice(list);
        Ok((self.address + start as u64, u32::try_from(entries.len()).unwrap_or(u32::MAX)))
    }

    /// Bytes that are to be sent.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}
