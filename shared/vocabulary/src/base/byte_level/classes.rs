use regex_syntax::hir::{Class as HirClass, HirKind};

/// What a splitting pattern sees of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s`, but for the next two.
    Space,
    /// `[\r\n]`.
    LineBreak,
    /// All the rest.
    Other,
}

/// The class of every character. The tables come from the library that the `tokenizers` crate's regular expressions
/// are made with, so that both mean the same version of Unicode.
pub(super) struct Classes {
    /// By the upper bits of a code point: which block of `classes` it lies in. Most of Unicode shares a few blocks.
    blocks: Vec<u16>,
    classes: Vec<[Class; BLOCK]>,
}

const BLOCK: usize = 256;
const NUM_BLOCKS: usize = (char::MAX as usize + 1) / BLOCK;

impl Classes {
    /// Nothing where the library does not know the classes, which a test excludes.
    pub(super) fn load() -> Option<Self> {
        let mut flat = vec![Class::Other; NUM_BLOCKS * BLOCK];
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)]
        {
            let HirKind::Class(HirClass::Unicode(ranges)) = regex_syntax::parse(pattern).ok()?.into_kind()
            else {
                return None;
            };
            for range in ranges.ranges() {
                flat[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        flat['\r' as usize] = Class::LineBreak;
        flat['\n' as usize] = Class::LineBreak;

        let (mut blocks, mut classes) = (Vec::with_capacity(NUM_BLOCKS), Vec::<[Class; BLOCK]>::new());
        for block in flat.as_chunks::<BLOCK>().0 {
            let idx = classes.iter().position(|known| known == block).unwrap_or_else(|| {
                classes.push(*block);
                classes.len() - 1
            });
            blocks.push(u16::try_from(idx).ok()?);
        }
        Some(Self { blocks, classes })
    }

    pub(super) fn of(&self, char: char) -> Class {
        let code_point = char as usize;
        self.classes[usize::from(self.blocks[code_point / BLOCK])][code_point % BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_the_classes_of_the_patterns() {
        let classes = Classes::load().unwrap();
        for (chars, class) in [
            ("azßЖ東ʰ", Class::Letter),
            ("09²Ⅷ٣", Class::Number),
            (" \t\u{b}\u{85}\u{a0}\u{2028}\u{3000}", Class::Space),
            ("\r\n", Class::LineBreak),
            ("'_-\u{301}\u{200b}👩\0", Class::Other),
        ] {
            chars.chars().for_each(|char| assert_eq!(classes.of(char), class, "{char:?}"));
        }
    }
}
