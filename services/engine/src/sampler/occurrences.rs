use std::collections::HashMap;

use fused_kernels::Occurrence;
use fused_vocabulary::TokenId;

/// The tokens of one sequence that penalties count: it grows with the sequence, so that a step reads it as it is. Kept only
/// where [`Sampling::has_penalties`](super::Sampling::has_penalties).
#[derive(Clone, Debug, Default)]
pub struct Occurrences {
    /// Each token once.
    list: Vec<Occurrence>,
    /// Where in the list a token is.
    places: HashMap<TokenId, usize>,
}

impl Occurrences {
    /// More of the prompt.
    pub fn extend_prompt(&mut self, tokens: &[TokenId]) {
        for &token in tokens {
            self.entry(token);
        }
    }

    /// One more token of the output.
    pub fn push_output(&mut self, token: TokenId) {
        if let Some(occurrence) = self.entry(token) {
            occurrence.count = occurrence.count.saturating_add(1);
        }
    }

    /// What a [`SampleStep`](super::SampleStep) is given.
    #[must_use]
    pub fn as_slice(&self) -> &[Occurrence] {
        &self.list
    }

    fn entry(&mut self, token: TokenId) -> Option<&mut Occurrence> {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.list.push(Occurrence { token: token.0, ..Occurrence::default() });
            self.list.len() - 1
        });
        self.list.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_listed_once_and_counted_in_the_output() {
        let mut occurrences = Occurrences::default();
        occurrences.extend_prompt(&[TokenId(5), TokenId(9), TokenId(5)]);
        for token in [9, 2, 9] {
            occurrences.push_output(TokenId(token));
        }
        occurrences.extend_prompt(&[TokenId(2)]);
        let counts: Vec<_> = occurrences.as_slice().iter().map(|o| (o.token, o.count)).collect();
        assert_eq!(counts, [(5, 0), (9, 2), (2, 1)]);
    }
}
