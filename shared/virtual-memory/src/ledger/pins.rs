//! What a running step works on, and what may not happen to it meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Ledger;
use crate::error::IllegalUse;
use crate::{Access, PinToken, RangeId, Result, Span};

/// How many steps may hold the same range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// One at a time, because it gets exclusive references from its pin.
    Exclusive,
    /// Several at once: the device orders what they do.
    Counted,
}

#[derive(Debug)]
pub(super) struct Pin {
    id: u64,
    len: usize,
    writable_from: usize,
}

/// Counted for the whole process, so that a token ends no pin of another memory.
static NEXT_PIN: AtomicU64 = AtomicU64::new(0);

impl<R, H> Ledger<R, H> {
    /// From now on ranges are held like this.
    pub(crate) fn share(&mut self, sharing: Sharing) {
        self.sharing = sharing;
    }

    pub(crate) fn pin(&mut self, span: Span) -> Result<PinToken> {
        let Span { range: range_id, len, writable_from } = span;
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
        if self.sharing == Sharing::Exclusive && !range.pins.is_empty() {
            return Err(IllegalUse::AlreadyPinned(range_id).into());
        }
        if !range.reach.allows(len, writable_from) {
            range.walk(0, len, Access::Read, |_, _, _| {})?;
            if writable_from < len {
                range.walk(writable_from, len - writable_from, Access::ReadWrite, |_, _, _| {})?;
            }
        }
        let id = NEXT_PIN.fetch_add(1, Ordering::Relaxed);
        range.pins.push(Pin { id, len, writable_from });
        Ok(PinToken { range: range_id, id })
    }

    pub(crate) fn unpin(&mut self, token: &PinToken) {
        if let Some(range) = self.ranges.get_mut(&token.range) {
            range.pins.retain(|pin| pin.id != token.id);
        }
    }

    /// Whether the steps that hold the mapping leave it this access.
    pub(super) fn check_pins(&self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        let pins = self.ranges.get(&range).map_or(&[][..], |range| &range.pins);
        if pins.iter().any(|pin| access < pin.needs(offset, len)) {
            return Err(IllegalUse::Pinned { offset }.into());
        }
        Ok(())
    }
}

impl Pin {
    /// The access that a mapping there must keep.
    fn needs(&self, offset: usize, len: usize) -> Access {
        if offset >= self.len {
            Access::None
        } else if self.writable_from.max(offset) < self.len.min(offset + len) {
            Access::ReadWrite
        } else {
            Access::Read
        }
    }
}
