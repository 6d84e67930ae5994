//! What penalties count, on the device: a sequence's list stays there from step to step, and a step brings what is new.

use std::collections::HashMap;

use fused_gpu::{Buffer, Gpu, View};

use crate::sampler::Occurrences;

use super::lists::ENTRY_BYTES;

/// Entries that a list has room for at first.
const FIRST_CAPACITY: usize = 1024;

/// The lists of the sequences that have drawn lately: never more than one step has had rows with lists.
#[derive(Debug, Default)]
pub(super) struct KeptLists {
    lists: Vec<KeptList>,
    /// By the list's id where it is kept.
    places: HashMap<u64, usize>,
    num_steps: u64,
}

#[derive(Debug)]
struct KeptList {
    buffer: Buffer,
    id: u64,
    num_changes: u64,
    /// The last step that reads it.
    step: u64,
}

/// A list as a step finds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    idx: usize,
    pub(super) address: u64,
    pub(super) lacks: Lacks,
}

/// What a step has to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacks {
    Nothing,
    /// The entry that was changed last.
    LastChange,
    All,
}

impl KeptLists {
    /// Begins a step in which these lists are read, in the order of its rows, each of them once. What they lack is brought
    /// with the step, after whatever still reads them.
    pub(super) fn begin(&mut self, gpu: &Gpu, lists: &[&Occurrences]) -> fused_gpu::Result<Vec<Kept>> {
        self.num_steps += 1;
        // Those that are there stay, before others take the places of those that are not read.
        for idx in lists.iter().filter_map(|list| self.places.get(&list.id())) {
            self.lists[*idx].step = self.num_steps;
        }
        lists.iter().map(|list| self.keep(gpu, list)).collect()
    }

    /// The memory of a list, for all of it to be copied there.
    pub(super) fn target(&self, kept: &Kept, num_entries: usize) -> fused_gpu::Result<View<'_>> {
        self.lists[kept.idx].buffer.slice(0..ENTRY_BYTES * num_entries)
    }

    fn keep(&mut self, gpu: &Gpu, list: &Occurrences) -> fused_gpu::Result<Kept> {
        let num_bytes = ENTRY_BYTES * list.as_slice().len();
        let known = self.places.get(&list.id()).copied();
        let idx = match known.or_else(|| self.lists.iter().position(|kept| kept.step < self.num_steps)) {
            Some(idx) => idx,
            None => {
                let buffer = gpu.alloc(ENTRY_BYTES * FIRST_CAPACITY)?;
                self.lists.push(KeptList { buffer, id: list.id(), num_changes: 0, step: 0 });
                self.lists.len() - 1
            }
        };
        let kept = &mut self.lists[idx];
        let fits = num_bytes <= kept.buffer.len();
        let lacks = match list.num_changes().checked_sub(kept.num_changes) {
            Some(0) if known.is_some() => Lacks::Nothing,
            Some(1) if known.is_some() && fits => Lacks::LastChange,
            _ => Lacks::All,
        };
        if !fits {
            // The old one stays as long as the stream still has to do with it.
            kept.buffer = gpu.alloc(num_bytes.next_power_of_two())?;
        }
        self.places.remove(&kept.id);
        self.places.insert(list.id(), idx);
        (kept.id, kept.num_changes, kept.step) = (list.id(), list.num_changes(), self.num_steps);
        Ok(Kept { idx, address: kept.buffer.address(), lacks })
    }
}
