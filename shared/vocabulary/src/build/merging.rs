use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::observer::{Observer, Stage, Unit, go_on};
use super::spool::Spool;
use super::{BuildRequest, Words};
use crate::base::{BaseTokenizer, Kind};
use crate::{Error, Result, TokenId};

/// Chooses n-tokens by pair merging: again and again the pair of neighbours that occurs most often becomes one symbol,
/// which saves one token at each of its places. Symbols that were mere steps on the way to longer ones are dropped.
///
/// The list is in rank order, longest first.
pub(super) fn choose(
    base: &BaseTokenizer,
    spool: &Spool,
    request: &BuildRequest<'_>,
    observer: &dyn Observer,
) -> Result<Vec<Vec<TokenId>>> {
    let num = request.add;
    observer.begin(&Stage { name: "choosing n-tokens", unit: Unit::Choices, total: Some(num as u64) });
    let mut text = Text::new(base, spool, request)?;
    while let Some(merge) = text.best_pair() {
        // Once enough symbols save at least what the next would, no further one improves the list.
        if text.merged.iter().filter(|symbol| symbol.saving() >= merge.places.len()).count() >= num {
            break;
        }
        go_on(observer)?;
        text.merge(&merge);
        observer.advance(1);
    }
    let mut chosen: Vec<&Symbol> = text.merged.iter().filter(|symbol| symbol.saving() > 0).collect();
    if chosen.len() < num {
        return Err(Error::NotReachable { what: "n-tokens", asked: num, reachable: chosen.len() });
    }
    chosen.sort_by_key(|symbol| Reverse(symbol.saving()));
    chosen.truncate(num);
    chosen.sort_by_key(|symbol| Reverse((symbol.base.len(), symbol.saving())));
    Ok(chosen.into_iter().map(|symbol| symbol.base.clone()).collect())
}

/// A base id, or `base_vocab_size` and the index of a merged symbol.
type SymbolId = u32;
/// The end of a document, or a token that may not merge: no n-token reaches across.
const WALL: SymbolId = SymbolId::MAX;
/// A place that a merge swallowed.
const GONE: SymbolId = SymbolId::MAX - 1;

/// The corpus as one line of symbols that shrinks as they merge.
struct Text<'a> {
    base: &'a BaseTokenizer,
    base_vocab_size: SymbolId,
    max_n: usize,
    words: Words,
    symbols: Vec<SymbolId>,
    /// By place: the place before and after it that is not gone.
    before: Vec<u32>,
    after: Vec<u32>,
    merged: Vec<Symbol>,
    /// By pair: the places of its left symbol, ascending. Places go stale as symbols merge and are checked when used.
    places: HashMap<(SymbolId, SymbolId), Vec<u32>>,
    /// Upper bounds: an old pair only ever becomes rarer, so a count is made exact when it reaches the top.
    bounds: BinaryHeap<(usize, Reverse<(SymbolId, SymbolId)>)>,
}

/// Added tokens stay alone, and so do line breaks: chat templates and stop strings begin and end at them, and a model
/// that was not fine-tuned reads an n-token across one badly (demo-llama, 200 n-tokens of tldr: 1.72 bits a byte with
/// such n-tokens, 1.44 without, 1.05 unadapted; they would save 31 % of the tokens instead of 17 %).
fn may_merge(base: &BaseTokenizer, id: TokenId) -> bool {
    base.kind(id) == Kind::Learned && !base.bytes(id).contains(&b'\n')
}

struct Symbol {
    base: Vec<TokenId>,
    num_places: usize,
}

impl Symbol {
    /// Tokens that the corpus is shorter by, for this symbol.
    fn saving(&self) -> usize {
        self.num_places * (self.base.len() - 1)
    }
}

struct Merge {
    pair: (SymbolId, SymbolId),
    places: Vec<u32>,
}

