use fused_virtual_memory::{
    Access, Error as MemoryError, HandleId, LinuxMemory, RangeId, SimulatedMemory, VirtualMemory,
};
use proptest::prelude::*;

use super::*;

/// 24 bytes a token and 64 a page: a token straddles pages, and accounting in tokens would be wrong.
const LAYOUT: KvLayout = KvLayout { num_layers: 2, num_kv_heads: 1, head_dim: 3, bytes_per_element: 2 };
const PAGE: usize = 64;
const MAX_MODEL_LEN: usize = 20;

fn simulated(num_slots: usize, num_pages: usize) -> KvCache<SimulatedMemory> {
    let pool_bytes = num_pages * PAGE;
    let memory = SimulatedMemory::new(PAGE, pool_bytes).unwrap();
    KvCache::new(memory, LAYOUT, KvSize { num_slots, max_model_len: MAX_MODEL_LEN, pool_bytes }).unwrap()
}

#[test]
fn the_layout_is_contiguous() {
    assert_eq!(LAYOUT.token_bytes(), 24);
    let offsets: Vec<_> =
        (0..2).flat_map(|layer| [LAYOUT.keys_offset(layer), LAYOUT.values_offset(layer)]).collect();
    assert_eq!(offsets, [0, 6, 12, 18]);
}

#[test]
fn pages_are_counted_in_bytes() {
    let mut kv = simulated(1, 8);
    let slot = kv.acquire(3).unwrap();
    kv.ensure(slot, 2).unwrap();
    // 48 bytes: one page, and two ahead.
    assert_eq!(kv.stats().mapped_bytes, 3 * PAGE);
    kv.ensure(slot, 16).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 8 * PAGE, "384 bytes are six pages, and two ahead");
}

#[test]
fn a_parked_slot_is_adopted_with_its_pages() {
    let mut kv = simulated(3, 20);
    let (large, small) = (kv.acquire(20).unwrap(), kv.acquire(1).unwrap());
    kv.ensure(large, 20).unwrap();
    kv.ensure(small, 1).unwrap();
    let calls = kv.memory().calls();
    assert_eq!(kv.release(large), 8 * PAGE);
    assert_eq!(kv.release(small), 3 * PAGE);
    assert_eq!(kv.stats().parked_bytes, 11 * PAGE);
    assert_eq!(kv.acquire(3), Some(small), "the smallest that suffices");
    assert_eq!(kv.acquire(19), Some(large));
    kv.ensure(large, 20).unwrap();
    kv.ensure(small, 3).unwrap();
    assert_eq!(kv.memory().calls(), calls, "steady state makes no calls");
}

#[test]
fn pages_are_stolen_from_the_largest_parked_slot_only_under_pressure() {
    let mut kv = simulated(3, 12);
    let slots: Vec<_> = (0..3).map(|_| kv.acquire(0).unwrap()).collect();
    kv.ensure(slots[0], 16).unwrap();
    kv.ensure(slots[1], 2).unwrap();
    kv.release(slots[0]);
    kv.release(slots[1]);
    assert_eq!(
        kv.stats(),
        KvStats {
            total_bytes: 12 * PAGE,
            mapped_bytes: 0,
            parked_bytes: 11 * PAGE,
            free_bytes: PAGE,
            live_slots: 1
        }
    );
    kv.ensure(slots[2], 2).unwrap();
    assert_eq!(kv.memory().calls().unmap, 0, "a free page was there, and nobody loses one for pages ahead");
    kv.ensure(slots[2], 5).unwrap();
    let stats = kv.stats();
    assert_eq!((stats.mapped_bytes, stats.parked_bytes), (2 * PAGE, 10 * PAGE));
    assert_eq!(kv.acquire(16), Some(slots[0]));
    kv.release(slots[0]);
    assert_eq!(kv.release(slots[0]), 0, "it is parked already");
}

#[test]
fn what_a_live_slot_has_beyond_its_need_is_taken_before_anybody_gives_way() {
    let mut kv = simulated(2, 8);
    let first = kv.acquire(20).unwrap();
    kv.ensure(first, 20).unwrap();
    kv.release(first);
    let adopted = kv.acquire(20).unwrap();
    kv.ensure(adopted, 1).unwrap();
    let other = kv.acquire(17).unwrap();
    kv.ensure(other, 18).unwrap();
    assert!(matches!(kv.ensure(other, 19), Err(Error::OutOfPages)));
    assert_eq!(kv.stats().mapped_bytes, 8 * PAGE);
    kv.release(adopted);
    kv.ensure(other, 20).unwrap();
}

