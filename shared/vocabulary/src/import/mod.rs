//! Imports what AdaptiVocab's own code writes: `patch_tokenizer.pkl`, or the three files it is put together from, and
//! the pickled embedding matrices. Nothing in them is executed (`pickle`).
//!
//! The imported vocabulary gives every text the ids that the authors' tokenizer gives it, with these differences, all
//! of them faults there:
//!
//! | what | there | here |
//! |---|---|---|
//! | a character that the base tokenizer does not know | the *base* id of `<unk>`, which is another token by now | the new id of `<unk>` |
//! | GPT-2's `<\|endoftext\|>` in a text (its `<unk>`, too) | the same | its new id |
//! | an n-token that contains a special token | matches; decodes to the special token's name as plain text | never matches |
//! | clean-up after decoding (` .` → `.`), where a tokenizer asks for it | applied | the text stays as it was written |
//!
//! So `decode(encode(text))` is always what the base tokenizer makes of the text. Carried over without a change: the
//! order of ids, which is random in every run of theirs; n-tokens that contain removed tokens, and so can never match,
//! for they have rows in the model; and that no token is added at the beginning or the end.
//!
//! Their decoding goes by `old_indices`, the base ids that an n-token's *text* is encoded as, which may be others than
//! those it matches. Here an n-token stands for what it matches, always; the pickled matrices, where they are used, have
//! the rows made from theirs.

mod agreement;
mod artefacts;
mod embeddings;
mod pickle;
mod resolve;
#[cfg(test)]
mod tests;
mod tokens;

use std::borrow::Cow;
use std::fmt;

pub use artefacts::Artefacts;
pub use embeddings::{EmbeddingMatrix, MAX_EMBEDDING_BYTES, PatchEmbeddings};

use crate::base::{BaseTokenizer, TokenizerJson};
use crate::{Error, PatchVocabulary, Result};

/// The largest file that [`import`] reads; those of a vocabulary of 150,000 tokens take 14 MB.
pub const MAX_ARTEFACT_BYTES: usize = 256 << 20;

/// An imported vocabulary.
#[derive(Clone, Debug)]
pub struct Imported<'a> {
    /// The vocabulary, bound to `tokenizer_json`.
    pub patch: PatchVocabulary,
    /// The base tokenizer: the one given, or the pickle's own.
    pub tokenizer_json: Cow<'a, [u8]>,
    /// What was found.
    pub report: ImportReport,
}

/// What an import found, for humans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// N-tokens.
    pub num_n_tokens: usize,
    /// Removed base tokens.
    pub num_removed: usize,
    /// N-tokens with a removed or a special token in them: no text is ever encoded to these.
    pub num_never_matching: usize,
    /// N-tokens whose rows the authors' code makes from other base tokens than those they match.
    pub num_other_rows: usize,
    /// Where the base tokenizer comes from.
    pub tokenizer: TokenizerSource,
}

/// Where an imported vocabulary's base tokenizer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The model's, which equals the pickled one.
    Model,
    /// The model's; the pickled one is written otherwise, but encodes alike.
    ModelWrittenOtherwise,
    /// The model's; nothing was pickled that it could be compared with.
    ModelUnchecked,
    /// The pickled one; no model was given.
    Pickle,
}

/// Whether a file is a pickle, of a protocol that says so: JSON never begins with this byte.
#[must_use]
pub fn is_pickle(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80)
}

/// Imports a vocabulary for the tokenizer of a model, or for the pickled one where none is given.
///
/// # Errors
/// [`Error::Artefact`]: a file is no pickle, asks for what is not read, or contradicts itself.
/// [`Error::TokenizersDiffer`]: the model's tokenizer encodes otherwise than the pickled one.
pub fn import<'a>(artefacts: &Artefacts<'a>, tokenizer_json: Option<&'a [u8]>) -> Result<Imported<'a>> {
    let read = artefacts.read()?;
    let pickled = read.tokenizer_json()?;
    let (json, tokenizer) = match (tokenizer_json, pickled) {
        (Some(given), Some(pickled)) => (given, agreement::check(pickled, given)?),
        (Some(given), None) => (given, TokenizerSource::ModelUnchecked),
        (None, Some(pickled)) => (pickled, TokenizerSource::Pickle),
        (None, None) => {
            return Err(Error::artefact(
                artefacts::ID_CONVERTER,
                "comes without a tokenizer: the model's tokenizer.json must be given",
            ));
        }
    };
    let base = BaseTokenizer::load(&TokenizerJson::parse(json)?)?;
    let (patch, mut report) = resolve::patch(&read, &base)?;
    report.tokenizer = tokenizer;
    Ok(Imported { patch, tokenizer_json: Cow::Borrowed(json), report })
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} n-tokens, {} removed tokens", self.num_n_tokens, self.num_removed)?;
        if self.num_never_matching > 0 {
            write!(
                f,
                "\n{} n-tokens contain a removed or a special token and never match",
                self.num_never_matching
            )?;
        }
        if self.num_other_rows > 0 {
            write!(
                f,
                "\n{} n-tokens have rows made from other base tokens than they match: keep the embedding pickles",
                self.num_other_rows
            )?;
        }
        f.write_str(match self.tokenizer {
            TokenizerSource::Model => "\nbound to the model's tokenizer.json, which equals the pickled one",
            TokenizerSource::ModelWrittenOtherwise => {
                "\nbound to the model's tokenizer.json, which encodes as the pickled one does"
            }
            TokenizerSource::ModelUnchecked => {
                "\nbound to the model's tokenizer.json; there is no pickled one to compare it with"
            }
            TokenizerSource::Pickle => {
                "\nbound to the pickled tokenizer.json: a model must have just this one"
            }
        })
    }
}
