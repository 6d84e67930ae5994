mod golden;
mod plain;

use super::*;

/// A corpus in memory.
struct InMemory(Vec<Vec<TokenId>>);

impl Documents for InMemory {
    fn for_each(&self, visit: &mut dyn FnMut(&[TokenId]) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|document| visit(document))
    }
}
