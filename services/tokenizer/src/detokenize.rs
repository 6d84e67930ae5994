use std::collections::VecDeque;

use fused_vocabulary::{Decoder, TokenId, Vocabulary};

use crate::stop::{StopMatcher, StopText};

/// A token as the engine sampled it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SampledToken {
    pub(crate) id: TokenId,
    pub(crate) logprobs: Option<Logprobs>,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Logprobs {
    /// Of the token that stands there; none where there was no prediction.
    pub(crate) logprob: Option<f32>,
    /// The likeliest tokens, in descending order.
    pub(crate) top: Vec<(TokenId, Option<f32>)>,
}

/// A token with its place in the output.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlacedToken {
    pub(crate) token: SampledToken,
    /// Unicode code points of the output before the token's first whole character.
    pub(crate) text_offset: usize,
}

/// New text of one sequence, and the tokens it came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: Vec<PlacedToken>,
}

/// One sequence on its way from token ids to text.
///
/// Text and tokens leave together: a token whose text is held back, because a stop string may be beginning in it, waits
/// too. In the end every token that was drawn has left once, those of a stop string and the one that ended the sequence
/// included: clients score and count all of them. What has no part in the text stands at its end.
#[derive(Debug)]
pub(crate) struct Sequence {
    decoder: Decoder,
    matcher: StopMatcher,
    /// Stop strings are not looked for in the text of so many first tokens.
    min_tokens: usize,
    /// Whether a token that ends the sequence is part of the text.
    shows_end: bool,
    /// Decoded so far, held back text included.
    decoded: Position,
    /// What has left of it.
    released: Position,
    waiting: VecDeque<Waiting>,
    /// A token's text while it is looked at; kept, so that none is made for every token.
    text: String,
    num_tokens: usize,
    num_base_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Position {
    bytes: usize,
    chars: usize,
}

#[derive(Debug)]
struct Waiting {
    token: PlacedToken,
    /// Where its text ends in the decoded text.
    end: usize,
}

impl Sequence {
    /// `first_offset` is what text offsets begin with: the code points of an echoed prompt.
    pub(crate) fn new(
        decoder: Decoder,
        matcher: StopMatcher,
        min_tokens: usize,
        first_offset: usize,
    ) -> Self {
        let start = Position { bytes: 0, chars: first_offset };
        Self {
            decoder,
            shows_end: matcher.text() == StopText::Include,
            matcher,
            min_tokens,
            decoded: start,
            released: start,
            waiting: VecDeque::new(),
            text: String::new(),
            num_tokens: 0,
            num_base_tokens: 0,
        }
    }

    /// Takes tokens until one completes a stop string, which is returned; the tokens after that one are dropped.
    pub(crate) fn push(
        &mut self,
        vocabulary: &Vocabulary,
        tokens: Vec<SampledToken>,
    ) -> (Piece, Option<String>) {
        let mut piece = Piece::default();
        for token in tokens {
            let text_offset = self.decoded.chars;
            let hidden = self.decode(vocabulary, token.id);
            let hit = self.advance(hidden.as_deref(), &mut piece);
            let token = PlacedToken { token, text_offset };
            self.waiting.push_back(Waiting { token, end: self.decoded.bytes });
            if hit.is_some() {
                self.release_all(&mut piece);
                return (piece, hit);
            }
        }
        self.release(&mut piece);
        (piece, None)
    }

    /// Takes the token that has ended the sequence, of which the text shows nothing unless that is asked for.
    pub(crate) fn push_end(
        &mut self,
        vocabulary: &Vocabulary,
        token: SampledToken,
    ) -> (Piece, Option<String>) {
        if self.shows_end {
            return self.push(vocabulary, vec![token]);
        }
        let (mut piece, hit) = self.finish();
        self.count(vocabulary, token.id);
        piece.tokens.push(PlacedToken { token, text_offset: self.released.chars });
        (piece, hit)
    }

    /// Ends the text: whatever was held back leaves. The end of a broken character may complete a stop string even now.
    pub(crate) fn finish(&mut self) -> (Piece, Option<String>) {
        let mut piece = Piece::default();
        self.text.clear();
        self.decoder.finish(&mut self.text);
        let hit = self.advance(None, &mut piece);
        if hit.is_none() {
            let num_before = piece.text.len();
            self.matcher.finish(&mut piece.text);
            self.released.advance(&piece.text[num_before..]);
        }
        self.release_all(&mut piece);
        (piece, hit)
    }

    /// Tokens taken, the one that completed a stop string included.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Base tokens that those stand for.
    pub(crate) fn num_base_tokens(&self) -> usize {
        self.num_base_tokens
    }

    fn count(&mut self, vocabulary: &Vocabulary, id: TokenId) {
        self.num_tokens += 1;
        self.num_base_tokens += vocabulary.num_base_tokens(id);
    }

    /// Turns a token into text. Returns that of a special one which the output does not show.
    fn decode(&mut self, vocabulary: &Vocabulary, id: TokenId) -> Option<String> {
        self.count(vocabulary, id);
        self.text.clear();
        if self.decoder.skips(vocabulary, id) {
            return Some(String::from_utf8_lossy(vocabulary.token_bytes(id)).into_owned());
        }
        self.decoder.push(vocabulary, id, &mut self.text);
        None
    }

