use crate::base::BaseStream;
use crate::{Result, TokenId, Vocabulary, segment};

/// Encodes a text that comes in pieces: its ids are those of the whole text encoded at once, and come as early as no
/// further text can change them.
///
/// With a tokenizer that is left to the `tokenizers` crate (see `base`) all ids come at the end.
pub struct Encoder<'v> {
    vocabulary: &'v Vocabulary,
    base: BaseStream,
    undecided: segment::Undecided,
    /// Base ids on their way to the segmenter.
    base_ids: Vec<TokenId>,
    num_base_tokens: usize,
}

impl<'v> Encoder<'v> {
    pub(crate) fn new(vocabulary: &'v Vocabulary) -> Self {
        Self {
            vocabulary,
            base: BaseStream::default(),
            undecided: segment::Undecided::default(),
            base_ids: Vec::new(),
            num_base_tokens: 0,
        }
    }

    /// Takes more text and appends the model ids that are decided.
    ///
    /// # Errors
    /// [`crate::Error::Encode`] where the base tokenizer fails. The encoder is of no use then.
    pub fn push(&mut self, text: &str, out: &mut Vec<TokenId>) -> Result<()> {
        self.vocabulary.base().push(&mut self.base, text, &mut self.base_ids)?;
        self.segment(out);
        Ok(())
    }

    /// Appends what is left; how many tokens the base vocabulary takes for the whole text.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self, out: &mut Vec<TokenId>) -> Result<usize> {
        self.vocabulary.base().finish(&mut self.base, &mut self.base_ids)?;
        self.segment(out);
        if let Some(segmenter) = self.vocabulary.segmenter() {
            segmenter.finish(self.undecided, out);
        }
        Ok(self.num_base_tokens)
    }

    fn segment(&mut self, out: &mut Vec<TokenId>) {
        self.num_base_tokens += self.base_ids.len();
        match self.vocabulary.segmenter() {
            Some(segmenter) => segmenter.push(&mut self.undecided, &self.base_ids, out),
            None => out.extend_from_slice(&self.base_ids),
        }
        self.base_ids.clear();
    }
}

#[cfg(test)]
mod tests;
