use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fused_kernels::Occurrence;
use fused_vocabulary::TokenId;

/// The tokens of a prompt that penalties count, found once for all of its sequences. Kept only where
/// [`Sampling::has_penalties`](super::Sampling::has_penalties).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptOccurrences {
    /// Each token once.
    list: Vec<Occurrence>,
    /// Where in the list a token is.
    places: HashMap<TokenId, usize>,
}

/// The tokens of one sequence that penalties count: it grows with the sequence, so that a step reads it as it is.
#[derive(Debug)]
pub struct Occurrences {
    /// Nobody else's, for whoever keeps a copy.
    id: u64,
    prompt: Arc<PromptOccurrences>,
    /// Each token once: the prompt's first, as they stand there.
    list: Vec<Occurrence>,
    /// Where in the list the others are.
    places: HashMap<TokenId, usize>,
    num_changes: u64,
    /// The entry that was changed or appended last.
    changed: usize,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl PromptOccurrences {
    /// More of the prompt.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        for &token in tokens {
            self.places.entry(token).or_insert_with(|| {
                self.list.push(Occurrence { token: token.0, ..Occurrence::default() });
                self.list.len() - 1
            });
        }
    }
}

impl Occurrences {
    /// Those of a sequence without output.
    #[must_use]
    pub fn after(prompt: Arc<PromptOccurrences>) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let list = prompt.list.clone();
        Self { id, prompt, list, places: HashMap::new(), num_changes: 0, changed: 0 }
    }

    /// One more token of the output.
    pub fn push_output(&mut self, token: TokenId) {
        let place = self.prompt.places.get(&token).or_else(|| self.places.get(&token)).copied();
        let place = place.unwrap_or_else(|| {
            self.places.insert(token, self.list.len());
            self.list.push(Occurrence { token: token.0, ..Occurrence::default() });
            self.list.len() - 1
        });
        if let Some(occurrence) = self.list.get_mut(place) {
            occurrence.count = occurrence.count.saturating_add(1);
        }
        (self.num_changes, self.changed) = (self.num_changes + 1, place);
    }

    /// Which list this is, among all of the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How often it was changed: one entry each time.
    #[must_use]
    pub fn num_changes(&self) -> u64 {
        self.num_changes
    }

    /// The entry that was changed last, and where it is; `None` for an empty list.
    #[must_use]
    pub fn last_change(&self) -> Option<(usize, Occurrence)> {
        self.list.get(self.changed).map(|occurrence| (self.changed, *occurrence))
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Occurrence] {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_listed_once_and_counted_in_the_output() {
        let mut prompt = PromptOccurrences::default();
        prompt.extend(&[TokenId(5), TokenId(9)]);
        prompt.extend(&[TokenId(5), TokenId(2)]);
        let prompt = Arc::new(prompt);
        let counts = |outputs: &[u32]| -> Vec<_> {
            let mut occurrences = Occurrences::after(Arc::clone(&prompt));
            for token in outputs {
                let before = occurrences.as_slice().to_vec();
                occurrences.push_output(TokenId(*token));
                // Who keeps a copy and is told of the change has the same.
                let (place, entry) = occurrences.last_change().unwrap();
                let mut copy = before;
                copy.resize(occurrences.as_slice().len(), Occurrence::default());
                copy[place] = entry;
                assert_eq!(copy, occurrences.as_slice());
            }
            assert_eq!(occurrences.num_changes(), outputs.len() as u64);
            occurrences.as_slice().iter().map(|o| (o.token, o.count)).collect()
        };
        assert_eq!(counts(&[9, 7, 9, 7, 7]), [(5, 0), (9, 2), (2, 0), (7, 3)]);
        assert_eq!(counts(&[]), [(5, 0), (9, 0), (2, 0)], "what another sequence draws is its own");
    }
}
