//! Anything in any order, with every byte looked at.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::prefixes::Machine;
use super::*;

const MAX_MODEL_LEN: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Call {
    /// A prompt of one of few families, which begin alike, with so many tokens in common and so many of its own.
    Admit {
        family: u32,
        num_common: usize,
        num_own: usize,
        is_salted: bool,
        is_arriving: bool,
        reuses: bool,
        /// Tokens that it may grow by without asking for memory.
        num_spare: usize,
    },
    Compute {
        nth: usize,
        num_tokens: usize,
    },
    Grow {
        nth: usize,
        num_tokens: usize,
    },
    Release {
        nth: usize,
    },
    /// What is known beyond what was at admission is told.
    Announce {
        nth: usize,
    },
    MapAhead,
    Copy,
    /// A neighbour takes the memory that is left, or gives it back.
    Lack {
        is_lacking: bool,
    },
    /// After so many calls of the driver, some of them fail.
    Break {
        after: usize,
        num_faults: usize,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let nth = 0..8usize;
    prop_oneof![
        4 => admit(),
        6 => (nth.clone(), 1..60usize).prop_map(|(nth, num_tokens)| Call::Compute { nth, num_tokens }),
        4 => (nth.clone(), 1..20usize).prop_map(|(nth, num_tokens)| Call::Grow { nth, num_tokens }),
        2 => nth.clone().prop_map(|nth| Call::Release { nth }),
        2 => nth.prop_map(|nth| Call::Announce { nth }),
        2 => Just(Call::MapAhead),
        3 => Just(Call::Copy),
        1 => prop::bool::ANY.prop_map(|is_lacking| Call::Lack { is_lacking }),
        1 => (0..12usize, 1..4usize).prop_map(|(after, num_faults)| Call::Break { after, num_faults }),
    ]
}

fn admit() -> impl Strategy<Value = Call> {
    let bits = (prop::bool::weighted(0.2), prop::bool::weighted(0.2), prop::bool::weighted(0.9));
    let num_spare = prop_oneof![3 => Just(0), 1 => 0..50usize];
    (0..3u32, 0..90usize, 1..60usize, bits, num_spare).prop_map(
        |(family, num_common, num_own, (is_salted, is_arriving, reuses), num_spare)| Call::Admit {
            family,
            num_common,
            num_own,
            is_salted,
            is_arriving,
            reuses,
            num_spare,
        },
    )
}

struct Life {
    slot: SlotId,
    tokens: Vec<TokenId>,
    num_computed: usize,
}

/// What is the same for all calls.
#[derive(Clone, Copy, Debug)]
struct Shape {
    num_sequences: usize,
    num_spare_slots: usize,
    num_pages: usize,
    has_faults: bool,
    has_mapper: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let (has_faults, has_mapper) = (prop::bool::weighted(0.5), prop::bool::weighted(0.1));
    (1..6usize, 0..6usize, 76..200usize, has_faults, has_mapper).prop_map(
        |(num_sequences, num_spare_slots, num_pages, has_faults, has_mapper)| Shape {
            num_sequences,
            num_spare_slots,
            num_pages,
            has_faults,
            has_mapper,
        },
    )
}

/// A machine, what should be in it, and a counter for tokens that nobody else has.
struct World {
    shape: Shape,
    machine: Machine,
    lives: Vec<Life>,
    next_token: u32,
    is_lacking: bool,
}

impl World {
    fn new(shape: Shape) -> Self {
        let Shape { num_sequences, num_spare_slots, num_pages, has_mapper, .. } = shape;
        let mut machine = Machine::new(num_sequences, num_sequences + num_spare_slots, num_pages);
        if has_mapper {
            machine.kv.start_mapper().unwrap();
        }
        Self { shape, machine, lives: Vec::new(), next_token: 1 << 20, is_lacking: false }
    }

    fn own(&mut self, num_tokens: usize) -> impl Iterator<Item = TokenId> + use<> {
        let first = self.next_token;
        self.next_token += u32::try_from(num_tokens).unwrap();
        (first..self.next_token).map(TokenId)
    }

    fn call(&mut self, call: Call) {
        let num_faults = self.machine.kv.memory().num_faults();
        let error = self.try_call(call);
        // A mapper's thread may have met with the fault before.
        let may_fail = self.shape.has_mapper || self.machine.kv.memory().num_faults() > num_faults;
        match error {
            Some(Error::OutOfPages) | None => {}
            Some(Error::Memory(MemoryError::System { call: "faulty", .. })) if may_fail => {}
            Some(error) => panic!("{error:?}"),
        }
        self.check();
    }

    fn try_call(&mut self, call: Call) -> Option<Error> {
        match call {
            Call::Admit { family, num_common, num_own, is_salted, is_arriving, reuses, num_spare } => {
                let common = (0..).map(|idx| TokenId(family << 10 | idx)).take(num_common);
                let own = self.own(num_own);
                let tokens: Vec<_> = common.chain(own).collect();
                let kv = &mut self.machine.kv;
                let nobody_is_in_the_way =
                    self.lives.is_empty() && !kv.has_copies() && !is_arriving && !self.is_lacking;
                let salt = is_salted.then_some("salt");
                let num_reserved = tokens.len() + num_spare;
                match kv.admit(&Candidate {
                    tokens: &tokens,
                    is_arriving,
                    salt,
                    reuses,
                    num_reserved,
                    is_ahead: false,
                }) {
                    Admission::Admitted { slot, num_cached } => {
                        assert!(self.lives.iter().all(|life| life.slot != slot));
                        assert!(num_cached < tokens.len() && (reuses || num_cached == 0));
                        self.lives.push(Life { slot, tokens, num_computed: num_cached });
                    }
                    Admission::Failed(error) => return Some(error),
                    other => assert!(!nobody_is_in_the_way, "{other:?} although nobody runs"),
                }
            }
            Call::Compute { nth, num_tokens } if !self.lives.is_empty() => {
                // As before a step: what is to be copied is.
                self.machine.copy();
                let num_lives = self.lives.len();
                let life = &mut self.lives[nth % num_lives];
                let end = (life.num_computed + num_tokens).min(life.tokens.len());
                if end > life.num_computed {
                    self.machine.compute(life.slot, life.num_computed, &life.tokens[..end]);
                    life.num_computed = end;
                }
            }
            Call::Grow { nth, num_tokens } if !self.lives.is_empty() => {
                let nth = nth % self.lives.len();
                let num_tokens = (self.lives[nth].tokens.len() + num_tokens).min(MAX_MODEL_LEN);
                let grown = self.machine.kv.ensure(self.lives[nth].slot, num_tokens);
                match grown {
                    Ok(()) => {
                        let more = self.own(num_tokens - self.lives[nth].tokens.len());
                        self.lives[nth].tokens.extend(more);
                    }
                    Err(error) => return Some(error),
                }
            }
            Call::Release { nth } if !self.lives.is_empty() => {
                let life = self.lives.swap_remove(nth % self.lives.len());
                assert!(self.machine.kv.release(life.slot) > 0);
            }
            Call::Announce { nth } if !self.lives.is_empty() => {
                let life = &self.lives[nth % self.lives.len()];
                self.machine.kv.announce(life.slot, &life.tokens);
            }
            Call::MapAhead => {
                self.machine.kv.map_ahead(self.lives.iter().map(|life| life.slot)).unwrap();
            }
            Call::Copy => {
                self.machine.copy();
            }
            Call::Lack { is_lacking } if self.shape.has_faults => {
                let lacks: fn(faulty::Call) -> bool = |call| call == faulty::Call::Create;
                self.machine.kv.memory().lack_when(if is_lacking { lacks } else { |_| false });
                self.is_lacking = is_lacking;
            }
            Call::Break { after, num_faults } if self.shape.has_faults => {
                self.is_lacking = false;
                self.machine.kv.memory().fail_after(after, num_faults);
            }
            Call::Compute { .. }
            | Call::Grow { .. }
            | Call::Release { .. }
            | Call::Announce { .. }
            | Call::Lack { .. }
            | Call::Break { .. } => {}
        }
        None
    }

    /// When all is over, all memory is there for others, and does what it should.
    fn end(mut self) {
        self.machine.kv.memory().fail_when(|_| false);
        self.machine.copy();
        for life in std::mem::take(&mut self.lives) {
            self.machine.kv.release(life.slot);
        }
        let slot_pages = (MAX_MODEL_LEN * 12).div_ceil(32);
        for nth in 0..self.shape.num_sequences {
            let tokens: Vec<_> = self.own(MAX_MODEL_LEN).collect();
            let has_room = (nth + 1) * slot_pages + nth <= self.shape.num_pages;
            match self.machine.admit(&tokens, None) {
                Admission::Admitted { slot, num_cached: 0 } => {
                    self.machine.compute(slot, 0, &tokens);
                    self.lives.push(Life { slot, tokens, num_computed: MAX_MODEL_LEN });
                }
                Admission::NoRoom if !has_room => {}
                other => panic!("{other:?}"),
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let kv = &self.machine.kv;
        assert!(kv.is_consistent());
        let stats = kv.stats();
        assert_eq!(stats.live_slots, self.lives.len());
        assert_eq!(stats.mapped_bytes + stats.parked_bytes + stats.free_bytes, stats.total_bytes);
        if !kv.has_copies() {
            for life in &self.lives {
                self.machine.assert_holds(life.slot, &life.tokens[..life.num_computed]);
            }
        }
    }
}

/// Calls that one life of the machine gets. Nothing that a fault needs is further back.
const NUM_CALLS: usize = 250;

/// 40,000 calls in every run of the tests; as many as `FUSED_RANDOM_CALLS` says where it is set.
#[test]
fn every_sequence_keeps_its_bytes_whatever_happens_to_the_others() {
    let wanted = std::env::var("FUSED_RANDOM_CALLS").ok().and_then(|text| text.parse().ok());
    let num_cases = wanted.unwrap_or(40_000usize).div_ceil(NUM_CALLS);
    let config = Config { cases: u32::try_from(num_cases).unwrap(), ..Config::default() };
    // The same calls in every run: a failure is one for everybody.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let calls = prop::collection::vec(call(), NUM_CALLS);
    let result = runner.run(&(shape(), calls), |(shape, calls)| {
        let mut world = World::new(shape);
        calls.into_iter().for_each(|call| world.call(call));
        world.end();
        Ok(())
    });
    result.unwrap();
}
