//! Random calls on a backend, each checked against a page table written in the plainest way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests, which the lints take for production code"
)]

mod model;

use std::fmt::Debug;
use std::sync::Arc;

use fused_virtual_memory::{Access, Error, HandleId, Pinned, RangeId, Span, VirtualMemory};
use model::Model;
use proptest::prelude::*;

const NUM_RANGES: usize = 3;
const RANGE_PAGES: usize = 4;
/// Bytes are drawn in parts of a page that are no divisor of one.
const PARTS: usize = 61;

/// What the harness asks of a backend beside the calls of `VirtualMemory`.
pub(crate) trait Backend: VirtualMemory + Sized {
    /// Whether several pins of one range may be held at once.
    const SHARED_PINS: bool;

    /// The bytes of the only span.
    fn read_pinned(&self, pinned: &Pinned<Self>, span: Span) -> Vec<u8>;

    /// Fills what the only span lets one write.
    fn fill_pinned(&self, pinned: &mut Pinned<Self>, span: Span, value: u8);

    /// Reads without a pin, where that is offered.
    fn read_anywhere(&self, range: RangeId, offset: usize, len: usize) -> Option<Result<Vec<u8>, Error>>;

    /// Writes without a pin, where that is offered.
    fn fill_anywhere(
        &self,
        range: RangeId,
        offset: usize,
        len: usize,
        value: u8,
    ) -> Option<Result<(), Error>>;

    /// Zeroes a new handle, where that is not done by itself.
    fn zero(&self, _handle: HandleId, _len: usize) {}
}

/// One call. Ranges and handles by number, offsets in pages or in parts of a page.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create {
        num_pages: usize,
    },
    Map {
        range: usize,
        page: usize,
        handle: usize,
    },
    /// Maps behind what is mapped from the range's beginning on, and gives access.
    Extend {
        range: usize,
        handle: usize,
        access: Access,
    },
    SetAccess {
        range: usize,
        page: usize,
        num_pages: usize,
        access: Access,
    },
    Unmap {
        range: usize,
        page: usize,
        num_pages: usize,
    },
    Release {
        handle: usize,
    },
    Free {
        range: usize,
    },
    /// Pins, reads, writes and lets go.
    Step {
        range: usize,
        parts: usize,
        writable_from: usize,
        value: u8,
    },
    Pin {
        range: usize,
        parts: usize,
        writable_from: usize,
    },
    /// Works on what is held.
    Use {
        range: usize,
        value: u8,
    },
    Unpin {
        range: usize,
    },
    Anywhere {
        range: usize,
        from: usize,
        parts: usize,
        value: u8,
    },
}

/// A sequence of calls that is neither mostly refused nor mostly allowed.
pub(crate) fn calls() -> impl Strategy<Value = Vec<Call>> {
    prop::collection::vec(call(), 1..200)
}

