//! Where pages come from and where they go, without prefixes.

use super::*;

#[test]
fn pages_are_counted_in_bytes() {
    let mut kv = simulated(1, 8);
    let slot = kv.acquire(2).unwrap();
    assert_eq!(kv.stats().mapped_bytes, PAGE, "48 bytes are one page");
    kv.ensure(slot, 3).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 2 * PAGE, "72 are two");
    kv.ensure(slot, 16).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 6 * PAGE, "384 are six");
    kv.computed(slot, &tokens(0..16));
    assert_eq!(kv.stats().unused_bytes, 0);
}

#[test]
fn a_known_length_comes_in_few_extents() {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 4, bytes_per_element: 2 };
    let size = KvSize { max_model_len: 1000, pool_bytes: 1000 * 16, ..size(1, 0) };
    let mut kv = KvCache::new(SimulatedMemory::new(16, 16_000).unwrap(), layout, size).unwrap();
    let slot = kv.acquire(85).unwrap();
    // 32 + 32 + 16 + 4 + 1 pages.
    assert_eq!((kv.memory().calls().create, kv.num_driver_calls()), (5, 15));
    assert_eq!(kv.stats().mapped_bytes, 85 * 16);
    kv.ensure(slot, 128).unwrap();
    kv.ensure(slot, 129).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 130 * 16, "it grows by a sixty-fourth of what it has");
}

#[test]
fn a_parked_slot_is_adopted_with_its_pages() {
    let mut kv = simulated(3, 20);
    let (large, small) = (kv.acquire(20).unwrap(), kv.acquire(5).unwrap());
    let calls = kv.memory().calls();
    assert_eq!(kv.release(large), 8 * PAGE);
    assert_eq!(kv.release(small), 2 * PAGE);
    assert_eq!(kv.stats().parked_bytes, 10 * PAGE);
    assert_eq!(kv.acquire(3).unwrap(), (small), "the smallest that suffices");
    assert_eq!(kv.acquire(19).unwrap(), (large));
    kv.ensure(large, 20).unwrap();
    kv.ensure(small, 5).unwrap();
    assert_eq!(kv.memory().calls(), calls, "steady state makes no calls");
    kv.release(large);
    assert_eq!(kv.release(large), 0, "it is parked already");
}

#[test]
fn pages_leave_the_slot_longest_out_of_use_only_under_pressure() {
    let mut kv = simulated(4, 12);
    let slots: Vec<_> = (0..4).map(|_| kv.acquire(0).unwrap()).collect();
    kv.ensure(slots[0], 16).unwrap();
    kv.ensure(slots[1], 5).unwrap();
    kv.release(slots[1]);
    kv.release(slots[0]);
    let expected = KvStats {
        total_bytes: 12 * PAGE,
        parked_bytes: 8 * PAGE,
        free_bytes: 4 * PAGE,
        live_slots: 2,
        ..KvStats::default()
    };
    assert_eq!(kv.stats(), expected);
    kv.ensure(slots[2], 10).unwrap();
    assert_eq!(kv.memory().calls().unmap, 0, "free pages were there");
    kv.ensure(slots[2], 16).unwrap();
    let stats = kv.stats();
    assert_eq!((stats.mapped_bytes, stats.parked_bytes), (6 * PAGE, 6 * PAGE));
    kv.release(slots[3]);
    assert_eq!(kv.acquire(13).unwrap(), (slots[0]), "the other one has lost its pages");
    assert!(kv.is_consistent());
}

#[test]
fn what_a_live_slot_has_beyond_its_need_is_taken_before_anybody_gives_way() {
    let mut kv = simulated(2, 9);
    let first = kv.acquire(0).unwrap();
    for num_tokens in 1..=20 {
        kv.ensure(first, num_tokens).unwrap();
    }
    kv.release(first);
    let adopted = kv.acquire(1).unwrap();
    assert_eq!(kv.stats().ahead_bytes, 7 * PAGE);
    let other = kv.acquire(0).unwrap();
    assert_ne!(other, adopted);
    kv.ensure(other, 20).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 9 * PAGE);
    assert!(matches!(kv.ensure(adopted, 3), Err(Error::OutOfPages)));
    assert!(kv.is_consistent());
    kv.release(other);
    kv.ensure(adopted, 20).unwrap();
}

