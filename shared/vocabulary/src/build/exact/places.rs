use super::super::{BuildRequest, Lines, Words};
use crate::TokenId;
use crate::base::{BaseTokenizer, Kind};

/// Where in an n-token a base token may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: no n-token reaches across it.
    Nowhere,
    /// At its beginning only.
    First,
    /// Anywhere.
    Any,
}

/// By base id. Special and added tokens stay alone, for chat templates and stop strings begin and end at them.
pub(super) fn of_base_tokens(base: &BaseTokenizer, request: &BuildRequest<'_>) -> Vec<Place> {
    let place = |id| match base.kind(id) {
        Kind::Learned => of_bytes(base.bytes(id), request.words, request.lines),
        _ => Place::Nowhere,
    };
    (0..base.vocab_size() as u32).map(|id| place(TokenId(id))).collect()
}

fn of_bytes(bytes: &[u8], words: Words, lines: Lines) -> Place {
    let has_space_inside = || bytes.trim_ascii_start().iter().any(u8::is_ascii_whitespace);
    match (words, lines) {
        (_, Lines::Within) if bytes.contains(&b'\n') => Place::Nowhere,
        (Words::Within, _) if has_space_inside() => Place::Nowhere,
        (Words::Within, _) if bytes.first().is_some_and(u8::is_ascii_whitespace) => Place::First,
        _ => Place::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_of_words_and_lines_are_kept() {
        use Place::*;
        let table = [
            ("the", [Any, Any, Any]),
            (" the", [First, Any, First]),
            ("the ", [Nowhere, Any, Nowhere]),
            ("\n", [First, Nowhere, Nowhere]),
            (";\n", [Nowhere, Nowhere, Nowhere]),
            ("", [Any, Any, Any]),
        ];
        for (text, expected) in table {
            let place = |words, lines| of_bytes(text.as_bytes(), words, lines);
            let places = [
                place(Words::Within, Lines::Cross),
                place(Words::Cross, Lines::Within),
                place(Words::Within, Lines::Within),
            ];
            assert_eq!(places, expected, "{text:?}");
            assert_eq!(place(Words::Cross, Lines::Cross), Any, "{text:?}");
        }
    }
}
