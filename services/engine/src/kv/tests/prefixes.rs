//! Prefix sharing, with the bytes: a page in the wrong place shows as another token.

use super::*;

/// 12 bytes a token and 32 a page: a token straddles pages.
const LAYOUT: KvLayout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 3, bytes_per_element: 2 };
const PAGE: usize = 32;
const MAX_MODEL_LEN: usize = 200;

/// A cache, and somebody who computes on it: a token's keys and values are the token, three times.
pub(super) struct Machine {
    pub(super) kv: KvCache<Faulty>,
}

impl Machine {
    pub(super) fn new(num_sequences: usize, num_slots: usize, num_pages: usize) -> Self {
        let pool_bytes = num_pages * PAGE;
        let size = KvSize {
            num_sequences,
            num_slots,
            max_model_len: MAX_MODEL_LEN,
            pool_bytes,
            shares_prefixes: true,
        };
        let memory = Faulty::new(SimulatedMemory::with_contents(PAGE, pool_bytes).unwrap());
        Self { kv: KvCache::new(memory, LAYOUT, size).unwrap() }
    }

    pub(super) fn admit(&mut self, tokens: &[TokenId], salt: Option<&str>) -> Admission {
        let candidate = Candidate {
            tokens,
            is_arriving: false,
            salt,
            reuses: true,
            num_reserved: tokens.len(),
            is_ahead: false,
        };
        self.kv.admit(&candidate)
    }

    /// Admits a prompt; its slot, and how much of it is there.
    fn start(&mut self, prompt: &[TokenId]) -> (SlotId, usize) {
        match self.admit(prompt, None) {
            Admission::Admitted { slot, num_cached } => (slot, num_cached),
            other => panic!("{other:?}"),
        }
    }

    /// Carries out what is to be copied.
    pub(super) fn copy(&mut self) -> usize {
        let copies = self.kv.take_copies();
        for copy in &copies {
            let _pinned = self.kv.pin_copy(copy).unwrap();
            let mut bytes = vec![0; copy.bytes.len()];
            self.kv.memory().inner().read(self.kv.range(copy.from), copy.bytes.start, &mut bytes).unwrap();
            self.kv.memory().inner().write(self.kv.range(copy.to), copy.bytes.start, &bytes).unwrap();
        }
        copies.len()
    }

    /// Computes the tokens of a slot behind the first `num_computed`.
    pub(super) fn compute(&mut self, slot: SlotId, num_computed: usize, tokens: &[TokenId]) {
        let rest = &tokens[num_computed..];
        let slot_use = SlotUse { slot, context_len: num_computed, num_tokens: rest.len() };
        let _pinned = self.kv.pin([slot_use]).unwrap();
        let range = self.kv.range_of(slot, tokens.len()).unwrap();
        for (token, position) in rest.iter().zip(num_computed..) {
            let bytes = [token.0.to_le_bytes(); 3].concat();
            self.kv.memory().inner().write(range, position * LAYOUT.token_bytes(), &bytes).unwrap();
        }
        self.kv.computed(slot, rest);
    }

    /// Checks that a slot holds these tokens and no others.
    pub(super) fn assert_holds(&self, slot: SlotId, tokens: &[TokenId]) {
        let mut bytes = vec![0; tokens.len() * LAYOUT.token_bytes()];
        self.kv.memory().inner().read(self.kv.range(slot), 0, &mut bytes).unwrap();
        for (position, (bytes, token)) in bytes.chunks(LAYOUT.token_bytes()).zip(tokens).enumerate() {
            assert_eq!(bytes, [token.0.to_le_bytes(); 3].concat(), "position {position} of {slot:?}");
        }
        assert!(self.kv.is_consistent());
    }

    /// Admits a prompt, computes what is missing, and looks at all of it. Returns its slot and how much of it was there.
    fn run(&mut self, prompt: &[TokenId]) -> (SlotId, usize) {
        let (slot, num_cached) = self.start(prompt);
        self.copy();
        self.compute(slot, num_cached, prompt);
        self.assert_holds(slot, prompt);
        (slot, num_cached)
    }

    fn mapped_pages(&self) -> usize {
        self.kv.stats().mapped_bytes / PAGE
    }
}

/// 100 tokens that all have, and `num_own` more.
fn prompt(own: u32, num_own: u32) -> Vec<TokenId> {
    tokens((0..100).chain((0..num_own).map(|idx| 1000 * own + idx)))
}