#[test]
fn wrong_sizes_and_slots_are_errors() {
    let memory = || SimulatedMemory::new(PAGE, 1 << 20).unwrap();
    let size = KvSize { num_slots: 2, max_model_len: MAX_MODEL_LEN, pool_bytes: 7 * PAGE };
    assert!(matches!(KvCache::new(memory(), LAYOUT, size), Err(Error::PoolTooSmall { .. })));
    for size in [KvSize { num_slots: 0, ..size }, KvSize { max_model_len: usize::MAX / 2, ..size }] {
        assert!(matches!(KvCache::new(memory(), LAYOUT, size), Err(Error::Unaddressable(_))));
    }
    let mut kv = simulated(1, 8);
    let slot = kv.acquire(1).unwrap();
    assert_eq!(kv.acquire(1), None);
    assert!(matches!(kv.ensure(slot, MAX_MODEL_LEN + 1), Err(Error::NotHeld { .. })));
    kv.release(slot);
    assert!(matches!(kv.ensure(slot, 1), Err(Error::NotHeld { .. })));
}

#[test]
fn a_machine_with_less_memory_than_the_pool_is_an_error_and_no_loss() {
    let memory = SimulatedMemory::new(PAGE, 3 * PAGE).unwrap();
    let size = KvSize { num_slots: 2, max_model_len: MAX_MODEL_LEN, pool_bytes: 8 * PAGE };
    let mut kv = KvCache::new(memory, LAYOUT, size).unwrap();
    let slot = kv.acquire(1).unwrap();
    kv.ensure(slot, 8).unwrap();
    assert!(matches!(kv.ensure(slot, 9), Err(Error::Memory(_))));
    assert!(kv.is_consistent());
    kv.release(slot);
    let other = kv.acquire(20).unwrap();
    kv.ensure(other, 8).unwrap();
}

/// A system that maps so many pages and no more.
struct FewMappings {
    memory: SimulatedMemory,
    num_left: usize,
}

impl VirtualMemory for FewMappings {
    fn page_bytes(&self) -> usize {
        self.memory.page_bytes()
    }

    fn reserve(&mut self, len: usize) -> Result<RangeId, MemoryError> {
        self.memory.reserve(len)
    }

    fn create(&mut self, len: usize) -> Result<HandleId, MemoryError> {
        self.memory.create(len)
    }

    fn map(&mut self, range: RangeId, offset: usize, handle: HandleId) -> Result<(), MemoryError> {
        self.num_left = self.num_left.checked_sub(1).ok_or(MemoryError::TooManyMappings { limit: 0 })?;
        self.memory.map(range, offset, handle)
    }

    fn set_access(
        &mut self,
        range: RangeId,
        offset: usize,
        len: usize,
        access: Access,
    ) -> Result<(), MemoryError> {
        self.memory.set_access(range, offset, len, access)
    }

    fn unmap(&mut self, range: RangeId, offset: usize, len: usize) -> Result<(), MemoryError> {
        self.memory.unmap(range, offset, len)
    }

    fn release(&mut self, handle: HandleId) -> Result<(), MemoryError> {
        self.memory.release(handle)
    }

    fn free(&mut self, range: RangeId) -> Result<(), MemoryError> {
        self.memory.free(range)
    }
}

#[test]
fn pages_ahead_that_cannot_be_mapped_are_no_error_and_no_loss() {
    let memory = FewMappings { memory: SimulatedMemory::new(PAGE, 8 * PAGE).unwrap(), num_left: 2 };
    let size = KvSize { num_slots: 2, max_model_len: MAX_MODEL_LEN, pool_bytes: 8 * PAGE };
    let mut kv = KvCache::new(memory, LAYOUT, size).unwrap();
    let slot = kv.acquire(1).unwrap();
    kv.ensure(slot, 1).unwrap();
    assert!(kv.is_consistent());
    let stats = kv.stats();
    assert_eq!((stats.mapped_bytes, stats.free_bytes), (2 * PAGE, 6 * PAGE), "one ahead, not two");
    kv.ensure(slot, 5).unwrap();
    assert!(matches!(kv.ensure(slot, 6), Err(Error::Memory(MemoryError::TooManyMappings { .. }))));
    assert!(kv.is_consistent());
}

