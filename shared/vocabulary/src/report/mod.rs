//! What a patch vocabulary does to a text: the figures behind `fused vocab report`.
//!
//! Documents go in, one at a time and in one pass; a [`Report`] comes out. What is held meanwhile does not grow with
//! the text: one batch of documents, a count for each token, and what `savings` and `example` keep.
//!
//! The figures add up. Removed base tokens become longer (`num_extra_tokens`), then n-tokens make the text shorter
//! (`num_saved_tokens`): `num_base_tokens + extra - saved = num_tokens`.

mod example;
mod figures;
mod savings;
mod tally;

pub use example::{Example, Piece};
pub use figures::{LengthFigures, NTokenFigures, RemovedFigures, RemovedTokenFigures, VocabularyFigures};
pub use savings::{DocumentFigures, Quartiles, Savings};

use rayon::prelude::*;
use serde::Serialize;

use crate::{Error, PatchVocabulary, Result, SpecialTokens, TokenId, Vocabulary};
use tally::Tally;

/// A batch is encoded in parallel when it has this many bytes; a single document may be larger.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Or this many documents: short ones cost more than their bytes.
const MAX_BATCH_DOCUMENTS: usize = 4096;

/// A base tokenizer without and with its patch vocabulary.
pub struct Comparison {
    base: Vocabulary,
    adapted: Vocabulary,
    patch: PatchVocabulary,
}

/// What a patch vocabulary does to a text.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured.
    pub vocabulary: VocabularyFigures,
    /// Documents of the text.
    pub num_documents: u64,
    /// Bytes of these documents, without what divides them.
    pub num_bytes: u64,
    /// Tokens of the base vocabulary.
    pub num_base_tokens: u64,
    /// Tokens of the adapted vocabulary.
    pub num_tokens: u64,
    /// Which part of the base tokens goes away: `1 - num_tokens / num_base_tokens`. Negative if the text grows.
    pub saved_share: f64,
    /// What n-tokens save, all together.
    pub num_saved_tokens: u64,
    /// N-tokens by the number of base tokens that they stand for: from 2 to the longest, without gaps.
    pub lengths: Vec<LengthFigures>,
    /// The n-tokens that the text uses, those that save the most first.
    pub n_tokens: Vec<NTokenFigures>,
    /// The removed base tokens.
    pub removed: RemovedFigures,
    /// How the savings differ between documents.
    pub savings: Savings,
    /// A piece of text before and after; none if the text has no such document.
    pub example: Option<Example>,
}

/// A document in both vocabularies.
struct Measured<'a> {
    text: &'a str,
    base_ids: Vec<TokenId>,
    ids: Vec<TokenId>,
}

impl Comparison {
    /// Loads a `tokenizer.json` and a patch vocabulary made for it.
    ///
    /// # Errors
    /// Those of [`Vocabulary::load`].
    pub fn load(tokenizer_json: &[u8], patch: PatchVocabulary) -> Result<Self> {
        let adapted = Vocabulary::load(tokenizer_json, Some(patch.clone()))?;
        Ok(Self { base: Vocabulary::load(tokenizer_json, None)?, adapted, patch })
    }

    /// Measures a text. The example is taken from the document with the number `example`, counted from 1, or from one
    /// whose saving is near the median.
    ///
    /// # Errors
    /// The first error among the documents, or [`Error::Encode`].
    pub fn measure<D, E>(
        &self,
        documents: impl IntoIterator<Item = std::result::Result<D, E>>,
        example: Option<u64>,
    ) -> std::result::Result<Report, E>
    where
        D: AsRef<str> + Sync,
        E: From<Error>,
    {
        let mut tally = Tally::new(self, example);
        let (mut batch, mut num_bytes) = (Vec::new(), 0);
        for document in documents {
            let document = document?;
            num_bytes += document.as_ref().len();
            batch.push(document);
            if num_bytes >= MAX_BATCH_BYTES || batch.len() >= MAX_BATCH_DOCUMENTS {
                self.measure_batch(&batch, &mut tally)?;
                batch.clear();
                num_bytes = 0;
            }
        }
        self.measure_batch(&batch, &mut tally)?;
        Ok(tally.finish()?)
    }

    /// Encoding is what takes time, so that only it is done in parallel: the order of documents stays.
    fn measure_batch<D: AsRef<str> + Sync>(&self, batch: &[D], tally: &mut Tally<'_>) -> Result<()> {
        let measured: Vec<Measured<'_>> = batch
            .par_iter()
            .map(|document| self.measure_document(document.as_ref()))
            .collect::<Result<_>>()?;
        measured.iter().for_each(|document| tally.add(document));
        Ok(())
    }

    fn measure_document<'a>(&self, text: &'a str) -> Result<Measured<'a>> {
        let base_ids = self.base.encode(text, SpecialTokens::Omit)?.ids;
        let ids = self.adapted.encode(text, SpecialTokens::Omit)?.ids;
        Ok(Measured { text, base_ids, ids })
    }
}

impl Report {
    /// How many of the most valuable n-tokens together make at least this share of all that n-tokens save.
    #[must_use]
    pub fn num_n_tokens_for(&self, share: f64) -> usize {
        let wanted = share * self.num_saved_tokens as f64;
        let mut saved = 0;
        let enough = |n_token: &NTokenFigures| {
            saved += n_token.num_saved_tokens;
            saved as f64 >= wanted
        };
        self.n_tokens.iter().position(enough).map_or(self.n_tokens.len(), |idx| idx + 1)
    }

    /// Text bytes for each token, before and after.
    #[must_use]
    pub fn bytes_per_token(&self) -> (f64, f64) {
        let per = |num_tokens: u64| self.num_bytes as f64 / num_tokens.max(1) as f64;
        (per(self.num_base_tokens), per(self.num_tokens))
    }
}

/// Which part of the base tokens goes away; nothing of none.
fn saved_share(num_base_tokens: u64, num_tokens: u64) -> f64 {
    if num_base_tokens == 0 { 0.0 } else { 1.0 - num_tokens as f64 / num_base_tokens as f64 }
}

/// Bytes as text; those that are no UTF-8 by their value, as `\xE2`: a token may hold a part of a character.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests;
