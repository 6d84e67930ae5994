//! Numbers as the page writes them.

/// Before a unit, so that it is never parted from its number.
const NARROW_SPACE: char = '\u{202F}';
const MINUS: char = '\u{2212}';

/// `1234567` as `1,234,567`.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.3724` as `37.2 %`.
pub(crate) fn percent(share: f64) -> String {
    // What rounds to nothing has no sign.
    let tenths = (share * 1000.0).round() + 0.0;
    format!("{}{NARROW_SPACE}%", signed(tenths / 10.0, 1))
}

/// `37.2 % fewer`, `1.0 % more`.
pub(crate) fn change(saved_share: f64) -> String {
    let word = if saved_share < 0.0 { "more" } else { "fewer" };
    format!("{} {word}", percent(saved_share.abs()))
}

/// `125000` as `125 k`: for axes, where there is little room.
pub(crate) fn short(number: f64) -> String {
    let (value, unit) = match number.abs() {
        size if size >= 1e9 => (number / 1e9, "G"),
        size if size >= 1e6 => (number / 1e6, "M"),
        size if size >= 1e5 => (number / 1e3, "k"),
        _ => return self::number(number as u64),
    };
    let decimals = usize::from((value * 10.0).round() % 10.0 != 0.0);
    format!("{}{NARROW_SPACE}{unit}", signed(value, decimals))
}

/// With a true minus sign.
pub(crate) fn signed(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}").replace('-', &MINUS.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn shares_have_one_decimal_and_a_true_minus() {
        assert_eq!(percent(0.3724), "37.2\u{202F}%");
        assert_eq!(percent(-0.05), "\u{2212}5.0\u{202F}%");
        assert_eq!(percent(-0.0001), "0.0\u{202F}%");
        assert_eq!(percent(1.0), "100.0\u{202F}%");
    }

    #[test]
    fn changes_say_their_direction() {
        assert_eq!(change(0.3724), "37.2\u{202F}% fewer");
        assert_eq!(change(-0.01), "1.0\u{202F}% more");
    }

    #[test]
    fn axes_have_short_numbers() {
        assert_eq!(
            [2000.0, 40_000.0, 125_500.0, 3e6].map(short).join(" "),
            "2,000 40,000 125.5\u{202F}k 3\u{202F}M"
        );
    }
}
