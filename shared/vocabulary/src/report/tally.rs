use super::example::ExampleChoice;
use super::savings::SavingsTally;
use super::{
    Comparison, LengthFigures, Measured, NTokenFigures, RemovedFigures, RemovedTokenFigures, Report,
    VocabularyFigures, readable, saved_share,
};
use crate::{Result, TokenId, Vocabulary};

/// What is counted while documents come.
pub(super) struct Tally<'a> {
    comparison: &'a Comparison,
    num_documents: u64,
    num_bytes: u64,
    num_base_tokens: u64,
    num_tokens: u64,
    /// By model id: uses.
    uses: Vec<u64>,
    /// By base id: occurrences.
    base_uses: Vec<u64>,
    savings: SavingsTally,
    example: ExampleChoice,
}

impl<'a> Tally<'a> {
    pub(super) fn new(comparison: &'a Comparison, example: Option<u64>) -> Self {
        Self {
            comparison,
            num_documents: 0,
            num_bytes: 0,
            num_base_tokens: 0,
            num_tokens: 0,
            uses: vec![0; comparison.adapted.vocab_size()],
            base_uses: vec![0; comparison.base.vocab_size()],
            savings: SavingsTally::new(),
            example: ExampleChoice::new(example),
        }
    }

    pub(super) fn add(&mut self, document: &Measured<'_>) {
        let (num_base_tokens, num_tokens) = (document.base_ids.len() as u64, document.ids.len() as u64);
        self.num_documents += 1;
        self.num_bytes += document.text.len() as u64;
        self.num_base_tokens += num_base_tokens;
        self.num_tokens += num_tokens;
        count(&mut self.uses, &document.ids);
        count(&mut self.base_uses, &document.base_ids);
        let number = self.num_documents;
        let place = self.savings.add(number, document.text, num_base_tokens, num_tokens);
        self.example.add(number, document.text, place);
    }

    pub(super) fn finish(self) -> Result<Report> {
        let patch = &self.comparison.patch;
        let (n_tokens, lengths, removed) = (self.n_tokens(), self.lengths(), self.removed());
        let savings = self.savings.finish();
        Ok(Report {
            vocabulary: VocabularyFigures::of(patch),
            num_documents: self.num_documents,
            num_bytes: self.num_bytes,
            num_base_tokens: self.num_base_tokens,
            num_tokens: self.num_tokens,
            saved_share: saved_share(self.num_base_tokens, self.num_tokens),
            num_saved_tokens: n_tokens.iter().map(|n_token| n_token.num_saved_tokens).sum(),
            lengths,
            n_tokens,
            removed,
            example: self.example.finish(self.comparison, savings.quartiles.median)?,
            savings,
        })
    }

    fn n_tokens(&self) -> Vec<NTokenFigures> {
        let mut figures: Vec<NTokenFigures> = self
            .comparison
            .patch
            .n_tokens()
            .iter()
            .map(|n_token| (n_token, self.uses[n_token.id.row()]))
            .filter(|(_, num_uses)| *num_uses > 0)
            .map(|(n_token, num_uses)| NTokenFigures {
                id: n_token.id,
                text: text(&self.comparison.adapted, n_token.id),
                base_texts: texts(&self.comparison.base, &n_token.base),
                num_uses,
                num_saved_tokens: num_uses * (n_token.base.len() as u64 - 1),
            })
            .collect();
        // Stable, so that rank decides between equals.
        figures.sort_by_key(|n_token| std::cmp::Reverse(n_token.num_saved_tokens));
        figures
    }

    fn lengths(&self) -> Vec<LengthFigures> {
        let n_tokens = self.comparison.patch.n_tokens();
        let max = n_tokens.iter().map(|n_token| n_token.base.len()).max().unwrap_or(0);
        let mut lengths: Vec<LengthFigures> = (2..=max)
            .map(|num_base_tokens| LengthFigures { num_base_tokens, ..LengthFigures::default() })
            .collect();
        for n_token in n_tokens {
            let num_uses = self.uses[n_token.id.row()];
            let figures = &mut lengths[n_token.base.len() - 2];
            figures.num_n_tokens += 1;
            figures.num_used += usize::from(num_uses > 0);
            figures.num_uses += num_uses;
            figures.num_saved_tokens += num_uses * (n_token.base.len() as u64 - 1);
        }
        lengths
    }

    fn removed(&self) -> RemovedFigures {
        let base = &self.comparison.base;
        let mut tokens: Vec<RemovedTokenFigures> = self
            .comparison
            .patch
            .removed()
            .iter()
            .map(|removed| (removed, self.base_uses[removed.id.row()]))
            .filter(|(_, num_occurrences)| *num_occurrences > 0)
            .map(|(removed, num_occurrences)| RemovedTokenFigures {
                id: removed.id,
                text: text(base, removed.id),
                part_texts: texts(base, &removed.parts),
                num_occurrences,
                num_extra_tokens: num_occurrences * (removed.parts.len() as u64 - 1),
            })
            .collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.num_extra_tokens));
        RemovedFigures {
            num_occurrences: tokens.iter().map(|token| token.num_occurrences).sum(),
            num_extra_tokens: tokens.iter().map(|token| token.num_extra_tokens).sum(),
            tokens,
        }
    }
}

fn count(uses: &mut [u64], ids: &[TokenId]) {
    for id in ids {
        if let Some(uses) = uses.get_mut(id.row()) {
            *uses += 1;
        }
    }
}

fn text(vocabulary: &Vocabulary, id: TokenId) -> String {
    readable(vocabulary.token_bytes(id))
}

fn texts(vocabulary: &Vocabulary, ids: &[TokenId]) -> Vec<String> {
    ids.iter().map(|id| text(vocabulary, *id)).collect()
}
