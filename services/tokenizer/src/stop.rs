use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use fused_status::{Error, Result};

/// The most stop strings of a request.
const MAX_STRINGS: usize = 64;
/// The longest stop string.
const MAX_STRING_BYTES: usize = 1024;
/// All of a request's stop strings together: an automaton of so many states is made in well under a millisecond.
const MAX_TOTAL_BYTES: usize = 4096;

/// What happens to the stop string itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopText {
    /// The text ends before it.
    Cut,
    /// The text ends with it.
    Include,
}

/// A request's stop strings, ready to be looked for.
#[derive(Clone, Debug)]
pub(crate) struct StopStrings {
    strings: Arc<[String]>,
    text: StopText,
    /// None where there are no strings.
    automaton: Option<Arc<StopAutomaton>>,
}

#[derive(Debug)]
struct StopAutomaton {
    nfa: NFA,
    start: StateID,
    /// By state: how many bytes of the text before it are the beginning of some stop string. States not in here: none.
    depths: HashMap<StateID, usize>,
}

impl StopStrings {
    pub(crate) fn new(strings: Vec<String>, text: StopText) -> Result<Self> {
        if strings.len() > MAX_STRINGS {
            let message = format!("at most {MAX_STRINGS} stop strings are allowed, got {}", strings.len());
            return Err(Error::invalid("stop", message));
        }
        if strings.iter().any(String::is_empty) {
            return Err(Error::invalid("stop", "a stop string must not be empty"));
        }
        if let Some(long) = strings.iter().find(|string| string.len() > MAX_STRING_BYTES) {
            let message = format!("a stop string has {} bytes, over {MAX_STRING_BYTES}", long.len());
            return Err(Error::invalid("stop", message));
        }
        let total_bytes: usize = strings.iter().map(String::len).sum();
        if total_bytes > MAX_TOTAL_BYTES {
            let message =
                format!("all stop strings have {total_bytes} bytes together, over {MAX_TOTAL_BYTES}");
            return Err(Error::invalid("stop", message));
        }
        let automaton = if strings.is_empty() { None } else { Some(Arc::new(StopAutomaton::new(&strings)?)) };
        Ok(Self { strings: strings.into(), text, automaton })
    }

    pub(crate) fn matcher(&self) -> StopMatcher {
        StopMatcher {
            state: self.automaton.as_ref().map(|automaton| automaton.start),
            strings: self.clone(),
            held: String::new(),
            hidden: Vec::new(),
        }
    }
}

impl StopAutomaton {
    fn new(strings: &[String]) -> Result<Self> {
        // Standard matching reports a string the moment its last byte is there.
        let nfa = NFA::builder().match_kind(MatchKind::Standard).build(strings);
        let nfa = nfa.map_err(|error| Error::internal(&error))?;
        let start = nfa.start_state(Anchored::No).map_err(|error| Error::internal(&error))?;
        let mut depths = HashMap::new();
        for string in strings {
            let mut state = start;
            for (depth, byte) in (1..).zip(string.bytes()) {
                state = nfa.next_state(Anchored::No, state, byte);
                depths.insert(state, depth);
            }
        }
        Ok(Self { nfa, start, depths })
    }

    /// The stop string that ends in this state; of several the longest, which began first.
    fn longest_match(&self, state: StateID) -> Option<usize> {
        let matches = 0..if self.nfa.is_match(state) { self.nfa.match_len(state) } else { 0 };
        let patterns = matches.map(|idx| self.nfa.match_pattern(state, idx));
        patterns.max_by_key(|pattern| self.nfa.pattern_len(*pattern)).map(|pattern| pattern.as_usize())
    }
}

/// Looks for stop strings in a growing text. Only the longest end of the text that is the beginning of a stop string is
/// held back; how the text is cut into pieces makes no difference.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    strings: StopStrings,
    state: Option<StateID>,
    held: String,
    /// Where in it no output shows the text.
    hidden: Vec<Range<usize>>,
}

impl StopMatcher {
    /// What happens to the stop string itself.
    pub(crate) fn text(&self) -> StopText {
        self.strings.text
    }

