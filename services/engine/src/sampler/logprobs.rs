use fused_vocabulary::TokenId;

use super::TokenLogprobs;

/// The log-probability of `token` and of the `num_top` likeliest, from one row of logits `[vocab_size]`.
#[must_use]
pub fn logprobs(logits: &[f32], token: TokenId, num_top: u32) -> TokenLogprobs {
    let normaliser = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = logits.get(token.0 as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let top = likeliest(logits, num_top as usize);
    TokenLogprobs {
        token,
        logprob: logprob(own),
        top: top.into_iter().map(|(token, logit)| (token, logprob(logit))).collect(),
    }
}

/// In f64: over a vocabulary of 150,000 the sum in f32 loses the fourth decimal.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        return 0.0;
    }
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    max + sum.ln()
}

/// The `num` largest logits in descending order, the lower id first among equals. One pass: `num` is small.
fn likeliest(logits: &[f32], num: usize) -> Vec<(TokenId, f32)> {
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(num + 1);
    for (id, &logit) in (0u32..).zip(logits) {
        let is_full = top.len() == num;
        if is_full && top.last().is_none_or(|&(_, last)| logit <= last) {
            continue;
        }
        let at = top.partition_point(|&(_, other)| other >= logit);
        top.insert(at, (TokenId(id), logit));
        top.truncate(num);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_normalised_and_sorted() {
        let logits = [0.5f32, -1.0, 2.0, 2.0, 0.0];
        let result = logprobs(&logits, TokenId(1), 5);
        let total: f64 = result.top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        let ids: Vec<u32> = result.top.iter().map(|(token, _)| token.0).collect();
        assert_eq!(ids, [2, 3, 0, 4, 1]);
        assert_eq!(result.logprob, result.top[4].1);
    }

    #[test]
    fn none_and_more_than_all_can_be_asked_for() {
        assert!(logprobs(&[1.0, 2.0], TokenId(0), 0).top.is_empty());
        assert_eq!(logprobs(&[1.0, 2.0], TokenId(0), 9).top.len(), 2);
    }
}
