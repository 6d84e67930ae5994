//! The cache on simulated memory, whose every call is checked, and on the host's.

mod faulty;
mod growth;
mod prefixes;
mod random;

use fused_virtual_memory::{
    Access, Error as MemoryError, HandleId, LinuxMemory, PinToken, RangeId, SimulatedMemory, VirtualMemory,
};
use fused_vocabulary::TokenId;

use super::*;
use faulty::Faulty;

/// 24 bytes a token and 64 a page: a token straddles pages, and accounting in tokens would be wrong.
const LAYOUT: KvLayout = KvLayout { num_layers: 2, num_kv_heads: 1, head_dim: 3, bytes_per_element: 2 };
const PAGE: usize = 64;
const MAX_MODEL_LEN: usize = 20;

fn size(num_slots: usize, num_pages: usize) -> KvSize {
    KvSize {
        num_sequences: num_slots,
        num_slots,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes: num_pages * PAGE,
        shares_prefixes: false,
    }
}

fn simulated(num_slots: usize, num_pages: usize) -> KvCache<SimulatedMemory> {
    let size = size(num_slots, num_pages);
    KvCache::new(SimulatedMemory::new(PAGE, size.pool_bytes).unwrap(), LAYOUT, size).unwrap()
}

fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    ids.into_iter().map(TokenId).collect()
}

#[test]
fn the_layout_is_contiguous() {
    assert_eq!(LAYOUT.token_bytes(), 24);
    let offsets: Vec<_> =
        (0..2).flat_map(|layer| [LAYOUT.keys_offset(layer), LAYOUT.values_offset(layer)]).collect();
    assert_eq!(offsets, [0, 6, 12, 18]);
}

#[test]
fn wrong_sizes_and_slots_are_errors() {
    let memory = || SimulatedMemory::new(PAGE, 1 << 20).unwrap();
    let size = size(2, 7);
    assert!(matches!(KvCache::new(memory(), LAYOUT, size), Err(Error::PoolTooSmall { .. })));
    for size in [KvSize { num_sequences: 0, ..size }, KvSize { max_model_len: usize::MAX / 2, ..size }] {
        assert!(matches!(KvCache::new(memory(), LAYOUT, size), Err(Error::Unaddressable(_))));
    }
    let mut kv = simulated(1, 8);
    let slot = kv.acquire(1).unwrap();
    assert!(matches!(kv.acquire(1), Err(Error::OutOfPages)));
    assert!(matches!(kv.acquire(MAX_MODEL_LEN + 1), Err(Error::OutOfPages)));
    assert!(matches!(kv.ensure(slot, MAX_MODEL_LEN + 1), Err(Error::TooLong { .. })));
    assert!(kv.range_of(slot, 1).is_ok() && kv.range_of(slot, 2).is_err());
    kv.release(slot);
    assert!(matches!(kv.ensure(slot, 1), Err(Error::NotHeld { .. })));
    assert!(kv.pin([SlotUse { slot, context_len: 0, num_tokens: 1 }]).is_err());
}

#[test]
fn a_machine_with_less_memory_than_the_pool_makes_the_pool_smaller() {
    let mut kv = KvCache::new(SimulatedMemory::new(PAGE, 3 * PAGE).unwrap(), LAYOUT, size(2, 8)).unwrap();
    let slot = kv.acquire(1).unwrap();
    kv.ensure(slot, 8).unwrap();
    let second = kv.acquire(0).unwrap();
    assert!(matches!(kv.ensure(slot, 9), Err(Error::OutOfPages)));
    assert!(kv.is_consistent());
    assert_eq!(kv.stats().total_bytes, 3 * PAGE);
    kv.release(second);
    kv.release(slot);
    let other = kv.acquire(2).unwrap();
    kv.ensure(other, 8).unwrap();
    assert!(kv.is_consistent());
}

#[test]
fn what_cannot_be_mapped_ahead_is_no_error_and_no_loss() {
    let memory = Faulty::new(SimulatedMemory::new(PAGE, 8 * PAGE).unwrap());
    let mut num_maps = 0;
    memory.fail_when(move |call| {
        num_maps += usize::from(call == faulty::Call::Map);
        call == faulty::Call::Map && num_maps > 1
    });
    let mut kv = KvCache::new(memory, LAYOUT, size(2, 8)).unwrap();
    let slot = kv.acquire(2).unwrap();
    kv.map_ahead([slot]).unwrap();
    kv.map_ahead([]).unwrap();
    assert!(kv.is_consistent());
    let stats = kv.stats();
    assert_eq!((stats.mapped_bytes, stats.parked_bytes, stats.free_bytes), (PAGE, 0, 7 * PAGE));
    assert!(matches!(kv.ensure(slot, 6), Err(Error::Memory(MemoryError::System { .. }))));
    assert!(kv.is_consistent());
    assert_eq!(kv.stats().mapped_bytes, PAGE);
}

#[test]
fn bytes_stay_with_their_slot() {
    let page = 65536; // What every machine this runs on can map.
    let layout = KvLayout { num_layers: 3, num_kv_heads: 5, head_dim: 7, bytes_per_element: 4 };
    let size = KvSize {
        num_sequences: 2,
        num_slots: 2,
        max_model_len: 64,
        pool_bytes: 32 * page,
        shares_prefixes: true,
    };
    let mut kv = KvCache::new(LinuxMemory::new(page, size.pool_bytes).unwrap(), layout, size).unwrap();
    kv.start_mapper().unwrap();
    let slots = [kv.acquire(0).unwrap(), kv.acquire(0).unwrap()];
    let value = |num_tokens: usize, nth: usize| u8::try_from(num_tokens * 2 + nth).unwrap();
    for num_tokens in 1..=64 {
        for slot in slots {
            kv.ensure(slot, num_tokens).unwrap();
        }
        kv.map_ahead(slots).unwrap();
        let uses = slots.map(|slot| SlotUse { slot, context_len: num_tokens - 1, num_tokens: 1 });
        let mut pinned = kv.pin(uses).unwrap();
        for nth in 0..2 {
            let bytes = (num_tokens - 1) * layout.token_bytes()..num_tokens * layout.token_bytes();
            pinned.bytes_mut(nth, bytes).unwrap().fill(value(num_tokens, nth));
        }
    }
    let pinned = kv.pin(slots.map(|slot| SlotUse { slot, context_len: 64, num_tokens: 0 })).unwrap();
    for nth in 0..2 {
        let bytes = pinned.bytes(nth);
        assert_eq!(bytes.len(), 64 * layout.token_bytes());
        for (token, num_tokens) in bytes.chunks(layout.token_bytes()).zip(1..) {
            assert!(token.iter().all(|byte| *byte == value(num_tokens, nth)));
        }
    }
    assert!(kv.is_consistent());
}