/// A sequence that grows a token a step.
fn grow(kv: &mut KvCache<SimulatedMemory>, slot: SlotId, num_tokens: std::ops::Range<usize>) {
    for num_tokens in num_tokens {
        kv.ensure(slot, num_tokens).unwrap();
        kv.map_ahead([slot]).unwrap();
        kv.computed(slot, &tokens([7]));
        assert!(kv.is_consistent());
    }
}

#[test]
fn a_growing_sequence_finds_its_pages_mapped() {
    let memory =
        SimulatedMemory::new(PAGE, 8 * PAGE).unwrap().with_costs(fused_virtual_memory::DriverCosts::h200());
    let mut kv = KvCache::new(memory, LAYOUT, size(1, 8)).unwrap();
    let slot = kv.acquire(1).unwrap();
    let blocked = |kv: &KvCache<SimulatedMemory>| kv.memory().spent() - kv.spent_ahead();
    let before = blocked(&kv);
    grow(&mut kv, slot, 1..MAX_MODEL_LEN + 1);
    assert_eq!(kv.stats().mapped_bytes, 8 * PAGE);
    assert_eq!(blocked(&kv), before, "no step waited for the driver");
    assert!(kv.spent_ahead().as_micros() >= 7 * 30, "which was busy beside them");
}

#[test]
fn mapping_ahead_takes_from_parked_slots_and_never_from_live_ones() {
    let mut kv = simulated(2, 8);
    let parked = kv.acquire(0).unwrap();
    let slot = kv.acquire(0).unwrap();
    grow(&mut kv, parked, 1..14);
    kv.release(parked);
    let (free, unmap) = (kv.stats().free_bytes, kv.memory().calls().unmap);
    assert!(free < 4 * PAGE && unmap == 0);
    grow(&mut kv, slot, 1..14);
    assert!(kv.memory().calls().unmap > 0);
    let other = kv.acquire(0).unwrap();
    grow(&mut kv, other, 1..6);
    assert!(matches!(kv.ensure(other, 20), Err(Error::OutOfPages)));
    assert_eq!(kv.stats().mapped_bytes / PAGE, 5 + 2);
}

#[test]
fn extents_are_broken_and_made_whole_again() {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 4, bytes_per_element: 2 };
    let size = KvSize { max_model_len: 64, pool_bytes: 64 * 16, ..size(64, 0) };
    let mut kv = KvCache::new(SimulatedMemory::new(16, 64 * 16).unwrap(), layout, size).unwrap();
    let whole = kv.acquire(64).unwrap();
    assert_eq!(kv.memory().calls().create, 2);
    kv.release(whole);
    let small: Vec<_> = (0..30).map(|_| kv.acquire(1).unwrap()).collect();
    assert!(kv.is_consistent());
    assert_eq!(kv.stats().mapped_bytes, 30 * 16, "a page each, not an extent of 32");
    for slot in small {
        kv.release(slot);
    }
    let create = kv.memory().calls().create;
    let whole = kv.acquire(64).unwrap();
    assert_eq!(kv.stats().mapped_bytes, 64 * 16);
    assert!(kv.memory().calls().create - create <= 6, "not sixty single pages");
    assert!(kv.is_consistent());
    kv.release(whole);
}

#[test]
fn the_next_sequence_finds_its_pages_mapped_while_there_is_memory_to_spare() {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 4, bytes_per_element: 2 };
    let size = KvSize {
        max_model_len: 64,
        num_slots: 100,
        pool_bytes: 4000 * 16,
        shares_prefixes: true,
        ..size(20, 0)
    };
    let memory = SimulatedMemory::new(16, size.pool_bytes).unwrap();
    let memory = memory.with_costs(fused_virtual_memory::DriverCosts::h200());
    let mut kv = KvCache::new(memory, layout, size).unwrap();
    let blocked = |kv: &KvCache<SimulatedMemory>| kv.memory().spent() - kv.spent_ahead();
    for nth in 0..90 {
        let before = blocked(&kv);
        let slot = kv.acquire(32).unwrap();
        kv.computed(slot, &tokens(1000 * nth..1000 * nth + 32));
        if nth > 60 {
            assert!(
                blocked(&kv) - before < std::time::Duration::from_micros(70),
                "{:?}",
                blocked(&kv) - before
            );
        }
        for _ in 0..6 {
            kv.map_ahead([slot]).unwrap();
        }
        assert!(kv.is_consistent());
        kv.release(slot);
    }
    assert_eq!(kv.memory().calls().unmap, 0, "nobody has lost anything for it");
}

