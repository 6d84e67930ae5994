//! What Python's string methods say, where the reference's choice hangs on them.

/// Words of a text as `len(text.split())` counts them: runs of anything but white space. Python's white space is
/// Unicode's and the four separators U+001C to U+001F.
pub(super) fn num_words(text: &str) -> usize {
    text.split(is_space).filter(|word| !word.is_empty()).count()
}

fn is_space(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{1C}'..='\u{1F}')
}

/// `text.isdigit()`: not empty, and every character a digit. Digits are those of all scripts and also superscripts,
/// subscripts and circled digits, but no fractions, Roman numerals or Han numerals.
pub(super) fn is_digit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| DIGITS.binary_search_by(|range| order(range, char)).is_ok())
}

fn order(range: &(char, char), char: char) -> std::cmp::Ordering {
    if range.1 < char {
        std::cmp::Ordering::Less
    } else if range.0 > char {
        std::cmp::Ordering::Greater
    } else {
        std::cmp::Ordering::Equal
    }
}

/// The characters whose Unicode property Numeric_Type is Decimal or Digit (DerivedNumericType.txt), of Unicode 14, which
/// is what the reference's Python 3.11 has; first and last of each run.
#[rustfmt::skip]
const DIGITS: [(char, char); 81] = [
    ('\u{30}', '\u{39}'), ('\u{B2}', '\u{B3}'), ('\u{B9}', '\u{B9}'), ('\u{660}', '\u{669}'),
    ('\u{6F0}', '\u{6F9}'), ('\u{7C0}', '\u{7C9}'), ('\u{966}', '\u{96F}'), ('\u{9E6}', '\u{9EF}'),
    ('\u{A66}', '\u{A6F}'), ('\u{AE6}', '\u{AEF}'), ('\u{B66}', '\u{B6F}'), ('\u{BE6}', '\u{BEF}'),
    ('\u{C66}', '\u{C6F}'), ('\u{CE6}', '\u{CEF}'), ('\u{D66}', '\u{D6F}'), ('\u{DE6}', '\u{DEF}'),
    ('\u{E50}', '\u{E59}'), ('\u{ED0}', '\u{ED9}'), ('\u{F20}', '\u{F29}'), ('\u{1040}', '\u{1049}'),
    ('\u{1090}', '\u{1099}'), ('\u{1369}', '\u{1371}'), ('\u{17E0}', '\u{17E9}'), ('\u{1810}', '\u{1819}'),
    ('\u{1946}', '\u{194F}'), ('\u{19D0}', '\u{19DA}'), ('\u{1A80}', '\u{1A89}'), ('\u{1A90}', '\u{1A99}'),
    ('\u{1B50}', '\u{1B59}'), ('\u{1BB0}', '\u{1BB9}'), ('\u{1C40}', '\u{1C49}'), ('\u{1C50}', '\u{1C59}'),
    ('\u{2070}', '\u{2070}'), ('\u{2074}', '\u{2079}'), ('\u{2080}', '\u{2089}'), ('\u{2460}', '\u{2468}'),
    ('\u{2474}', '\u{247C}'), ('\u{2488}', '\u{2490}'), ('\u{24EA}', '\u{24EA}'), ('\u{24F5}', '\u{24FD}'),
    ('\u{24FF}', '\u{24FF}'), ('\u{2776}', '\u{277E}'), ('\u{2780}', '\u{2788}'), ('\u{278A}', '\u{2792}'),
    ('\u{A620}', '\u{A629}'), ('\u{A8D0}', '\u{A8D9}'), ('\u{A900}', '\u{A909}'), ('\u{A9D0}', '\u{A9D9}'),
    ('\u{A9F0}', '\u{A9F9}'), ('\u{AA50}', '\u{AA59}'), ('\u{ABF0}', '\u{ABF9}'), ('\u{FF10}', '\u{FF19}'),
    ('\u{104A0}', '\u{104A9}'), ('\u{10A40}', '\u{10A43}'), ('\u{10D30}', '\u{10D39}'),
    ('\u{10E60}', '\u{10E68}'), ('\u{11052}', '\u{1105A}'), ('\u{11066}', '\u{1106F}'),
    ('\u{110F0}', '\u{110F9}'), ('\u{11136}', '\u{1113F}'), ('\u{111D0}', '\u{111D9}'),
    ('\u{112F0}', '\u{112F9}'), ('\u{11450}', '\u{11459}'), ('\u{114D0}', '\u{114D9}'),
    ('\u{11650}', '\u{11659}'), ('\u{116C0}', '\u{116C9}'), ('\u{11730}', '\u{11739}'),
    ('\u{118E0}', '\u{118E9}'), ('\u{11950}', '\u{11959}'), ('\u{11C50}', '\u{11C59}'),
    ('\u{11D50}', '\u{11D59}'), ('\u{11DA0}', '\u{11DA9}'), ('\u{16A60}', '\u{16A69}'),
    ('\u{16AC0}', '\u{16AC9}'), ('\u{16B50}', '\u{16B59}'), ('\u{1D7CE}', '\u{1D7FF}'),
    ('\u{1E140}', '\u{1E149}'), ('\u{1E2F0}', '\u{1E2F9}'), ('\u{1E950}', '\u{1E959}'),
    ('\u{1F100}', '\u{1F10A}'), ('\u{1FBF0}', '\u{1FBF9}'),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_python_splits_them() {
        assert_eq!(num_words(""), 0);
        assert_eq!(num_words(" \t\r\n"), 0);
        assert_eq!(num_words("  a b\u{A0}c\u{1C}d\u{1F}e\u{85}f\u{3000}g\u{2028}h "), 8);
        // Neither a zero-width space nor a byte-order mark divides words.
        assert_eq!(num_words("a\u{200B}b\u{FEFF}c"), 1);
    }

    #[test]
    fn digits_are_those_of_python() {
        for text in ["0", "42", "²", "¹³", "٣", "①", "₉", "９", "\u{1D7CE}"] {
            assert!(is_digit(text), "{text}");
        }
        for text in ["", "½", "Ⅷ", "一", "4a", "1.0", "-1", " 1", "▁1", "Ġ1", "㉈"] {
            assert!(!is_digit(text), "{text}");
        }
    }
}
