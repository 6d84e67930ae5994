use crate::TokenId;

/// Finds n-tokens in base ids: of those that match at a place, the first in list order, however short it is (that is
/// what AdaptiVocab does). A trie, so that a step costs at most the longest n-token, not the number of n-tokens.
pub(crate) struct Segmenter {
    /// By base id: the node after it, or `NONE`; most places end here.
    roots: Vec<u32>,
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// Sorted by base id.
    children: Vec<(TokenId, u32)>,
    rank: Option<usize>,
}

const NONE: u32 = u32::MAX;

impl Segmenter {
    /// `n_tokens` in rank order; the segmenter answers with their places in it.
    pub(crate) fn new<'a>(n_tokens: impl Iterator<Item = &'a [TokenId]>) -> Self {
        let mut segmenter = Self { roots: Vec::new(), nodes: Vec::new() };
        for (rank, base) in n_tokens.enumerate() {
            let Some((first, rest)) = base.split_first() else { continue };
            if segmenter.roots.len() <= first.row() {
                segmenter.roots.resize(first.row() + 1, NONE);
            }
            let mut node = segmenter.roots[first.row()];
            if node == NONE {
                node = segmenter.add_node();
                segmenter.roots[first.row()] = node;
            }
            for id in rest {
                node = segmenter.child_or_new(node, *id);
            }
            // The first of equal ones stays.
            segmenter.nodes[node as usize].rank.get_or_insert(rank);
        }
        segmenter
    }

    fn add_node(&mut self) -> u32 {
        self.nodes.push(Node::default());
        self.nodes.len() as u32 - 1
    }

    fn child_or_new(&mut self, node: u32, id: TokenId) -> u32 {
        match self.nodes[node as usize].children.binary_search_by_key(&id, |child| child.0) {
            Ok(idx) => self.nodes[node as usize].children[idx].1,
            Err(idx) => {
                let child = self.add_node();
                self.nodes[node as usize].children.insert(idx, (id, child));
                child
            }
        }
    }

    /// The n-token at the beginning of `ids`: its rank and its number of base ids.
    pub(crate) fn first_match(&self, ids: &[TokenId]) -> Option<(usize, usize)> {
        let (first, rest) = ids.split_first()?;
        let mut node = self.roots.get(first.row()).copied().filter(|node| *node != NONE)?;
        let mut best: Option<(usize, usize)> = None;
        for (num_before, id) in (1..).zip(rest) {
            let children = &self.nodes[node as usize].children;
            let Ok(idx) = children.binary_search_by_key(id, |child| child.0) else { break };
            node = children[idx].1;
            if let Some(rank) = self.nodes[node as usize].rank
                && best.is_none_or(|(best, _)| rank < best)
            {
                best = Some((rank, num_before + 1));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// AdaptiVocab's loop as the paper describes it.
    fn naive(n_tokens: &[Vec<TokenId>], ids: &[TokenId]) -> Option<(usize, usize)> {
        n_tokens.iter().enumerate().find(|(_, n)| ids.starts_with(n)).map(|(rank, n)| (rank, n.len()))
    }

    #[test]
    fn the_first_in_the_list_wins_over_a_longer_one() {
        let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
        let n_tokens = [ids(&[1, 2]), ids(&[1, 2, 3]), ids(&[2, 3, 4]), ids(&[2, 3])];
        let segmenter = Segmenter::new(n_tokens.iter().map(Vec::as_slice));
        assert_eq!(segmenter.first_match(&ids(&[1, 2, 3])), Some((0, 2)));
        assert_eq!(segmenter.first_match(&ids(&[2, 3, 4])), Some((2, 3)));
        assert_eq!(segmenter.first_match(&ids(&[2, 3, 5])), Some((3, 2)));
        assert_eq!(segmenter.first_match(&ids(&[2])), None);
        assert_eq!(segmenter.first_match(&ids(&[900, 1])), None);
        assert_eq!(segmenter.first_match(&[]), None);
    }

    proptest! {
        #[test]
        fn it_equals_the_naive_search(
            n_tokens in prop::collection::vec(prop::collection::vec((0_u32..4).prop_map(TokenId), 2..5), 0..12),
            ids in prop::collection::vec((0_u32..4).prop_map(TokenId), 0..12),
        ) {
            let segmenter = Segmenter::new(n_tokens.iter().map(Vec::as_slice));
            prop_assert_eq!(segmenter.first_match(&ids), naive(&n_tokens, &ids));
        }
    }
}