fn call() -> impl Strategy<Value = Call> {
    let range = 0..NUM_RANGES;
    // Mostly the beginning, because that is where pins begin.
    let page = prop_oneof![4 => Just(0usize), 3 => Just(1), 2 => Just(2), 1 => 0..RANGE_PAGES + 1];
    // Mostly one, so that spans often hit whole handles.
    let num_pages = prop_oneof![1 => Just(0usize), 12 => Just(1), 3 => Just(2), 1 => Just(3)];
    let handle = 0..6usize;
    let access = prop_oneof![1 => Just(Access::None), 4 => Just(Access::Read), 6 => Just(Access::ReadWrite)];
    let parts = prop_oneof![4 => 0..PARTS + 1, 2 => 0..2 * PARTS + 1, 1 => 0..RANGE_PAGES * PARTS + 2];
    prop_oneof![
        60 => num_pages.clone().prop_map(|num_pages| Call::Create { num_pages }),
        60 => (range.clone(), page.clone(), handle.clone())
            .prop_map(|(range, page, handle)| Call::Map { range, page, handle }),
        160 => (range.clone(), handle.clone(), access.clone())
            .prop_map(|(range, handle, access)| Call::Extend { range, handle, access }),
        100 => (range.clone(), page.clone(), num_pages.clone(), access)
            .prop_map(|(range, page, num_pages, access)| Call::SetAccess { range, page, num_pages, access }),
        30 => (range.clone(), page, num_pages)
            .prop_map(|(range, page, num_pages)| Call::Unmap { range, page, num_pages }),
        20 => handle.prop_map(|handle| Call::Release { handle }),
        2 => range.clone().prop_map(|range| Call::Free { range }),
        80 => (range.clone(), parts.clone(), parts.clone(), 1..=u8::MAX)
            .prop_map(|(range, parts, writable_from, value)| Call::Step { range, parts, writable_from, value }),
        30 => (range.clone(), parts.clone(), parts.clone())
            .prop_map(|(range, parts, writable_from)| Call::Pin { range, parts, writable_from }),
        30 => (range.clone(), 1..=u8::MAX).prop_map(|(range, value)| Call::Use { range, value }),
        20 => range.clone().prop_map(|range| Call::Unpin { range }),
        60 => (range, parts.clone(), parts, 1..=u8::MAX)
            .prop_map(|(range, from, parts, value)| Call::Anywhere { range, from, parts, value }),
    ]
}

/// Makes the calls on the memory and on a model of it, and compares: after every call whether it was allowed, wherever
/// something is read what it was, and at the end the content of every handle.
pub(crate) fn check<M: Backend + Debug>(memory: M, calls: &[Call]) {
    let mut pair = Pair::new(memory);
    for call in calls {
        pair.make(call);
    }
    pair.assert_same_contents();
}

/// The memory, the model, and how the model's numbers are called in the memory.
struct Pair<M: VirtualMemory> {
    memory: Arc<M>,
    model: Model,
    ranges: Vec<RangeId>,
    handles: Vec<HandleId>,
    held: Vec<Vec<(Pinned<M>, Span)>>,
}

impl<M: Backend + Debug> Pair<M> {
    fn new(memory: M) -> Self {
        let page_bytes = memory.page_bytes();
        let ranges = (0..NUM_RANGES).map(|_| memory.reserve(RANGE_PAGES * page_bytes).unwrap()).collect();
        Self {
            memory: Arc::new(memory),
            model: Model::new(page_bytes, NUM_RANGES, RANGE_PAGES, M::SHARED_PINS),
            ranges,
            handles: Vec::new(),
            held: (0..NUM_RANGES).map(|_| Vec::new()).collect(),
        }
    }

