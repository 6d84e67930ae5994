use super::symbols::{Symbol, Symbols};
use crate::TokenId;

/// What one token costs. A small surcharge on top decides between segmentations of as many tokens.
pub(super) const UNIT: u32 = 1 << 16;

/// The n-tokens by their base ids, with what each costs. Unlike the one that encodes, it lets n-tokens go one by one.
pub(super) struct Trie {
    /// By base id: its node, or `ROOT` if no n-token starts with it.
    first: Vec<u32>,
    /// A hash table of the edges between nodes; at most a third is taken.
    edges: Vec<Edge>,
    num_edges: usize,
    /// The first is the root, which nothing refers to.
    nodes: Vec<Node>,
}

const ROOT: u32 = 0;
const MIN_EDGES: usize = 1 << 10;

#[derive(Clone, Copy)]
struct Edge {
    parent: u32,
    id: TokenId,
    /// `ROOT` in an empty slot.
    child: u32,
}

const NO_EDGE: Edge = Edge { parent: ROOT, id: TokenId(0), child: ROOT };

#[derive(Clone, Copy)]
struct Node {
    n_token: Option<Symbol>,
    cost: u32,
    has_children: bool,
}

const NEW_NODE: Node = Node { n_token: None, cost: 0, has_children: false };

/// A symbol that stands at a place of a row of base ids.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) cost: u32,
    pub(super) symbol: Symbol,
}

impl Trie {
    /// All n-tokens, each with its surcharge.
    pub(super) fn new(symbols: &Symbols, surcharge: impl Fn(usize) -> u32) -> Self {
        let mut trie = Self {
            first: vec![ROOT; symbols.num_base()],
            edges: vec![NO_EDGE; MIN_EDGES],
            num_edges: 0,
            nodes: vec![NEW_NODE],
        };
        for (n_token, ids) in symbols.n_tokens().iter().enumerate() {
            let node = trie.node_or_new(ids);
            trie.nodes[node].n_token = Some(symbols.symbol(n_token));
            trie.nodes[node].cost = UNIT + surcharge(n_token);
        }
        trie
    }

    /// The n-token of these base ids is not used any more.
    pub(super) fn remove(&mut self, ids: &[TokenId]) {
        let node = self.node_or_new(ids);
        self.nodes[node].n_token = None;
    }

    fn node_or_new(&mut self, ids: &[TokenId]) -> usize {
        let Some((first, rest)) = ids.split_first() else { return ROOT as usize };
        if self.first[first.row()] == ROOT {
            self.first[first.row()] = self.new_node();
        }
        let mut node = self.first[first.row()];
        for id in rest {
            node = self.child_or_new(node, *id);
        }
        node as usize
    }

    fn new_node(&mut self) -> u32 {
        self.nodes.push(NEW_NODE);
        self.nodes.len() as u32 - 1
    }

    fn child_or_new(&mut self, parent: u32, id: TokenId) -> u32 {
        let slot = self.slot(parent, id);
        if self.edges[slot].child != ROOT {
            return self.edges[slot].child;
        }
        let child = self.new_node();
        self.nodes[parent as usize].has_children = true;
        self.edges[slot] = Edge { parent, id, child };
        self.num_edges += 1;
        if self.num_edges * 3 > self.edges.len() {
            self.grow();
        }
        child
    }

    fn grow(&mut self) {
        let len = self.edges.len() * 2;
        let old = std::mem::replace(&mut self.edges, vec![NO_EDGE; len]);
        for edge in old.into_iter().filter(|edge| edge.child != ROOT) {
            let slot = self.slot(edge.parent, edge.id);
            self.edges[slot] = edge;
        }
    }

    #[inline]
    fn slot(&self, parent: u32, id: TokenId) -> usize {
        let mask = self.edges.len() - 1;
        let key = u64::from(parent) << 32 | u64::from(id.0);
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & mask;
        loop {
            let edge = &self.edges[slot];
            if edge.child == ROOT || (edge.parent == parent && edge.id == id) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Calls `found` for each symbol that stands in `ids` at `start`: the base token, then n-tokens, the shortest first.
    #[inline]
    pub(super) fn matches(&self, ids: &[TokenId], start: usize, mut found: impl FnMut(Match)) {
        let base = Symbol::of_base(ids[start]);
        found(Match { start: start as u32, end: start as u32 + 1, cost: UNIT, symbol: base });
        let mut node = self.first[ids[start].row()];
        if node == ROOT {
            return;
        }
        for (end, id) in (start as u32 + 2..).zip(&ids[start + 1..]) {
            node = self.edges[self.slot(node, *id)].child;
            if node == ROOT {
                return;
            }
            let Node { n_token, cost, has_children } = self.nodes[node as usize];
            if let Some(symbol) = n_token {
                found(Match { start: start as u32, end, cost, symbol });
            }
            if !has_children {
                return;
            }
        }
    }
}
