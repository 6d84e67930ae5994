/// What a token of a tag's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    /// A text in quotes.
    Text,
    Operator,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// Where it begins, in bytes of the tag.
    pub(super) start: usize,
}

/// Operators of more than one character.
const LONG_OPERATORS: [&str; 6] = ["**", "//", "==", "!=", "<=", ">="];

/// The tokens of the tag that a text begins with, and where the tag ends; none where it does not end, or is no code.
pub(super) fn tokenize(source: &str) -> Option<(Vec<Token<'_>>, usize)> {
    let end = if source.starts_with("{{") { "}}" } else { "%}" };
    let mut tokens = Vec::new();
    let mut num_open = 0_usize;
    let mut at = 2 + usize::from(source[2..].starts_with(['-', '+']));
    loop {
        let rest = source.get(at..)?;
        let char = rest.chars().next()?;
        if char.is_whitespace() {
            at += char.len_utf8();
            continue;
        }
        if num_open == 0 {
            let bare = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if bare.starts_with(end) {
                return Some((tokens, at + rest.len() - bare.len() + end.len()));
            }
        }
        let (kind, length) = match char {
            '\'' | '"' => (Kind::Text, text_length(rest, char)?),
            '0'..='9' => (Kind::Number, number_length(rest)),
            _ if is_word(char) => (Kind::Name, rest.find(|char| !is_word(char)).unwrap_or(rest.len())),
            _ => {
                let long = LONG_OPERATORS.iter().any(|operator| rest.starts_with(operator));
                (Kind::Operator, if long { 2 } else { char.len_utf8() })
            }
        };
        match char {
            '(' | '[' | '{' => num_open += 1,
            ')' | ']' | '}' => num_open = num_open.checked_sub(1)?,
            _ => {}
        }
        tokens.push(Token { kind, text: rest.get(..length)?, start: at });
        at += length;
    }
}

fn is_word(char: char) -> bool {
    char == '_' || char.is_alphanumeric()
}

fn text_length(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = true;
    for (at, char) in rest.char_indices() {
        if escaped {
            escaped = false;
        } else if char == quote {
            return Some(at + 1);
        } else {
            escaped = char == '\\';
        }
    }
    None
}

/// Digits, a fraction and an exponent; a point without a digit behind it is an attribute's.
fn number_length(rest: &str) -> usize {
    let word = |from: usize| from + rest[from..].find(|char| !is_word(char)).unwrap_or(rest.len() - from);
    let mut end = word(0);
    if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|char: char| char.is_ascii_digit()) {
        end = word(end + 1);
    }
    let is_decimal = !rest.starts_with("0x") && !rest.starts_with("0X");
    if is_decimal && rest[..end].ends_with(['e', 'E']) && rest[end..].starts_with(['+', '-']) {
        end = word(end + 1);
    }
    end
}
