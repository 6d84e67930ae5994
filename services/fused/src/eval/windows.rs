use fused_engine::Window;
use fused_vocabulary::TokenId;

/// How a text that is longer than a model's context is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// Tokens of a window; at least 2.
    pub(super) context: usize,
    /// Tokens from the end of one window to the end of the next; from 1 to one less than `context`.
    pub(super) stride: usize,
}

impl Windows {
    /// Windows in which every token but the first is scored once. All but the first window hold as much context as they
    /// can.
    pub(super) fn of<'t>(&self, tokens: &'t [TokenId]) -> Vec<Window<'t>> {
        let mut windows = Vec::new();
        let mut num_scored = 1;
        while num_scored < tokens.len() {
            let end = match windows.is_empty() {
                true => self.context.min(tokens.len()),
                false => (num_scored + self.stride).min(tokens.len()),
            };
            let start = end.saturating_sub(self.context);
            windows.push(Window { tokens: &tokens[start..end], num_context: num_scored - start });
            num_scored = end;
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(num_tokens: u32, context: usize, stride: usize) -> Vec<(usize, usize, usize)> {
        let tokens: Vec<_> = (0..num_tokens).map(TokenId).collect();
        let windows = Windows { context, stride }.of(&tokens);
        windows
            .iter()
            .map(|window| {
                let first = window.tokens[0].row();
                (first, first + window.num_context, first + window.tokens.len())
            })
            .collect()
    }

    #[test]
    fn long_texts_are_read_in_windows() {
        assert_eq!(bounds(0, 8, 4), []);
        assert_eq!(bounds(1, 8, 4), []);
        assert_eq!(bounds(8, 8, 4), [(0, 1, 8)]);
        // First token, first scored token, end.
        assert_eq!(bounds(18, 8, 4), [(0, 1, 8), (4, 8, 12), (8, 12, 16), (10, 16, 18)]);
    }

    #[test]
    fn every_token_is_scored_once_and_has_context() {
        for num_tokens in 2..40 {
            for context in 2..12 {
                for stride in 1..context {
                    let bounds = bounds(num_tokens, context, stride);
                    let mut next = 1;
                    for (start, scored, end) in bounds {
                        assert!(end - start <= context && start < scored && scored < end);
                        assert_eq!(scored, next);
                        assert!(start == 0 || scored - start >= context - stride);
                        next = end;
                    }
                    assert_eq!(next, num_tokens as usize);
                }
            }
        }
    }
}