    /// Takes text and appends what is certain to be part of the output. A hit is the stop string that is complete first;
    /// then nothing is held any more, and nothing may be pushed.
    pub(crate) fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        let (Some(automaton), Some(mut state)) = (&self.strings.automaton, self.state) else {
            out.push_str(text);
            return None;
        };
        let num_held = self.held.len();
        self.held.push_str(text);
        for (end, byte) in (num_held + 1..).zip(text.bytes()) {
            state = automaton.nfa.next_state(Anchored::No, state, byte);
            if let Some(idx) = automaton.longest_match(state) {
                let hit = self.strings.strings[idx].clone();
                self.release(end - hit.len(), out);
                if self.strings.text == StopText::Include {
                    out.push_str(&hit);
                }
                self.held.clear();
                self.hidden.clear();
                return Some(hit);
            }
        }
        self.state = Some(state);
        // The beginning of a stop string begins at a character, in the string and so in the text.
        let num_certain = self.held.len() - automaton.depths.get(&state).copied().unwrap_or(0);
        self.release(num_certain, out);
        None
    }

    /// Takes text in which stop strings are looked for, though the output does not show it: that of a special token.
    pub(crate) fn push_hidden(&mut self, text: &str, out: &mut String) -> Option<String> {
        self.state?;
        let start = self.held.len();
        self.hidden.push(start..start + text.len());
        self.push(text, out)
    }

    /// Appends what was held back: the text has ended. A text that goes on all the same begins anew.
    pub(crate) fn finish(&mut self, out: &mut String) {
        self.release(self.held.len(), out);
        self.state = self.strings.automaton.as_ref().map(|automaton| automaton.start);
    }

    /// Appends what is shown of so many first bytes that were held back.
    fn release(&mut self, num_bytes: usize, out: &mut String) {
        let mut shown = 0;
        for hidden in &mut self.hidden {
            out.push_str(&self.held[shown..hidden.start.min(num_bytes)]);
            shown = hidden.end.min(num_bytes);
            *hidden = hidden.start.saturating_sub(num_bytes)..hidden.end.saturating_sub(num_bytes);
        }
        out.push_str(&self.held[shown..num_bytes]);
        self.hidden.retain(|hidden| !hidden.is_empty());
        self.held.drain(..num_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(strings: &[&str], text: StopText) -> StopStrings {
        StopStrings::new(strings.iter().map(|string| (*string).to_owned()).collect(), text).unwrap()
    }

    /// The output and the hit, by looking at every prefix of the text.
    fn naive(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in (1..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(*stop));
            if let Some(hit) = ending.max_by_key(|stop| stop.len()) {
                return (text[..end - hit.len()].to_owned(), Some(hit.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let (mut pieces, mut rest) = (Vec::new(), chars.as_slice());
        for cut in cuts {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece.iter().collect());
            rest = after;
        }
        pieces.push(rest.iter().collect());
        pieces
    }

    #[test]
    fn a_stop_string_over_many_pieces_is_cut() {
        let mut matcher = strings(&["\n\nUser:"], StopText::Cut).matcher();
        let mut out = String::new();
        for piece in ["fine", ".\n", "\n", "Use"] {
            assert_eq!(matcher.push(piece, &mut out), None);
        }
        assert_eq!(out, "fine.");
        assert_eq!(matcher.push("r: hello", &mut out).as_deref(), Some("\n\nUser:"));
        assert_eq!(out, "fine.");
    }

    #[test]
    fn a_false_alarm_is_released_at_once() {
        let mut matcher = strings(&["abcd"], StopText::Cut).matcher();
        let mut out = String::new();
        assert_eq!(matcher.push("xabc", &mut out), None);
        assert_eq!(out, "x");
        assert_eq!(matcher.push("ab", &mut out), None);
        assert_eq!(out, "xabc");
        matcher.finish(&mut out);
        assert_eq!(out, "xabcab");
        assert_eq!(matcher.push("cd", &mut out), None, "nothing is left of what was held");
        assert_eq!(out, "xabcabcd");
    }

    #[test]
    fn it_is_included_where_asked() {
        let mut out = String::new();
        let hit = strings(&["b", "ab"], StopText::Include).matcher().push("xaby", &mut out);
        assert_eq!((out.as_str(), hit.as_deref()), ("xab", Some("ab")));
    }

    #[test]
    fn hidden_text_is_matched_and_not_shown() {
        let mut matcher = strings(&["a<x>b", "<y>"], StopText::Cut).matcher();
        let mut out = String::new();
        assert_eq!(matcher.push("1a", &mut out), None);
        assert_eq!(matcher.push_hidden("<x>", &mut out), None);
        assert_eq!(out, "1", "what may become a stop string is held back");
        assert_eq!(matcher.push("c2a", &mut out), None);
        assert_eq!(out, "1ac2");
        assert_eq!(matcher.push_hidden("<x>", &mut out), None);
        assert_eq!(matcher.push("b3", &mut out).as_deref(), Some("a<x>b"));
        assert_eq!(out, "1ac2");
        let mut matcher = strings(&["<y>"], StopText::Include).matcher();
        let mut out = String::new();
        assert_eq!(matcher.push_hidden("<x>", &mut out), None);
        assert_eq!(matcher.push_hidden("<y>", &mut out).as_deref(), Some("<y>"));
        assert_eq!(out, "<y>", "it was asked for");
        let mut out = String::new();
        assert_eq!(strings(&[], StopText::Cut).matcher().push_hidden("<x>", &mut out), None);
        assert_eq!(out, "");
    }

    #[test]
    fn bounds_are_held() {
        let new = |strings| StopStrings::new(strings, StopText::Cut);
        assert!(new(vec!["x".into(); 64]).is_ok());
        assert!(new(vec!["x".into(); 65]).is_err());
        assert!(new(vec![String::new()]).is_err());
        assert!(new(vec!["x".repeat(1024)]).is_ok());
        assert!(new(vec!["x".repeat(1025)]).is_err());
        assert!(new(vec!["x".repeat(1024); 4]).is_ok());
        let error = new(vec!["x".repeat(1000); 5]).unwrap_err();
        assert_eq!(error.param(), Some("stop"));
        assert!(error.message().contains("5000 bytes together, over 4096"), "{error}");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_naive_answer_and_holds_back_the_least(
            stops in prop::collection::vec("[abä]{1,4}", 0..5),
            text in "[abcä]{0,24}",
            cuts in prop::collection::vec(0_usize..4, 0..12),
        ) {
            let mut matcher = StopStrings::new(stops.clone(), StopText::Cut).unwrap().matcher();
            let (mut out, mut pushed, mut hit) = (String::new(), String::new(), None);
            for piece in pieces(&text, &cuts) {
                pushed.push_str(&piece);
                hit = matcher.push(&piece, &mut out);
                if hit.is_some() {
                    break;
                }
                // Held back is the longest end of the text that a stop string begins with, no more and no less.
                let ends = pushed.char_indices().map(|(idx, _)| &pushed[idx..]);
                let longest = ends.filter(|end| stops.iter().any(|stop| stop.starts_with(*end))).map(str::len).max();
                prop_assert_eq!(pushed.len() - out.len(), longest.unwrap_or(0));
            }
            if hit.is_none() {
                matcher.finish(&mut out);
            }
            prop_assert_eq!((out, hit), naive(&stops, &text));
        }
    }
}