    /// Takes the text that has just been decoded, or the one that is only looked at.
    fn advance(&mut self, hidden: Option<&str>, piece: &mut Piece) -> Option<String> {
        self.decoded.advance(&self.text);
        let num_before = piece.text.len();
        let hit = match hidden {
            _ if self.num_tokens <= self.min_tokens => {
                piece.text.push_str(&self.text);
                None
            }
            Some(hidden) => self.matcher.push_hidden(hidden, &mut piece.text),
            None => self.matcher.push(&self.text, &mut piece.text),
        };
        self.released.advance(&piece.text[num_before..]);
        hit
    }

    fn release(&mut self, piece: &mut Piece) {
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.end <= self.released.bytes) {
            piece.tokens.push(waiting.token);
        }
    }

    /// The text has ended; what lies behind a cut stands at its end.
    fn release_all(&mut self, piece: &mut Piece) {
        let end = self.released.chars;
        piece.tokens.extend(
            self.waiting.drain(..).map(|Waiting { token, .. }| PlacedToken {
                text_offset: token.text_offset.min(end),
                ..token
            }),
        );
    }
}

impl Position {
    fn advance(&mut self, text: &str) {
        self.bytes += text.len();
        self.chars += text.chars().count();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use fused_vocabulary::{SpecialText, SpecialTokens};
    use proptest::prelude::*;

    use super::*;
    use crate::stop::{StopStrings, StopText};

    fn vocabulary() -> &'static Vocabulary {
        static DEMO: LazyLock<Vocabulary> = LazyLock::new(|| {
            let json = std::fs::read(fused_testkit::model_dir("demo-llama").join("tokenizer.json")).unwrap();
            Vocabulary::load(&json, None).unwrap()
        });
        &DEMO
    }

    fn tokens(text: &str) -> Vec<SampledToken> {
        let ids = vocabulary().encode(text, SpecialTokens::Omit).unwrap().ids;
        ids.into_iter().map(|id| SampledToken { id, logprobs: None }).collect()
    }

    /// One token a byte, so that characters are cut between tokens.
    fn byte_tokens(text: &str) -> Vec<SampledToken> {
        let is_byte = |id: &TokenId, byte: u8| vocabulary().token_bytes(*id) == [byte];
        let id = |byte| (1..8192).map(TokenId).find(|id| is_byte(id, byte)).unwrap();
        text.bytes().map(|byte| SampledToken { id: id(byte), logprobs: None }).collect()
    }

    fn sequence(stops: &[&str], min_tokens: usize) -> Sequence {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let matcher = StopStrings::new(stops, StopText::Cut).unwrap().matcher();
        Sequence::new(Decoder::new(vocabulary(), SpecialText::Skip), matcher, min_tokens, 0)
    }

    fn offsets(piece: &Piece) -> Vec<usize> {
        piece.tokens.iter().map(|token| token.text_offset).collect()
    }

    #[test]
    fn tokens_of_a_cut_character_share_its_offset() {
        let mut sequence = sequence(&[], 0);
        let (piece, _) = sequence.push(vocabulary(), byte_tokens("aä東b"));
        assert_eq!(piece.text, "aä東b");
        assert_eq!(offsets(&piece), [0, 1, 1, 2, 2, 2, 3]);
    }

    #[test]
    fn a_character_never_completed_is_replaced_at_the_end() {
        let mut sequence = sequence(&[], 0);
        let mut tokens = byte_tokens("a東");
        tokens.pop();
        assert_eq!(sequence.push(vocabulary(), tokens).0.text, "a");
        let (piece, hit) = sequence.finish();
        assert_eq!((piece.text.as_str(), hit), ("\u{FFFD}", None));
    }

    #[test]
    fn tokens_wait_with_their_text_and_those_of_the_stop_string_leave_at_its_end() {
        let mut sequence = sequence(&["STOP"], 0);
        let (piece, hit) = sequence.push(vocabulary(), byte_tokens("go ST"));
        assert_eq!((piece.text.as_str(), offsets(&piece), hit), ("go ", vec![0, 1, 2], None));
        let (piece, hit) = sequence.push(vocabulary(), byte_tokens("OPxyz"));
        assert_eq!((piece.text.as_str(), offsets(&piece), hit.as_deref()), ("", vec![3; 4], Some("STOP")));
        assert_eq!(sequence.num_tokens(), 7, "tokens behind the stop string do not count");
    }

    #[test]
    fn a_token_through_which_the_cut_goes_leaves_whole() {
        let text = " directory";
        assert_eq!(tokens(text).len(), 1, "the test needs a token with a stop string inside");
        let mut sequence = sequence(&["rect"], 0);
        let (piece, hit) = sequence.push(vocabulary(), tokens(text));
        assert_eq!((piece.text.as_str(), piece.tokens.len(), hit.as_deref()), (" di", 1, Some("rect")));
    }