/// Memory of which a neighbour takes so many bytes, and gives them back.
fn with_neighbour(num_slots: usize, num_pages: usize) -> (KvCache<Faulty>, impl Fn(usize, bool)) {
    let size = size(num_slots, num_pages);
    let memory = Faulty::new(SimulatedMemory::new(PAGE, size.pool_bytes).unwrap());
    let kv = KvCache::new(memory, LAYOUT, size).unwrap();
    let memory = std::sync::Arc::clone(&kv.memory);
    let taken = std::sync::Mutex::new(Vec::new());
    let take = move |num_pages: usize, is_taken: bool| {
        let mut taken = taken.lock().unwrap();
        for _ in 0..num_pages {
            if is_taken {
                taken.push(memory.inner().create(PAGE).unwrap());
            } else {
                memory.inner().release(taken.pop().unwrap()).unwrap();
            }
        }
    };
    (kv, take)
}

#[test]
fn what_a_neighbour_takes_is_missing_from_the_pool_until_it_gives_it_back() {
    let (mut kv, take) = with_neighbour(3, 20);
    let [first, second, third] = [5, 5, 5].map(|num_tokens| kv.acquire(num_tokens).unwrap());
    assert_eq!(kv.stats().mapped_bytes, 6 * PAGE);
    take(9, true);
    // Five pages are left, in no extent of eight.
    kv.ensure(first, 16).unwrap();
    assert!(matches!(kv.ensure(second, 16), Err(Error::OutOfPages)), "and not a failure of memory");
    assert!(kv.is_consistent());
    assert_eq!(kv.stats().total_bytes, 11 * PAGE);
    kv.release(third);
    kv.ensure(second, 8).unwrap();
    assert_eq!(kv.stats().total_bytes, 11 * PAGE, "nothing has come back");
    // What comes back is found when slots are given back.
    take(9, false);
    for _ in 0..9 {
        let slot = kv.acquire(1).unwrap();
        kv.release(slot);
    }
    assert_eq!(kv.stats().total_bytes, 20 * PAGE);
    kv.ensure(second, 16).unwrap();
    assert!(kv.is_consistent());
}

#[test]
fn whoever_is_alone_tries_for_all_there_is() {
    let (mut kv, take) = with_neighbour(2, 16);
    take(12, true);
    let slot = kv.acquire(8).unwrap();
    assert!(matches!(kv.ensure(slot, 20), Err(Error::OutOfPages)));
    assert!(kv.stats().total_bytes < 16 * PAGE);
    take(12, false);
    kv.ensure(slot, 20).unwrap();
    kv.release(slot);
    take(8, true);
    assert!(kv.acquire(20).is_ok(), "it finds its pages where they were");
    assert!(kv.is_consistent());
}

#[test]
fn what_the_mapper_finds_missing_is_missing_from_the_pool() {
    let (mut kv, take) = with_neighbour(2, 12);
    let slots = [kv.acquire(2).unwrap(), kv.acquire(2).unwrap()];
    take(10, true);
    for slot in slots {
        kv.map_ahead([slot]).unwrap();
        kv.map_ahead([]).unwrap();
    }
    assert_eq!(kv.stats().total_bytes, 2 * PAGE);
    assert!(kv.is_consistent());
    assert!(matches!(kv.ensure(slots[0], 3), Err(Error::OutOfPages)));
}

/// Some systems say so when a page is mapped, not when it is created.
#[test]
fn no_memory_to_map_with_is_a_want_of_pages() {
    let memory = Faulty::new(SimulatedMemory::new(PAGE, 8 * PAGE).unwrap());
    let mut kv = KvCache::new(memory, LAYOUT, size(2, 8)).unwrap();
    let slot = kv.acquire(2).unwrap();
    kv.memory().lack_when(|call| matches!(call, faulty::Call::Map | faulty::Call::SetAccess));
    assert!(matches!(kv.ensure(slot, 4), Err(Error::OutOfPages)));
    assert!(kv.is_consistent());
    kv.memory().fail_when(|_| false);
    kv.ensure(slot, 4).unwrap();
}
