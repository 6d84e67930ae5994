//! Reads pickles without executing them.
//!
//! A pickle is a program for a small stack machine; unpickling runs it, and its `GLOBAL` and `REDUCE` call whatever
//! Python function it names. This reader understands the opcodes that AdaptiVocab's files are made of and builds plain
//! values; a class is a name from a list that the caller gives, an object is that name with its arguments beside
//! it, and nothing is ever called. Every other opcode and every other name is refused, by its name and place.
//!
//! Hostile input costs no more than honest input of its size:
//! - Text and bytes are borrowed from the input, so a declared length that is not there costs nothing.
//! - Values live in one arena and name each other by index: what the memo repeats is stored once, cycles are harmless,
//!   and nothing recurses, not even dropping.
//! - Values on the stack are counted ([`MAX_PUSHES`]), and the stack has a depth ([`MAX_STACK`]).
//!
//! Who walks the values must not follow shared ones again and again; see `super::tokens`.

mod class;
mod cursor;
mod machine;
mod opcode;
#[cfg(test)]
mod tests;
mod value;

pub(super) use class::Class;
pub(super) use machine::{read, read_first};
pub(super) use value::{Pickle, View};

/// The most values that a pickle may put on its stack. A vocabulary of 150,000 tokens takes 1.5 million.
const MAX_PUSHES: usize = 1 << 23;
/// The most values on the stack at once. Python's pickler flushes a list or dictionary every thousand items.
const MAX_STACK: usize = 1 << 16;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (byte {at})")]
pub(super) struct Refused {
    /// Where the opcode at fault begins.
    pub(super) at: usize,
    pub(super) problem: String,
}
