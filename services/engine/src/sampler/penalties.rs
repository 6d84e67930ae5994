use fused_vocabulary::TokenId;

use super::{SampleStep, Sampling};

/// Applies penalties, bias and bans to one row of logits.
pub(super) fn apply(logits: &mut [f32], step: &SampleStep<'_>) {
    let sampling = step.sampling;
    if sampling.repetition_penalty != 1.0 {
        repetition(logits, sampling.repetition_penalty, step);
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        occurrence(logits, sampling, step.output);
    }
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit += bias;
        }
    }
    for token in step.banned {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Of CTRL (arXiv 1909.05858 §4.1), as transformers and vLLM apply it: once a token, over prompt and output; a negative
/// logit is multiplied so that it falls as well.
fn repetition(logits: &mut [f32], penalty: f32, step: &SampleStep<'_>) {
    let mut seen: Vec<TokenId> = step.prompt.iter().chain(step.output).copied().collect();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// OpenAI's: `presence + count · frequency` is taken off every token of the output.
fn occurrence(logits: &mut [f32], sampling: &Sampling, output: &[TokenId]) {
    let mut sorted = output.to_vec();
    sorted.sort_unstable();
    for run in sorted.chunk_by(|a, b| a == b) {
        if let Some(logit) = logits.get_mut(run[0].0 as usize) {
            *logit -= sampling.presence_penalty + run.len() as f32 * sampling.frequency_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{sampling, step};
    use super::*;

    #[test]
    fn repetition_counts_prompt_and_output_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..sampling() };
        let output = [TokenId(1), TokenId(1)];
        let mut step = step(&sampling, &output);
        let prompt = [TokenId(0)];
        step.prompt = &prompt;
        let mut logits = [4.0, -4.0, 4.0];
        apply(&mut logits, &step);
        assert_eq!(logits, [2.0, -8.0, 4.0]);
    }

    #[test]
    fn presence_is_taken_once_and_frequency_each_time() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..sampling() };
        let output = [TokenId(2), TokenId(0), TokenId(2)];
        let mut logits = [1.0, 1.0, 1.0];
        apply(&mut logits, &step(&sampling, &output));
        assert_eq!(logits, [0.25, 1.0, 0.0]);
    }

    #[test]
    fn a_banned_token_stays_banned_whatever_its_bias() {
        let sampling = Sampling { logit_bias: vec![(TokenId(1), 100.0)], ..sampling() };
        let banned = [TokenId(1)];
        let mut step = step(&sampling, &[]);
        step.banned = &banned;
        let mut logits = [0.0, 0.0];
        apply(&mut logits, &step);
        assert_eq!(logits, [0.0, f32::NEG_INFINITY]);
    }
}