impl<'a> Text<'a> {
    fn new(base: &'a BaseTokenizer, spool: &Spool, request: &BuildRequest<'_>) -> Result<Self> {
        let mut symbols = vec![WALL];
        spool.for_each_document(|document| {
            let symbol = |id: &TokenId| if may_merge(base, *id) { id.0 } else { WALL };
            symbols.extend(document.iter().map(symbol));
            symbols.push(WALL);
            Ok(())
        })?;
        let last = symbols.len() as u32 - 1;
        let mut text = Self {
            base,
            base_vocab_size: base.vocab_size() as SymbolId,
            max_n: request.max_n,
            words: request.words,
            before: (0..=last).map(|place| place.saturating_sub(1)).collect(),
            after: (0..=last).map(|place| last.min(place + 1)).collect(),
            symbols,
            merged: Vec::new(),
            places: HashMap::new(),
            bounds: BinaryHeap::new(),
        };
        for place in 0..last {
            text.note_pair(place);
        }
        text.bound_pairs(text.places.keys().copied().collect());
        Ok(text)
    }

    fn begins_word(&self, symbol: SymbolId) -> bool {
        let first = match symbol.checked_sub(self.base_vocab_size) {
            None => Some(TokenId(symbol)),
            Some(idx) => self.merged[idx as usize].base.first().copied(),
        };
        first.and_then(|id| self.base.bytes(id).first()).is_some_and(u8::is_ascii_whitespace)
    }

    fn len(&self, symbol: SymbolId) -> usize {
        symbol.checked_sub(self.base_vocab_size).map_or(1, |idx| self.merged[idx as usize].base.len())
    }

    /// Notes the pair whose left symbol stands at `place`, if it may merge.
    fn note_pair(&mut self, place: u32) -> Option<(SymbolId, SymbolId)> {
        let pair = (self.symbols[place as usize], self.symbols[self.after[place as usize] as usize]);
        if pair.0 == WALL || pair.1 == WALL || self.len(pair.0) + self.len(pair.1) > self.max_n {
            return None;
        }
        if self.words == Words::Within && self.begins_word(pair.1) {
            return None;
        }
        self.places.entry(pair).or_default().push(place);
        Some(pair)
    }

    fn bound_pairs(&mut self, pairs: Vec<(SymbolId, SymbolId)>) {
        for pair in pairs {
            let bound = self.places.get(&pair).map_or(0, Vec::len);
            self.bounds.push((bound, Reverse(pair)));
        }
    }

    /// The pair that occurs most often now, without overlaps; of equal ones the one made of older symbols.
    fn best_pair(&mut self) -> Option<Merge> {
        while let Some((bound, Reverse(pair))) = self.bounds.pop() {
            let noted = self.places.remove(&pair).unwrap_or_default();
            let places = self.exact_places(pair, noted);
            // A pair seen once saves nothing on other text.
            if places.len() < 2 {
                continue;
            }
            if places.len() == bound {
                return Some(Merge { pair, places });
            }
            self.bounds.push((places.len(), Reverse(pair)));
            self.places.insert(pair, places);
        }
        None
    }

    fn exact_places(&self, pair: (SymbolId, SymbolId), mut places: Vec<u32>) -> Vec<u32> {
        let mut taken = None;
        places.retain(|place| {
            let after = self.after[*place as usize];
            let stands = self.symbols[*place as usize] == pair.0
                && self.symbols[after as usize] == pair.1
                && taken != Some(*place);
            if stands {
                taken = Some(after);
            }
            stands
        });
        places
    }

    fn merge(&mut self, merge: &Merge) {
        let new = self.base_vocab_size + self.merged.len() as SymbolId;
        let mut base = self.take_places(merge.pair.0, merge.places.len());
        base.extend(self.take_places(merge.pair.1, merge.places.len()));
        self.merged.push(Symbol { base, num_places: merge.places.len() });

        let mut new_pairs = Vec::new();
        for place in merge.places.iter().copied() {
            let swallowed = self.after[place as usize] as usize;
            let after = self.after[swallowed];
            self.symbols[place as usize] = new;
            self.symbols[swallowed] = GONE;
            self.after[place as usize] = after;
            self.before[after as usize] = place;
            new_pairs.extend(self.note_pair(self.before[place as usize]));
            new_pairs.extend(self.note_pair(place));
        }
        new_pairs.sort_unstable();
        new_pairs.dedup();
        self.bound_pairs(new_pairs);
    }

    /// Counts a symbol's places down; its base ids.
    fn take_places(&mut self, symbol: SymbolId, num: usize) -> Vec<TokenId> {
        let Some(idx) = symbol.checked_sub(self.base_vocab_size) else { return vec![TokenId(symbol)] };
        let symbol = &mut self.merged[idx as usize];
        symbol.num_places = symbol.num_places.saturating_sub(num);
        symbol.base.clone()
    }
}
