use std::ops::Range;

use crate::build::observer::{Observer, go_on};
use crate::build::spool::Spool;
use crate::{Result, TokenId};

/// Tokens that one core takes at a time. Tests cut everywhere, for what is counted must not depend on the cuts.
const PIECE_TOKENS: usize = if cfg!(test) { 50 } else { 1 << 14 };
/// Pieces that are counted together: what they yield is held until all are done.
const GROUP_PIECES: usize = 16;

/// A run of places of one document. What is counted there may reach beyond both ends, within the document.
pub(super) struct Piece<'a> {
    /// The document's place among all.
    pub(super) document: u32,
    /// All of the document.
    pub(super) tokens: &'a [TokenId],
    pub(super) places: Range<usize>,
}

/// Reads the corpus once, in groups of pieces, in order.
pub(super) fn for_each_group(
    spool: &Spool,
    observer: &dyn Observer,
    mut count: impl FnMut(&[Piece<'_>]),
) -> Result<()> {
    let mut num_documents = 0_u32;
    spool.for_each_chunk(|chunk| {
        let mut pieces = Vec::new();
        for tokens in chunk.documents() {
            let end = |start: usize| tokens.len().min(start + PIECE_TOKENS);
            let starts = (0..tokens.len()).step_by(PIECE_TOKENS);
            pieces.extend(starts.map(|start| Piece {
                document: num_documents,
                tokens,
                places: start..end(start),
            }));
            num_documents = num_documents.saturating_add(1);
        }
        pieces.chunks(GROUP_PIECES).try_for_each(|group| {
            go_on(observer)?;
            count(group);
            Ok(())
        })
    })
}