    #[test]
    fn held_back_text_leaves_at_the_end() {
        let mut sequence = sequence(&["STOP"], 0);
        assert_eq!(sequence.push(vocabulary(), byte_tokens("ST")).0, Piece::default());
        let (piece, hit) = sequence.finish();
        assert_eq!((piece.text.as_str(), offsets(&piece), hit), ("ST", vec![0, 1], None));
    }

    #[test]
    fn the_token_that_ends_the_sequence_leaves_last_and_its_text_where_asked() {
        let end = || SampledToken { id: TokenId(0), logprobs: None };
        let stop_strings = |text| StopStrings::new(vec!["STOP".to_owned()], text).unwrap();
        for (stop, special, shown) in [
            (StopText::Cut, SpecialText::Keep, ""),
            (StopText::Include, SpecialText::Skip, ""),
            (StopText::Include, SpecialText::Keep, "<|endoftext|>"),
        ] {
            let matcher = stop_strings(stop).matcher();
            let mut sequence = Sequence::new(Decoder::new(vocabulary(), special), matcher, 0, 0);
            let mut broken = byte_tokens("a ST東");
            broken.pop();
            let (mut all, hit) = sequence.push(vocabulary(), broken);
            assert_eq!((all.text.as_str(), hit), ("a ", None));
            for (piece, hit) in [sequence.push_end(vocabulary(), end()), sequence.finish()] {
                assert_eq!(hit, None);
                all.text.push_str(&piece.text);
                all.tokens.extend(piece.tokens);
            }
            assert_eq!(all.text, format!("a ST\u{FFFD}{shown}"));
            // A token that is text begins where the text before it is certain.
            let at_end = if stop == StopText::Include { 4 } else { 5 };
            assert_eq!(offsets(&all), [0, 1, 2, 3, 4, 4, at_end]);
            assert_eq!(sequence.num_tokens(), 7);
        }
    }

    #[test]
    fn what_was_held_back_leaves_once_where_a_token_ends_the_sequence() {
        let mut sequence = sequence(&["STOP"], 0);
        assert_eq!(sequence.push(vocabulary(), byte_tokens("ST")).0, Piece::default());
        let (piece, _) = sequence.push_end(vocabulary(), SampledToken { id: TokenId(0), logprobs: None });
        assert_eq!((piece.text.as_str(), offsets(&piece)), ("ST", vec![0, 1, 2]));
        assert_eq!(sequence.finish(), (Piece::default(), None));
    }

    #[test]
    fn a_special_tokens_text_stops_though_it_is_skipped() {
        for (stop, text) in [("<|endoftext|>", "ab"), ("b<|endoftext|>a", "a"), ("text|>ab", "ab")] {
            let mut sequence = sequence(&[stop], 0);
            let mut tokens = byte_tokens("ab");
            tokens.push(SampledToken { id: TokenId(0), logprobs: None });
            tokens.extend(byte_tokens("ab"));
            let (piece, hit) = sequence.push(vocabulary(), tokens);
            assert_eq!((piece.text.as_str(), hit.as_deref()), (text, Some(stop)));
            assert_eq!(piece.tokens.len(), sequence.num_tokens());
        }
    }

    #[test]
    fn stop_strings_wait_for_min_tokens() {
        let mut sequence = sequence(&["a"], 3);
        let (piece, hit) = sequence.push(vocabulary(), byte_tokens("aaaa"));
        assert_eq!((piece.text.as_str(), hit.as_deref()), ("aaa", Some("a")));
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text_and_offsets_to_its_tokens(
            text in "[ab ä東\n]{0,20}",
            sizes in prop::collection::vec(1_usize..4, 0..20),
            stop in "[ab ]{1,3}",
        ) {
            let mut sequence = sequence(&[&stop], 0);
            let (mut rest, mut out, mut hit) = (byte_tokens(&text), Piece::default(), None);
            for size in sizes.into_iter().chain([usize::MAX]) {
                let after = rest.split_off(size.min(rest.len()));
                let (piece, found) = sequence.push(vocabulary(), std::mem::replace(&mut rest, after));
                out.text.push_str(&piece.text);
                out.tokens.extend(piece.tokens);
                hit = found;
                if hit.is_some() {
                    break;
                }
            }
            if hit.is_none() {
                let (piece, _) = sequence.finish();
                out.text.push_str(&piece.text);
                out.tokens.extend(piece.tokens);
            }
            let expected = text.split(stop.as_str()).next().unwrap();
            prop_assert_eq!(&out.text, expected);
            prop_assert_eq!(hit.is_some(), text.contains(&stop));
            // One token a byte: those of the text stand at their characters, those of the stop string at its end.
            let chars = expected.char_indices().enumerate();
            let at_end = if hit.is_some() { stop.len() } else { 0 };
            let at_end = std::iter::repeat_n(expected.chars().count(), at_end);
            let expected = chars.flat_map(|(idx, (_, c))| std::iter::repeat_n(idx, c.len_utf8())).chain(at_end);
            prop_assert_eq!(offsets(&out), expected.collect::<Vec<_>>());
        }
    }
}
