use super::MAX_ARTEFACT_BYTES;
use super::pickle::{self, Class, Pickle, View};
use crate::{Error, Result};

pub(super) const PATCH_TOKENIZER: &str = "patch_tokenizer";
pub(super) const REMOVED: &str = "removed_tokens";
pub(super) const NGRAMS: &str = "added_ngrams";
pub(super) const ID_CONVERTER: &str = "inputs_ids_convert";

/// The content of AdaptiVocab's files.
#[derive(Clone, Copy, Debug)]
pub enum Artefacts<'a> {
    /// `patch_tokenizer.pkl`: all in one, with the base tokenizer.
    PatchTokenizer(&'a [u8]),
    /// What it was put together from; the base tokenizer is not among them.
    Pieces {
        /// `removed_tokens.pkl`.
        removed_tokens: &'a [u8],
        /// `added_ngrams.pkl`.
        added_ngrams: &'a [u8],
        /// `inputs_ids_convert.pkl`.
        inputs_ids_convert: &'a [u8],
    },
}

impl<'a> Artefacts<'a> {
    pub(super) fn read(&self) -> Result<Read<'a>> {
        match *self {
            Self::PatchTokenizer(bytes) => {
                Ok(Read::Whole(read(PATCH_TOKENIZER, bytes, Class::of_tokenizer)?))
            }
            Self::Pieces { removed_tokens, added_ngrams, inputs_ids_convert } => Ok(Read::Pieces {
                removed: read(REMOVED, removed_tokens, Class::none)?,
                ngrams: read(NGRAMS, added_ngrams, Class::none)?,
                id_converter: read(ID_CONVERTER, inputs_ids_convert, Class::none)?,
            }),
        }
    }
}

fn read<'a>(part: &str, bytes: &'a [u8], allowed: fn(Class) -> bool) -> Result<Pickle<'a>> {
    if bytes.len() > MAX_ARTEFACT_BYTES {
        let problem = format!("has {} bytes, over the limit of {MAX_ARTEFACT_BYTES}", bytes.len());
        return Err(Error::artefact(part, problem));
    }
    pickle::read(bytes, allowed).map_err(|refused| Error::artefact(part, refused.to_string()))
}

/// The files, read.
pub(super) enum Read<'a> {
    Whole(Pickle<'a>),
    Pieces { removed: Pickle<'a>, ngrams: Pickle<'a>, id_converter: Pickle<'a> },
}

/// One of the three dictionaries, the pickle that it lies in, and its name.
pub(super) struct Part<'p, 'a> {
    pub(super) name: &'static str,
    pub(super) pickle: &'p Pickle<'a>,
    pub(super) root: View<'p, 'a>,
}

impl<'a> Read<'a> {
    /// From removed tokens to lists of their parts.
    pub(super) fn removed(&self) -> Result<Part<'_, 'a>> {
        match self {
            Self::Whole(pickle) => part(pickle, REMOVED, "removed_tokens"),
            Self::Pieces { removed, .. } => Ok(Part { name: REMOVED, pickle: removed, root: removed.root() }),
        }
    }

    /// From n-grams, in rank order, to how often they were seen.
    pub(super) fn ngrams(&self) -> Result<Part<'_, 'a>> {
        match self {
            Self::Whole(pickle) => part(pickle, NGRAMS, "ngram_dict"),
            Self::Pieces { ngrams, .. } => Ok(Part { name: NGRAMS, pickle: ngrams, root: ngrams.root() }),
        }
    }

    /// From kept tokens and n-grams to their base ids and their new id. Two more maps of the whole pickle say no more.
    pub(super) fn id_converter(&self) -> Result<Part<'_, 'a>> {
        match self {
            Self::Whole(pickle) => part(pickle, ID_CONVERTER, "id_converter"),
            Self::Pieces { id_converter, .. } => {
                Ok(Part { name: ID_CONVERTER, pickle: id_converter, root: id_converter.root() })
            }
        }
    }

    /// The pickled base tokenizer, where there is one.
    pub(super) fn tokenizer_json(&self) -> Result<Option<&'a [u8]>> {
        let Self::Whole(pickle) = self else { return Ok(None) };
        let json = pickle
            .root()
            .at("existing_tokenizer")
            .and_then(|outer| {
                outer.state(|class| class == Class::TransformersTokenizer, "a tokenizer of transformers")
            })
            .and_then(|state| {
                // Those that transformers has in Python are pickled as other parts.
                state.at("_tokenizer").map_err(|problem| format!("{problem}; only fast tokenizers are read"))
            })
            .and_then(|inner| inner.state(|class| class == Class::Tokenizer, "a tokenizers.Tokenizer"))
            .and_then(View::bytes);
        json.map(Some)
            .map_err(|problem| Error::artefact(PATCH_TOKENIZER, format!("existing_tokenizer: {problem}")))
    }
}

fn part<'p, 'a>(pickle: &'p Pickle<'a>, name: &'static str, key: &str) -> Result<Part<'p, 'a>> {
    let root = pickle.root().at(key).map_err(|problem| Error::artefact(PATCH_TOKENIZER, problem))?;
    Ok(Part { name, pickle, root })
}