#[test]
fn a_prompt_goes_on_in_the_slot_that_has_its_beginning() {
    let mut machine = Machine::new(4, 8, 400);
    let first = prompt(1, 10);
    let (slot, _) = machine.run(&first);
    machine.kv.release(slot);
    let (calls, mut next) = (machine.kv.num_driver_calls(), first.clone());
    assert_eq!(machine.run(&first), (slot, 109), "all but the last, which the next token is drawn from");
    assert_eq!(machine.kv.num_driver_calls(), calls);
    machine.kv.release(slot);
    next.extend(tokens(5000..5010));
    assert_eq!(machine.run(&next), (slot, 110));
}

#[test]
fn pages_of_a_running_sequence_are_shared_and_held_once() {
    let mut machine = Machine::new(32, 64, 2500);
    let (first, _) = machine.run(&prompt(0, 12));
    let alone = machine.mapped_pages();
    assert_eq!(alone, 42, "112 tokens of 12 bytes");
    let mut slots = vec![(first, prompt(0, 12))];
    for own in 1..32 {
        let (slot, num_cached) = machine.run(&prompt(own, 12));
        assert_eq!(num_cached, 100);
        slots.push((slot, prompt(own, 12)));
    }
    // The first one's extents are of 32, 8 and 2 pages: the second shares 32 of the 37 whole pages of the prefix and has the
    // rest copied, and from then on its extents are cut where the prefix ends, so that the others share those.
    let shared_pages = 37;
    assert!(machine.mapped_pages() <= alone + 31 * (42 - shared_pages) + 10, "{}", machine.mapped_pages());
    for (slot, prompt) in &slots {
        machine.assert_holds(*slot, prompt);
    }
    // Who was there first may go, and the others keep what they need.
    machine.kv.release(first);
    for (slot, prompt) in &mut slots[1..] {
        prompt.extend(tokens(7000..7080));
        machine.kv.ensure(*slot, 192).unwrap();
        machine.compute(*slot, 112, prompt);
    }
    for (slot, prompt) in &slots[1..] {
        machine.assert_holds(*slot, prompt);
        machine.kv.release(*slot);
    }
    assert_eq!(machine.mapped_pages(), 0);
}

#[test]
fn a_prefix_outlives_its_sequence_until_its_pages_are_needed() {
    let mut machine = Machine::new(2, 8, 80);
    let (slot, _) = machine.run(&prompt(1, 90));
    machine.kv.release(slot);
    let (other, num_cached) = machine.run(&prompt(2, 2));
    assert_eq!(num_cached, 100);
    assert_eq!(machine.start(&tokens(9000..9010)).1, 0);
    machine.kv.ensure(other, 190).unwrap();
    machine.assert_holds(other, &prompt(2, 2));
    assert!(machine.kv.stats().parked_bytes < 10 * PAGE, "the longer tail of the first is gone");
}

#[test]
fn a_short_prefix_is_copied_and_not_shared() {
    let mut machine = Machine::new(4, 8, 400);
    let (_, _) = machine.run(&tokens(0..20));
    let prompt = tokens((0..18).chain(500..520));
    let (slot, num_cached) = machine.start(&prompt);
    assert_eq!((num_cached, machine.copy()), (18, 1));
    machine.compute(slot, 18, &prompt);
    machine.assert_holds(slot, &prompt);
    assert_eq!(machine.mapped_pages(), 8 + 15);
}

#[test]
fn another_salt_is_another_prompt() {
    let mut machine = Machine::new(4, 8, 400);
    let prompt = prompt(1, 5);
    let cached = |machine: &Machine, salt| {
        let candidate = Candidate {
            tokens: &prompt,
            is_arriving: false,
            salt,
            reuses: true,
            num_reserved: prompt.len(),
            is_ahead: false,
        };
        machine.kv.num_cached(&candidate)
    };
    for salt in [None, Some("a"), Some("b")] {
        assert_eq!(cached(&machine, salt), 0);
        let Admission::Admitted { slot, num_cached: 0 } = machine.admit(&prompt, salt) else { panic!() };
        machine.compute(slot, 0, &prompt);
        machine.kv.release(slot);
        assert_eq!(cached(&machine, salt), 104);
    }
}

#[test]
fn pages_that_a_step_in_flight_reads_are_made_read_only_when_none_is() {
    let mut machine = Machine::new(4, 8, 400);
    let (first, second) = (prompt(1, 10), prompt(2, 10));
    let (slot, _) = machine.run(&first);
    let ahead = |tokens| Candidate {
        tokens,
        is_arriving: false,
        salt: None,
        reuses: true,
        num_reserved: 110,
        is_ahead: true,
    };
    assert!(matches!(machine.kv.admit(&ahead(&second)), Admission::NotNow));
    let (_, num_cached) = machine.run(&second);
    assert_eq!(num_cached, 100);
    machine.assert_holds(slot, &first);
}

