use super::classes::{Class, Classes};

/// How a text is split into the words that pair merging never crosses: published regular expressions, each as a hand
/// written scanner that takes one look at every character.
pub(super) struct Pattern {
    family: Family,
    classes: Classes,
}

#[derive(Clone, Copy)]
enum Family {
    /// GPT-2's.
    Gpt2,
    /// GPT-4's, as Llama-3 and Qwen2 spell it: so many digits a word.
    Gpt4 { max_digits: usize },
}

/// Whether more text may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::base) enum End {
    /// The text ends here.
    Closed,
    /// More may come: a word that more text could lengthen, or divide otherwise, is not decided yet.
    Open,
}

const GPT4_DIGITS: [(&str, usize); 2] = [(r"\p{N}{1,3}", 3), (r"\p{N}", 1)];
const CONTRACTIONS: [&str; 7] = ["s", "t", "re", "ve", "m", "ll", "d"];
/// Bytes of the longest contraction: an apostrophe and two letters, or `ſ`, which folds to `s`.
const MAX_CONTRACTION_BYTES: usize = 3;

impl Pattern {
    /// GPT-2's pattern.
    pub(super) fn gpt2() -> Option<Self> {
        Some(Self { family: Family::Gpt2, classes: Classes::load()? })
    }

    /// The pattern that a regular expression spells; none for one that is not known here.
    pub(super) fn from_regex(regex: &str) -> Option<Self> {
        let max_digits = GPT4_DIGITS.iter().find(|(digits, _)| regex == gpt4_regex(digits))?.1;
        Some(Self { family: Family::Gpt4 { max_digits }, classes: Classes::load()? })
    }

    /// Where the word that begins at `start` ends; none where `text` ends there, or before that is decided.
    pub(super) fn word_end(&self, text: &str, start: usize, end: End) -> Option<usize> {
        let scan = Scan { classes: &self.classes, text, end };
        if start >= text.len() {
            return None;
        }
        match self.family {
            Family::Gpt2 => scan.gpt2(start),
            Family::Gpt4 { max_digits } => scan.gpt4(start, max_digits),
        }
    }
}

fn gpt4_regex(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

#[derive(Clone, Copy)]
struct Scan<'a> {
    classes: &'a Classes,
    text: &'a str,
    end: End,
}

