use super::artefacts::Part;
use super::pickle::View;
use crate::base::{BaseTokenizer, Kind};
use crate::{Error, Result, TokenId};

/// Looks tokens of a pickle up in the base tokenizer, each text once however often the pickle repeats it: a pickle can
/// name a long text in two bytes, and hashing it each time would take the square of the pickle's size.
pub(super) struct Tokens<'b> {
    base: &'b BaseTokenizer,
    part: &'static str,
    /// By place in the pickle.
    known: Vec<Option<TokenId>>,
}

impl<'b> Tokens<'b> {
    pub(super) fn new(part: &Part<'_, '_>, base: &'b BaseTokenizer) -> Self {
        Self { base, part: part.name, known: vec![None; part.pickle.num_values()] }
    }

    /// The base id of a token's text.
    pub(super) fn id(&mut self, token: View<'_, '_>) -> Result<TokenId> {
        if let Some(known) = self.known[token.id().idx()] {
            return Ok(known);
        }
        let text = token.text().map_err(|problem| Error::artefact(self.part, problem))?;
        let id = self.base.id(text).filter(|id| self.base.kind(*id) != Kind::Absent);
        let id = id.ok_or_else(|| {
            let text: String = text.chars().take(100).collect();
            Error::artefact(self.part, format!("{text:?} is no token of the tokenizer"))
        })?;
        self.known[token.id().idx()] = Some(id);
        Ok(id)
    }

    /// The base ids of a token's parts or an n-gram's tokens, `max` at most.
    pub(super) fn ids<'p, 'a: 'p>(
        &mut self,
        tokens: impl ExactSizeIterator<Item = View<'p, 'a>>,
        max: usize,
    ) -> Result<Vec<TokenId>> {
        if tokens.len() > max {
            let problem = format!("{} tokens in a row are over the limit of {max}", tokens.len());
            return Err(Error::artefact(self.part, problem));
        }
        tokens.map(|token| self.id(token)).collect()
    }
}
