//! Random calls on [`SimulatedMemory`] with contents against a page table.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]

mod against_model;

use against_model::{Backend, calls, check};
use fused_virtual_memory::{Error, Pinned, RangeId, SimulatedMemory, Span};
use proptest::prelude::*;

/// No multiple of anything, since nothing need be mapped.
const PAGE: usize = 97;

impl Backend for SimulatedMemory {
    const SHARED_PINS: bool = false;

    fn read_pinned(&self, _: &Pinned<Self>, span: Span) -> Vec<u8> {
        self.read_anywhere(span.range, 0, span.len).unwrap().unwrap()
    }

    fn fill_pinned(&self, _: &mut Pinned<Self>, span: Span, value: u8) {
        let from = span.writable_from.min(span.len);
        self.write(span.range, from, &vec![value; span.len - from]).unwrap();
    }

    fn read_anywhere(&self, range: RangeId, offset: usize, len: usize) -> Option<Result<Vec<u8>, Error>> {
        let mut bytes = vec![0xAA; len];
        Some(self.read(range, offset, &mut bytes).map(|()| bytes))
    }

    fn fill_anywhere(
        &self,
        range: RangeId,
        offset: usize,
        len: usize,
        value: u8,
    ) -> Option<Result<(), Error>> {
        Some(self.write(range, offset, &vec![value; len]))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn every_call_does_what_a_page_table_says(calls in calls()) {
        check(SimulatedMemory::with_contents(PAGE, 1024 * PAGE).unwrap(), &calls);
    }
}
