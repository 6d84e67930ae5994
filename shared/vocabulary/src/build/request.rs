use std::path::Path;

use crate::base::MAX_VOCAB_SIZE;
use crate::patch::MAX_N;
use crate::{Error, Mode, Result};

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct BuildRequest<'a> {
    /// The base tokenizer: a `tokenizer.json` of kind BPE.
    pub tokenizer_json: &'a [u8],
    /// How many n-tokens to add.
    pub add: usize,
    /// How many base tokens to remove: [`BuildRequest::default_remove`] says how many are usual.
    pub remove: usize,
    /// The longest n-token, in base tokens, 2 to 64. The paper uses 3 and 5.
    pub max_n: usize,
    /// Whether n-tokens take the ids of removed tokens or new ones.
    pub mode: Mode,
    /// Whether n-tokens may reach across word borders.
    pub words: Words,
    /// Whether n-tokens may reach across line breaks.
    pub lines: Lines,
    /// How tokens are chosen.
    pub selection: Selection,
    /// Base tokens that are never removed, as `tokenizer.json` spells them or as plain text.
    pub keep: &'a [String],
    /// The folder of the temporary file that holds the encoded corpus, 4 bytes a base token. The file has no name and is
    /// gone when the build ends, however it ends.
    pub scratch: &'a Path,
}

/// Whether n-tokens may reach across word borders, that is, have a space or a line break anywhere but at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// They may; the paper's figures need it.
    Cross,
    /// They stay within a word.
    Within,
}

/// Whether n-tokens may contain line breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// They may, which saves much where lines are alike (GPT-2's tokenizer, 10,000 n-tokens, held-out text: tldr 57 % of
    /// the tokens instead of 44 %, Kubernetes proposals 49 % instead of 42 %).
    Cross,
    /// They may not: for a model that is served without fine-tuning, which reads such n-tokens badly (demo-llama, 200
    /// n-tokens of tldr: 1.72 bits a byte with them, 1.44 without, 1.05 unadapted).
    Within,
}

/// How removed tokens and n-tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// So that text of the domain takes as few tokens as possible.
    Exact,
    /// As AdaptiVocab's own code does, which reads documents of 50 words or more only, and may remove and add fewer
    /// tokens than asked for.
    Reference,
}

impl BuildRequest<'_> {
    /// The longest n-token that is built unless asked otherwise. 12 saves 0.05 to 0.9 points less, 64 at most 0.1 more
    /// (GPT-2's and Llama-3's tokenizer, 10,000 n-tokens).
    pub const DEFAULT_MAX_N: usize = 32;

    /// The same for [`Selection::Reference`], whose own default it is.
    pub const REFERENCE_MAX_N: usize = 3;

    /// The longest n-token unless asked otherwise.
    #[must_use]
    pub fn default_max_n(selection: Selection) -> usize {
        match selection {
            Selection::Exact => Self::DEFAULT_MAX_N,
            Selection::Reference => Self::REFERENCE_MAX_N,
        }
    }

    /// How many tokens are removed unless asked otherwise: as many as are added, or none where the vocabulary is extended.
    #[must_use]
    pub fn default_remove(mode: Mode, add: usize) -> usize {
        match mode {
            Mode::Replace => add,
            Mode::Extend => 0,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refused = |field, problem| Err(Error::Request { field, problem });
        if self.add == 0 {
            return refused("add", "must be at least 1".to_owned());
        }
        if self.add > MAX_VOCAB_SIZE {
            return refused("add", format!("{} is over {MAX_VOCAB_SIZE}", self.add));
        }
        if !(2..=MAX_N).contains(&self.max_n) {
            return refused("max_n", format!("{} is not in 2 to {MAX_N}", self.max_n));
        }
        if self.mode == Mode::Extend && self.remove > 0 {
            return refused("remove", format!("must be 0 in extend mode, not {}", self.remove));
        }
        if self.selection == Selection::Reference {
            return super::reference::check(self);
        }
        Ok(())
    }
}
