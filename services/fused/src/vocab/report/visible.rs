//! White space and characters that show nothing, or that change how others are shown, made visible.

use serde::Serialize;

/// A piece of a text: its characters, or a mark that stands for one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Part {
    pub(super) text: String,
    pub(super) is_mark: bool,
}

/// Whether marks replace white space, or only stand beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In a table: every space is a mark, and there are no lines.
    Cell,
    /// In running text: spaces are spaces, and a line still ends after its mark.
    Running,
}

/// Cuts a text into marks and what stands between them.
pub(super) fn parts(text: &str, layout: Layout) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for char in text.chars() {
        let (text, is_mark) = match (char, layout) {
            (' ', Layout::Cell) => ("·".to_owned(), true),
            ('\n', Layout::Cell) => ("↵".to_owned(), true),
            ('\n', Layout::Running) => ("↵\n".to_owned(), true),
            ('\t', _) => ("⇥".to_owned(), true),
            _ if is_unseen(char) => (format!("U+{:04X}", char as u32), true),
            _ => (char.to_string(), false),
        };
        match parts.last_mut() {
            Some(last) if last.is_mark == is_mark => last.text.push_str(&text),
            _ => parts.push(Part { text, is_mark }),
        }
    }
    parts
}

/// The same as plain text, for where there can be no marks.
pub(super) fn plain(text: &str) -> String {
    parts(text, Layout::Cell).into_iter().map(|part| part.text).collect()
}

/// Controls, and characters that would turn the text around them or hide in it.
fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{A0}' | '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}')
        || matches!(char, '\u{2028}'..='\u{202F}' | '\u{2060}'..='\u{206F}' | '\u{3000}' | '\u{FEFF}')
        || matches!(char, '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_marked() {
        assert_eq!(plain(" a\t\nb  "), "·a⇥↵b··");
        let marked: Vec<_> = parts("a  b", Layout::Cell).into_iter().map(|part| part.is_mark).collect();
        assert_eq!(marked, [false, true, false]);
        assert_eq!(parts("a b\n", Layout::Running)[1].text, "↵\n");
        assert_eq!(parts("a b", Layout::Running).len(), 1);
    }

    #[test]
    fn what_hides_or_turns_text_is_named() {
        assert_eq!(plain("a\u{202E}b\u{0}\u{200B}\u{7f}"), "aU+202EbU+0000U+200BU+007F");
        assert_eq!(plain("ä東👩"), "ä東👩");
    }
}