    fn make(&mut self, call: &Call) {
        let page_bytes = self.memory.page_bytes();
        let bytes = |parts: usize| parts * page_bytes / PARTS;
        let (memory, model) = (&self.memory, &mut self.model);
        let (outcome, expected) = match *call {
            Call::Create { num_pages } => {
                let created = memory.create(num_pages * page_bytes).map(|handle| {
                    memory.zero(handle, num_pages * page_bytes);
                    model.create(self.handles.len(), num_pages);
                    self.handles.push(handle);
                });
                (created, num_pages > 0)
            }
            Call::Map { range, page, handle } => {
                let Some(&id) = self.handles.get(handle) else { return };
                (memory.map(self.ranges[range], page * page_bytes, id), model.map(range, page, handle))
            }
            Call::Extend { range, handle, access } => {
                let Some(num_pages) = model.pages_of(handle) else { return };
                let page = model.first_unmapped(range);
                self.make(&Call::Map { range, page, handle });
                self.make(&Call::SetAccess { range, page, num_pages, access });
                return;
            }
            Call::SetAccess { range, page, num_pages, access } => (
                memory.set_access(self.ranges[range], page * page_bytes, num_pages * page_bytes, access),
                model.set_access(range, page, num_pages, access),
            ),
            Call::Unmap { range, page, num_pages } => (
                memory.unmap(self.ranges[range], page * page_bytes, num_pages * page_bytes),
                model.unmap(range, page, num_pages),
            ),
            Call::Release { handle } => {
                let Some(&id) = self.handles.get(handle) else { return };
                (memory.release(id), model.release(handle))
            }
            Call::Free { range } => (memory.free(self.ranges[range]), model.free(range)),
            Call::Step { range, parts, writable_from, value } => {
                let span = self.span(range, bytes(parts), bytes(writable_from));
                (self.step(range, span, value), self.model.may_pin(range, span.len, span.writable_from))
            }
            Call::Pin { range, parts, writable_from } => {
                let span = self.span(range, bytes(parts), bytes(writable_from));
                let pinned = Pinned::new(&self.memory, [span]);
                let expected = self.model.pin(range, span.len, span.writable_from);
                (pinned.map(|pinned| self.held[range].push((pinned, span))), expected)
            }
            Call::Use { range, value } => {
                let Some((pinned, span)) = self.held[range].last_mut() else { return };
                work(&**memory, pinned, model, range, *span, value);
                return;
            }
            Call::Unpin { range } => {
                self.held[range].pop();
                model.unpin(range);
                return;
            }
            Call::Anywhere { range, from, parts, value } => {
                let (id, offset, len) = (self.ranges[range], bytes(from), bytes(parts));
                let Some(read) = memory.read_anywhere(id, offset, len) else { return };
                assert_eq!(read.is_ok(), model.may_access(range, offset, len, Access::Read));
                if let Ok(read) = read {
                    assert!(read == model.read(range, offset, len));
                }
                let Some(filled) = memory.fill_anywhere(id, offset, len, value) else { return };
                let expected = model.may_access(range, offset, len, Access::ReadWrite);
                if expected {
                    model.fill(range, offset, len, value);
                }
                (filled, expected)
            }
        };
        match outcome {
            Ok(()) => assert!(expected, "{call:?} was allowed"),
            Err(Error::Illegal(error)) => assert!(!expected, "{call:?}: {error}"),
            Err(error) => panic!("{call:?}: {error:?}"),
        }
    }

    fn span(&self, range: usize, len: usize, writable_from: usize) -> Span {
        Span { range: self.ranges[range], len, writable_from }
    }

    fn step(&mut self, range: usize, span: Span, value: u8) -> Result<(), Error> {
        let mut pinned = Pinned::new(&self.memory, [span])?;
        work(&*self.memory, &mut pinned, &mut self.model, range, span, value);
        Ok(())
    }

    /// Every handle is looked at in a range of its own, since what the calls left may be readable nowhere.
    fn assert_same_contents(&mut self) {
        let page_bytes = self.memory.page_bytes();
        self.held.iter_mut().for_each(Vec::clear);
        for (range, page, num_pages) in self.model.mappings() {
            self.memory.unmap(self.ranges[range], page * page_bytes, num_pages * page_bytes).unwrap();
        }
        for (handle, content) in self.model.contents() {
            let len = content.len();
            let range = self.memory.reserve(len).unwrap();
            self.memory.map(range, 0, self.handles[handle]).unwrap();
            self.memory.set_access(range, 0, len, Access::Read).unwrap();
            let span = Span { range, len, writable_from: len };
            let pinned = Pinned::new(&self.memory, [span]).unwrap();
            assert!(self.memory.read_pinned(&pinned, span) == content, "handle {handle}");
        }
    }
}

/// Reads all of the span, then writes what may be written.
fn work<M: Backend>(
    memory: &M,
    pinned: &mut Pinned<M>,
    model: &mut Model,
    range: usize,
    span: Span,
    value: u8,
) {
    assert!(memory.read_pinned(pinned, span) == model.read(range, 0, span.len));
    memory.fill_pinned(pinned, span, value);
    let from = span.writable_from.min(span.len);
    model.fill(range, from, span.len - from, value);
}
