use std::fmt;

use serde::{Deserialize, Serialize};

/// A token's id: of the model's vocabulary, or of the base vocabulary where the text says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl TokenId {
    /// The row of an embedding matrix that belongs to this id.
    #[must_use]
    pub fn row(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
