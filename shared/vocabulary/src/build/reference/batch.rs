use std::ops::Range;

use super::Documents;
use crate::{Result, TokenId};

/// Tokens that are read before they are counted, so that cores share the counting; a longer document is one batch.
const BATCH_TOKENS: usize = 1 << 18;
/// Tokens that one core takes at a time.
const CHUNK_TOKENS: usize = 1 << 14;

/// Some documents, whole and in order.
#[derive(Default)]
pub(super) struct Batch {
    tokens: Vec<TokenId>,
    /// Where each document ends.
    ends: Vec<usize>,
    /// The first document's place among all.
    first_document: u32,
}

/// A run of places of one document. What is counted there may reach beyond both ends, within the document.
#[derive(Clone)]
pub(super) struct Chunk<'a> {
    /// The document's place among all.
    pub(super) document: u32,
    /// All of the document.
    pub(super) tokens: &'a [TokenId],
    pub(super) places: Range<usize>,
}

/// Reads all documents once, in batches.
pub(super) fn for_each(documents: &dyn Documents, mut count: impl FnMut(&Batch) -> Result<()>) -> Result<()> {
    let mut batch = Batch::default();
    documents.for_each(&mut |tokens| {
        batch.tokens.extend_from_slice(tokens);
        batch.ends.push(batch.tokens.len());
        if batch.tokens.len() >= BATCH_TOKENS {
            count(&batch)?;
            batch.first_document = batch.first_document.saturating_add(batch.ends.len() as u32);
            batch.tokens.clear();
            batch.ends.clear();
        }
        Ok(())
    })?;
    count(&batch)
}

impl Batch {
    /// The batch in pieces for the cores, in order.
    pub(super) fn chunks(&self) -> Vec<Chunk<'_>> {
        let mut chunks = Vec::new();
        let mut start = 0;
        for (document, end) in (self.first_document..).zip(&self.ends) {
            let tokens = &self.tokens[start..*end];
            let chunk =
                |first| Chunk { document, tokens, places: first..tokens.len().min(first + CHUNK_TOKENS) };
            chunks.extend((0..tokens.len()).step_by(CHUNK_TOKENS).map(chunk));
            start = *end;
        }
        chunks
    }
}
