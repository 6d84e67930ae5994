//! The patch vocabulary: which base tokens are removed, which n-tokens are added, and which model id each has.

mod content;
mod file;

use std::fmt;

use content::Origin;
pub(crate) use content::{MAX_N, MAX_PARTS};
pub use content::{Mode, NToken, PatchContent, Removed, Segmentation};

use crate::{Fingerprint, Result, TokenId};

/// A patch vocabulary that holds together: only [`PatchVocabulary::new`] and [`PatchVocabulary::parse`] make one, and
/// they check every rule that can be checked without the tokenizer ([`crate::Vocabulary::load`] checks the others).
#[derive(Clone, PartialEq, Eq)]
pub struct PatchVocabulary {
    content: PatchContent,
    fingerprint: Fingerprint,
    /// By model id: what stands there.
    origins: Vec<Origin>,
}

/// What an embedding row of the adapted model is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row<'a> {
    /// The row of this base token, as it is.
    Base(TokenId),
    /// An average of these base tokens' rows, weighted as [`crate::embedding`] says.
    NToken(&'a [TokenId]),
}

impl PatchVocabulary {
    /// Checks the content and computes its fingerprint.
    ///
    /// # Errors
    /// [`crate::Error::Field`] names the first field that breaks a rule.
    pub fn new(content: PatchContent) -> Result<Self> {
        let origins = content.check()?;
        let fingerprint = content.fingerprint();
        Ok(Self { content, fingerprint, origins })
    }

    /// The hash of the tokenizer that this patch belongs to.
    #[must_use]
    pub fn base_tokenizer(&self) -> Fingerprint {
        self.content.base_tokenizer
    }

    /// The fingerprint of base tokenizer and patch together.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether n-tokens take the ids of removed tokens or new ones.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.content.mode
    }

    /// Which of the possible sequences of tokens a text becomes.
    #[must_use]
    pub fn segmentation(&self) -> Segmentation {
        self.content.segmentation
    }

    /// Ids of the base tokenizer: its largest id and one.
    #[must_use]
    pub fn base_vocab_size(&self) -> usize {
        self.content.model_ids.len()
    }

    /// Ids of the adapted model.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.origins.len()
    }

    /// The removed base tokens, by ascending id.
    #[must_use]
    pub fn removed(&self) -> &[Removed] {
        &self.content.removed
    }

    /// The n-tokens in rank order, which [`Segmentation`] gives its meaning.
    #[must_use]
    pub fn n_tokens(&self) -> &[NToken] {
        &self.content.n_tokens
    }

    /// The model id of a base token; none if it is removed or does not exist.
    #[must_use]
    pub fn model_id(&self, base: TokenId) -> Option<TokenId> {
        self.content.model_ids.get(base.row()).copied().flatten()
    }

    /// What each embedding row of the adapted model is made from, in the order of model ids.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.origins.iter().map(|origin| self.row_of(*origin))
    }

    /// What one embedding row is made from; none for an unknown model id.
    #[must_use]
    pub fn row(&self, id: TokenId) -> Option<Row<'_>> {
        self.origins.get(id.row()).map(|origin| self.row_of(*origin))
    }

    fn row_of(&self, origin: Origin) -> Row<'_> {
        match origin {
            Origin::Base(id) => Row::Base(id),
            Origin::NToken(rank) => Row::NToken(&self.content.n_tokens[rank].base),
        }
    }
}

impl fmt::Debug for PatchVocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PatchVocabulary")
            .field("mode", &self.content.mode)
            .field("vocab_size", &self.vocab_size())
            .field("num_n_tokens", &self.content.n_tokens.len())
            .field("num_removed", &self.content.removed.len())
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}
