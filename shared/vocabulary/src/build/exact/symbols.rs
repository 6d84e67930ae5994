use super::places::Place;
use crate::TokenId;

/// A base token or an n-token under one numbering: base ids first, then n-tokens as they were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Symbol(pub(super) u32);

impl Symbol {
    pub(super) fn of_base(id: TokenId) -> Self {
        Self(id.0)
    }

    pub(super) fn idx(self) -> usize {
        self.0 as usize
    }
}

/// The base tokens, and the n-tokens found so far.
pub(super) struct Symbols {
    num_base: usize,
    /// By n-token: its base ids.
    n_tokens: Vec<Box<[TokenId]>>,
    /// By symbol.
    joins: Vec<Join>,
}

/// What joining two neighbours needs to know of each. The hash of a joined row of base ids comes from those of its parts,
/// however it is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    hash: u64,
    power: u64,
    /// Base tokens; 0 for what never joins.
    num_base: u16,
    may_follow: bool,
}

/// Odd, so that no power of it is 0.
const HASH_BASE: u64 = 0x9E37_79B9_7F4A_7C15;

impl Join {
    fn of_base(id: u32, place: Place) -> Self {
        Self {
            hash: mix(u64::from(id) + 1),
            power: HASH_BASE,
            num_base: u16::from(place != Place::Nowhere),
            may_follow: place == Place::Any,
        }
    }

    /// The hash of the base ids of both, if they may be one n-token.
    #[inline]
    pub(super) fn with(&self, next: &Self, max_n: usize) -> Option<u64> {
        let may =
            self.num_base != 0 && next.may_follow && usize::from(self.num_base + next.num_base) <= max_n;
        may.then(|| self.hash.wrapping_mul(next.power).wrapping_add(next.hash))
    }

    fn joined(&self, next: &Self) -> Self {
        Self {
            hash: self.hash.wrapping_mul(next.power).wrapping_add(next.hash),
            power: self.power.wrapping_mul(next.power),
            num_base: self.num_base + next.num_base,
            may_follow: self.may_follow,
        }
    }
}

impl Symbols {
    pub(super) fn new(places: &[Place]) -> Self {
        Self {
            num_base: places.len(),
            n_tokens: Vec::new(),
            joins: (0..).zip(places).map(|(id, place)| Join::of_base(id, *place)).collect(),
        }
    }

    pub(super) fn num_base(&self) -> usize {
        self.num_base
    }

    pub(super) fn n_tokens(&self) -> &[Box<[TokenId]>] {
        &self.n_tokens
    }

    /// By symbol.
    pub(super) fn joins(&self) -> &[Join] {
        &self.joins
    }

    pub(super) fn symbol(&self, n_token: usize) -> Symbol {
        Symbol((self.num_base + n_token) as u32)
    }

    /// Which n-token it is; none for a base token.
    #[inline]
    pub(super) fn as_n_token(&self, symbol: Symbol) -> Option<usize> {
        symbol.idx().checked_sub(self.num_base)
    }

    /// Makes two symbols one n-token.
    pub(super) fn join(&mut self, left: Symbol, right: Symbol) {
        self.joins.push(self.joins[left.idx()].joined(&self.joins[right.idx()]));
        let mut ids = Vec::new();
        for symbol in [left, right] {
            match self.as_n_token(symbol) {
                Some(n_token) => ids.extend_from_slice(&self.n_tokens[n_token]),
                None => ids.push(TokenId(symbol.0)),
            }
        }
        self.n_tokens.push(ids.into());
    }

    /// Keeps the n-tokens that are alive, in order, under new numbers.
    pub(super) fn retain(&mut self, is_alive: &[bool]) {
        let mut alive = is_alive.iter();
        self.n_tokens.retain(|_| alive.next() == Some(&true));
        let mut alive = std::iter::repeat_n(&true, self.num_base).chain(is_alive);
        self.joins.retain(|_| alive.next() == Some(&true));
    }

    pub(super) fn into_n_tokens(self) -> Vec<Box<[TokenId]>> {
        self.n_tokens
    }
}

/// SplitMix64's last step: neighbouring ids get hashes that have nothing in common.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_spells_the_same_has_the_same_hash() {
        let mut symbols = Symbols::new(&[Place::Any; 4]);
        let [a, b, c] = [0, 1, 2].map(Symbol);
        symbols.join(a, b);
        symbols.join(b, c);
        let (ab, bc) = (symbols.symbol(0), symbols.symbol(1));
        let hash = |left: Symbol, right: Symbol, max_n| {
            symbols.joins()[left.idx()].with(&symbols.joins()[right.idx()], max_n)
        };
        assert!(hash(ab, c, 3).is_some());
        assert_eq!(hash(ab, c, 3), hash(a, bc, 3));
        assert_ne!(hash(ab, c, 3), hash(bc, a, 3));
        assert_eq!(hash(ab, c, 2), None);
        assert_eq!(symbols.n_tokens()[1][..], [TokenId(1), TokenId(2)]);
    }

    #[test]
    fn places_hold_for_n_tokens_too() {
        let mut symbols = Symbols::new(&[Place::First, Place::Any, Place::Nowhere]);
        let [first, any, nowhere] = [0, 1, 2].map(Symbol);
        symbols.join(first, any);
        symbols.join(any, any);
        let (begins, follows) = (symbols.symbol(0), symbols.symbol(1));
        let may = |left: Symbol, right: Symbol| {
            symbols.joins()[left.idx()].with(&symbols.joins()[right.idx()], 8).is_some()
        };
        assert!(may(first, any) && may(begins, any) && may(begins, follows) && may(any, follows));
        assert!(!may(any, first) && !may(any, begins) && !may(follows, begins));
        assert!(!may(any, nowhere) && !may(nowhere, any) && !may(nowhere, nowhere));
    }

    #[test]
    fn retained_n_tokens_keep_their_order_and_joins() {
        let mut symbols = Symbols::new(&[Place::Any; 3]);
        for (left, right) in [(0, 1), (1, 2), (2, 0)] {
            symbols.join(Symbol(left), Symbol(right));
        }
        let last = symbols.joins()[symbols.symbol(2).idx()].hash;
        symbols.retain(&[true, false, true]);
        assert_eq!(symbols.n_tokens().len(), 2);
        assert_eq!(symbols.joins()[symbols.symbol(1).idx()].hash, last);
        assert_eq!(symbols.n_tokens()[1][..], [TokenId(2), TokenId(0)]);
    }
}