impl Scan<'_> {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    fn gpt2(self, start: usize) -> Option<usize> {
        let first = self.text.as_bytes()[start];
        if first == b'\'' {
            let word = &self.text[start + 1..];
            if let Some(letters) = CONTRACTIONS.iter().find(|letters| word.starts_with(**letters)) {
                return Some(start + 1 + letters.len());
            }
            self.undecided_contraction(start)?;
        }
        let body = if first == b' ' { start + 1 } else { start };
        match self.class(body) {
            Some(class @ (Class::Letter | Class::Number | Class::Other)) => self.run(body, class),
            Some(Class::Space | Class::LineBreak) => self.spaces(start),
            None => self.at_end(body),
        }
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn gpt4(self, start: usize, max_digits: usize) -> Option<usize> {
        let first = self.text.as_bytes()[start];
        if first == b'\'' {
            if let Some(len) = folded_contraction(&self.text[start + 1..]) {
                return Some(start + 1 + len);
            }
            self.undecided_contraction(start)?;
        }
        let (class, len) = self.class_and_len(start)?;
        match class {
            Class::Letter => return self.run(start, Class::Letter),
            Class::Number => return self.digits(start, max_digits),
            Class::LineBreak => return self.spaces_to_line_break(start),
            Class::Space | Class::Other => {}
        }
        // Any one character may lead letters, a space may lead others.
        match self.class(start + len) {
            Some(Class::Letter) => self.run(start + len, Class::Letter),
            None if self.end == End::Open => None,
            next => match (class, next) {
                (Class::Other, _) => self.others(start),
                (_, Some(Class::Other)) if first == b' ' => self.others(start + 1),
                _ => self.spaces_to_line_break(start),
            },
        }
    }

    fn class(self, at: usize) -> Option<Class> {
        self.class_and_len(at).map(|(class, _)| class)
    }

    fn class_and_len(self, at: usize) -> Option<(Class, usize)> {
        let char = match self.text.as_bytes().get(at) {
            Some(byte) if byte.is_ascii() => char::from(*byte),
            _ => self.text.get(at..)?.chars().next()?,
        };
        Some((self.classes.of(char), char.len_utf8()))
    }

    /// A word that reaches the end of the text: decided only if nothing follows.
    fn at_end(self, at: usize) -> Option<usize> {
        if self.end == End::Open && at == self.text.len() { None } else { Some(at) }
    }

    /// Past the characters of one class.
    fn run(self, mut at: usize, class: Class) -> Option<usize> {
        while let Some((next, len)) = self.class_and_len(at)
            && next == class
        {
            at += len;
        }
        self.at_end(at)
    }

    fn digits(self, mut at: usize, max: usize) -> Option<usize> {
        for _ in 0..max {
            match self.class_and_len(at) {
                Some((Class::Number, len)) => at += len,
                _ => return self.at_end(at),
            }
        }
        Some(at)
    }

    /// `[^\s\p{L}\p{N}]+[\r\n]*`
    fn others(self, start: usize) -> Option<usize> {
        self.run(self.run(start, Class::Other)?, Class::LineBreak)
    }

    /// `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word after it.
    fn spaces(self, start: usize) -> Option<usize> {
        let (mut at, mut last) = (start, start);
        while let Some((Class::Space | Class::LineBreak, len)) = self.class_and_len(at) {
            last = at;
            at += len;
        }
        let end = self.at_end(at)?;
        Some(if end == self.text.len() || last == start { end } else { last })
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`: a run of spaces ends with its last line break, if there is one in it.
    fn spaces_to_line_break(self, start: usize) -> Option<usize> {
        let (mut at, mut after_break) = (start, None);
        while let Some((class @ (Class::Space | Class::LineBreak), len)) = self.class_and_len(at) {
            at += len;
            if class == Class::LineBreak {
                after_break = Some(at);
            }
        }
        self.at_end(at)?;
        after_break.map_or_else(|| self.spaces(start), Some)
    }

    /// An apostrophe near the end of an open text may still become a contraction.
    fn undecided_contraction(self, start: usize) -> Option<()> {
        let is_open = self.end == End::Open && start + MAX_CONTRACTION_BYTES >= self.text.len();
        if is_open { None } else { Some(()) }
    }
}

/// Bytes of the contraction at the beginning of `text`, whatever its case.
fn folded_contraction(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let first = chars.next()?;
    match (first.to_ascii_lowercase(), chars.next().map(|char| char.to_ascii_lowercase())) {
        // The long s folds to s, and nothing else outside ASCII to any of these letters.
        ('s' | 't' | 'm' | 'd' | 'ſ', _) => Some(first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fancy_regex::Regex;
    use proptest::prelude::*;

    use super::*;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn patterns() -> Vec<(Pattern, Regex)> {
        let gpt4 = GPT4_DIGITS.map(|(digits, _)| gpt4_regex(digits));
        let mut patterns: Vec<_> = gpt4
            .iter()
            .map(|regex| (Pattern::from_regex(regex).unwrap(), Regex::new(regex).unwrap()))
            .collect();
        patterns.push((Pattern::gpt2().unwrap(), Regex::new(GPT2).unwrap()));
        patterns
    }

    fn words(pattern: &Pattern, text: &str) -> Vec<usize> {
        std::iter::successors(pattern.word_end(text, 0, End::Closed), |at| {
            pattern.word_end(text, *at, End::Closed)
        })
        .collect()
    }

    /// Texts made of what the patterns tell apart.
    fn texts() -> impl Strategy<Value = String> {
        let pieces = [
            "'",
            "'s",
            "'S",
            "'ſ",
            "'re",
            "'LL",
            "'lx",
            "’s",
            " ",
            "  ",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{85}",
            "\n",
            "\r\n",
            "\r",
            "a",
            "Zß",
            "東京",
            "ʰ",
            "1",
            "23",
            "4567",
            "²",
            "٣",
            "!",
            "...",
            "_",
            "-",
            "\u{301}",
            "👩\u{200d}👧",
            "\0",
            "word",
            "don't",
            "\u{2028}",
        ];
        let piece = prop_oneof![
            3 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn they_split_as_the_regular_expressions_do(text in texts()) {
            for (pattern, regex) in patterns_once() {
                let expected: Vec<_> = regex.find_iter(&text).map(|found| found.unwrap().end()).collect();
                prop_assert_eq!(words(pattern, &text), expected, "{:?} by {}", text, regex.as_str());
            }
        }

        #[test]
        fn what_is_decided_early_stays_so(text in texts(), more in texts()) {
            let whole = format!("{text}{more}");
            for (pattern, _) in patterns_once() {
                let expected = words(pattern, &whole);
                let mut at = 0;
                while let Some(end) = pattern.word_end(&text, at, End::Open) {
                    prop_assert!(expected.contains(&end), "{:?}|{:?} at {}", text, more, at);
                    at = end;
                }
            }
        }
    }

    fn patterns_once() -> &'static [(Pattern, Regex)] {
        static PATTERNS: std::sync::LazyLock<Vec<(Pattern, Regex)>> = std::sync::LazyLock::new(patterns);
        &PATTERNS
    }

    #[test]
    fn a_regular_expression_that_is_not_known_is_said_to_be_so() {
        assert!(Pattern::from_regex(GPT2).is_none());
        assert!(Pattern::from_regex(r"\p{N}{1,2}").is_none());
    }
}
