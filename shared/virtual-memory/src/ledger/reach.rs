//! How far a range can be used from its beginning, so that a pin need not look at every mapping. A step pins every
//! sequence it works on, some of them thousands of mappings long: looking at 16 times 8192 took 3.7 ms.

use std::collections::BTreeMap;

use super::Mapping;
use crate::Access;

/// Kept up to date with every change of a range's mappings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reach {
    /// Everything before this can be read.
    readable: usize,
    /// From here to `readable`, everything can be written; perhaps from before.
    writable_from: usize,
}

impl Reach {
    /// Whether this alone says that a span may be pinned. `false` means to look at the mappings.
    pub(super) fn allows(&self, len: usize, writable_from: usize) -> bool {
        len <= self.readable && self.writable_from.min(len) <= writable_from
    }

    /// Before something changes at an offset.
    pub(super) fn cut(&mut self, offset: usize) {
        self.readable = self.readable.min(offset);
        self.writable_from = self.writable_from.min(offset);
    }

    /// After something has changed.
    pub(super) fn extend(&mut self, mappings: &BTreeMap<usize, Mapping>) {
        for (&start, mapping) in mappings.range(self.readable..) {
            if start != self.readable || mapping.access == Access::None {
                break;
            }
            self.readable = start + mapping.len;
            if mapping.access != Access::ReadWrite {
                self.writable_from = self.readable;
            }
        }
    }
}