#[test]
fn bytes_stay_with_their_slot() {
    let page = 65536; // What every machine this runs on can map.
    let layout = KvLayout { num_layers: 3, num_kv_heads: 5, head_dim: 7, bytes_per_element: 4 };
    let size = KvSize { num_slots: 2, max_model_len: 64, pool_bytes: 32 * page };
    let mut kv = KvCache::new(LinuxMemory::new(page, size.pool_bytes).unwrap(), layout, size).unwrap();
    let slots = [kv.acquire(0).unwrap(), kv.acquire(0).unwrap()];
    for num_tokens in 1..=64 {
        for (value, slot) in slots.into_iter().enumerate() {
            kv.ensure(slot, num_tokens).unwrap();
            let bytes = kv.slot_bytes_mut(slot, num_tokens - 1..num_tokens).unwrap();
            bytes.fill(u8::try_from(num_tokens * 2 + value).unwrap());
        }
    }
    for (value, slot) in slots.into_iter().enumerate() {
        let bytes = kv.slot_bytes(slot, 64).unwrap();
        let expected = (1..=64).map(|num_tokens| u8::try_from(num_tokens * 2 + value).unwrap());
        assert!(
            bytes
                .chunks(layout.token_bytes())
                .zip(expected)
                .all(|(token, value)| token.iter().all(|b| *b == value))
        );
        assert!(kv.slot_bytes(slot, 65).is_err());
    }
    assert!(kv.is_consistent());
}

#[derive(Clone, Debug)]
enum Call {
    Acquire { expected_tokens: usize },
    Ensure { nth: usize, num_tokens: usize },
    Release { nth: usize },
}

fn call() -> impl Strategy<Value = Call> {
    let nth = 0..8usize;
    let tokens = 0..MAX_MODEL_LEN + 1;
    prop_oneof![
        2 => tokens.clone().prop_map(|expected_tokens| Call::Acquire { expected_tokens }),
        5 => (nth.clone(), tokens).prop_map(|(nth, num_tokens)| Call::Ensure { nth, num_tokens }),
        1 => nth.prop_map(|nth| Call::Release { nth }),
    ]
}

proptest! {
    #[test]
    fn no_page_is_lost_and_no_need_unmet_while_there_are_pages(
        num_pages in 8..20usize,
        calls in prop::collection::vec(call(), 1..100),
    ) {
        let mut kv = simulated(4, num_pages);
        let mut live: Vec<(SlotId, usize)> = Vec::new();
        let pages = |num_tokens: usize| (num_tokens * LAYOUT.token_bytes()).div_ceil(PAGE);
        for call in calls {
            match call {
                Call::Acquire { expected_tokens } => match kv.acquire(expected_tokens) {
                    Some(slot) => {
                        prop_assert!(live.iter().all(|(other, _)| *other != slot));
                        live.push((slot, 0));
                    }
                    None => prop_assert_eq!(live.len(), 4),
                },
                Call::Ensure { nth, num_tokens } if !live.is_empty() => {
                    let nth = nth % live.len();
                    let others: usize = live.iter().enumerate().filter(|(idx, _)| *idx != nth)
                        .map(|(_, (_, held))| pages(*held)).sum();
                    let (slot, held) = &mut live[nth];
                    let wanted = num_tokens.max(*held);
                    let ensured = kv.ensure(*slot, num_tokens);
                    prop_assert_eq!(ensured.is_ok(), others + pages(wanted) <= num_pages);
                    if ensured.is_ok() {
                        *held = wanted;
                    }
                }
                Call::Release { nth } if !live.is_empty() => {
                    let (slot, _) = live.swap_remove(nth % live.len());
                    kv.release(slot);
                }
                Call::Ensure { .. } | Call::Release { .. } => {}
            }
            prop_assert!(kv.is_consistent());
            let stats = kv.stats();
            prop_assert_eq!(stats.live_slots, live.len());
            prop_assert!(stats.mapped_bytes >= live.iter().map(|(_, held)| pages(*held) * PAGE).sum());
        }
    }
}
