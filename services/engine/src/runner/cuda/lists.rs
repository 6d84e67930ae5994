use fused_gpu::{Buffer, Gpu, Pinned};
use fused_kernels::{Bias, Occurrence};

use super::{Error, MAX_IN_FLIGHT};

/// Entries at first, 12 MiB of them: a thousand tokens of each of a thousand sequences. More where a step needs them, which is
/// the one thing that a step may allocate.
const FIRST_CAPACITY: usize = 1 << 20;
const ENTRY_BYTES: usize = size_of::<Occurrence>();
const _: () = assert!(size_of::<Bias>() == ENTRY_BYTES);

/// What rows are sampled with and is longer than a row's parameters: what penalties count, and biases.
#[derive(Debug)]
pub(super) struct Lists {
    /// In turn, as in `BatchBuffers`.
    host: [Pinned; MAX_IN_FLIGHT],
    turn: usize,
    device: Buffer,
}

/// The lists of one step in the making.
pub(super) struct OpenLists<'a> {
    lists: &'a mut Lists,
    /// Bytes that are written.
    len: usize,
}

impl Lists {
    pub(super) fn new(gpu: &Gpu) -> fused_gpu::Result<Self> {
        Self::with_capacity(gpu, FIRST_CAPACITY)
    }

    fn with_capacity(gpu: &Gpu, num_entries: usize) -> fused_gpu::Result<Self> {
        let len = ENTRY_BYTES * num_entries;
        Ok(Self { host: [gpu.pinned(len)?, gpu.pinned(len)?], turn: 0, device: gpu.alloc(len)? })
    }

    /// Begins the lists of a step, with so many entries in all.
    pub(super) fn open(&mut self, gpu: &Gpu, num_entries: usize) -> Result<OpenLists<'_>, Error> {
        if ENTRY_BYTES * num_entries > self.device.len() {
            // Their addresses are in no graph, but in what each step sends. The old buffer stays as long as there are graphs, which
            // is no more again than the new one, because sizes are powers of two.
            *self = Self::with_capacity(gpu, num_entries.next_power_of_two())?;
        }
        self.turn = (self.turn + 1) % MAX_IN_FLIGHT;
        Ok(OpenLists { lists: self, len: 0 })
    }
}

impl OpenLists<'_> {
    /// Appends a list. Returns its address and length.
    pub(super) fn push<T: bytemuck::NoUninit>(&mut self, entries: &[T]) -> Result<(u64, u32), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(entries);
        if bytes.is_empty() {
            return Ok((0, 0));
        }
        let Lists { host, turn, device } = &mut *self.lists;
        // The kernel wants them there.
        self.len = self.len.next_multiple_of(8);
        let place = host[*turn].as_mut_slice()?.get_mut(self.len..self.len + bytes.len());
        let place = place.ok_or_else(|| Error::Batch("lists are longer than was said".to_owned()))?;
        place.copy_from_slice(bytes);
        let address = device.address() + self.len as u64;
        self.len += bytes.len();
        Ok((address, u32::try_from(entries.len()).unwrap_or(u32::MAX)))
    }

    /// Sends them to the device.
    pub(super) fn send(self, gpu: &Gpu) -> Result<(), Error> {
        let Self { lists, len } = self;
        if len > 0 {
            gpu.copy_to_device(&lists.host[lists.turn], 0..len, &lists.device, 0)?;
        }
        Ok(())
    }
}