#[test]
fn a_prompt_waits_for_few_tokens_where_it_can_share_many_pages_then() {
    let mut machine = Machine::new(4, 8, 400);
    let (first, second) = (prompt(1, 0), tokens((0..95).chain(5000..5010)));
    let (slot, _) = machine.run(&first[..70]);
    let cached = |machine: &Machine| {
        let candidate = Candidate {
            tokens: &second,
            is_arriving: false,
            salt: None,
            reuses: true,
            num_reserved: 0,
            is_ahead: false,
        };
        machine.kv.num_cached(&candidate)
    };
    assert_eq!(cached(&machine), 70);
    // The rest of the first one's prompt has arrived.
    machine.kv.announce(slot, &first);
    machine.kv.ensure(slot, 100).unwrap();
    assert_eq!(cached(&machine), 95);
    let Admission::Coming(coming) = machine.admit(&second, None) else { panic!() };
    machine.compute(slot, 70, &first);
    assert!(!machine.kv.is_coming(&coming));
    let alone = machine.mapped_pages();
    assert_eq!(machine.run(&second).1, 95);
    // 105 tokens take 40 pages; 35 whole ones are the first one's.
    assert_eq!(machine.mapped_pages(), alone + 5);
    machine.assert_holds(slot, &first);
}

#[test]
fn a_prompt_waits_for_the_sequence_that_computes_its_beginning() {
    let mut machine = Machine::new(4, 8, 400);
    let (first, second) = (prompt(1, 10), prompt(2, 10));
    let (slot, _) = machine.start(&first);
    let Admission::Coming(coming) = machine.admit(&second, None) else { panic!() };
    assert!(machine.kv.is_coming(&coming));
    machine.compute(slot, 0, &first[..60]);
    assert!(machine.kv.is_coming(&coming));
    machine.compute(slot, 60, &first);
    assert!(!machine.kv.is_coming(&coming));
    assert_eq!(machine.run(&second).1, 100);
    // Where it ends before, nobody waits.
    let (slot, _) = machine.start(&tokens(3000..3100));
    let Admission::Coming(coming) = machine.admit(&tokens(3000..3101), None) else { panic!() };
    machine.kv.release(slot);
    assert!(!machine.kv.is_coming(&coming));
    assert_eq!(machine.run(&tokens(3000..3101)).1, 0);
}

#[test]
fn of_an_arriving_prompt_nothing_is_done_that_is_there() {
    let mut machine = Machine::new(4, 8, 400);
    let (slot, _) = machine.run(&prompt(1, 10));
    machine.kv.release(slot);
    let tokens = prompt(1, 10);
    let arriving = |tokens| Candidate {
        tokens,
        is_arriving: true,
        salt: None,
        reuses: true,
        num_reserved: 0,
        is_ahead: false,
    };
    assert!(matches!(machine.kv.admit(&arriving(&tokens[..64])), Admission::AllIsThere));
    let mut other = tokens[..64].to_vec();
    other.extend(self::tokens(800..840));
    assert!(matches!(machine.kv.admit(&arriving(&other)), Admission::Admitted { num_cached: 64, .. }));
}

#[test]
fn what_is_about_to_be_copied_stays_where_it_is() {
    // So little memory that the one who asks next would take the pages of the one longest out of use.
    let mut machine = Machine::new(3, 6, 110);
    let long = tokens((0..80).chain(2000..2110));
    let (slot, _) = machine.run(&long);
    machine.kv.release(slot);
    let prompt = tokens((0..80).chain(3000..3004));
    let (second, num_cached) = machine.start(&prompt);
    assert!(num_cached == 80 && machine.kv.has_copies());
    assert!(matches!(machine.admit(&tokens(5000..5050), None), Admission::NoRoom));
    machine.copy();
    let (third, _) = machine.start(&tokens(5000..5050));
    machine.compute(third, 0, &tokens(5000..5050));
    machine.compute(second, 80, &prompt);
    machine.assert_holds(second, &prompt);
    machine.assert_holds(third, &tokens(5000..5050));
}

#[test]
fn the_only_slot_is_taken_although_others_may_want_what_is_in_it() {
    let mut machine = Machine::new(1, 1, 100);
    let (slot, _) = machine.run(&prompt(1, 90));
    machine.kv.release(slot);
    assert_eq!(machine.run(&tokens((0..50).chain(9000..9010))), (slot, 0));
}

#[test]
fn a_slot_with_shared_pages_is_adopted_without_them() {
    let mut machine = Machine::new(2, 2, 200);
    let (first, _) = machine.run(&prompt(1, 10));
    let (second, _) = machine.run(&prompt(2, 10));
    machine.kv.release(second);
    let other = tokens(5000..5110);
    assert_eq!(machine.run(&other), (second, 0));
    machine.assert_holds(first, &prompt(1, 10));
}
