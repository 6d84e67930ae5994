use super::{Bias, Occurrence, RowSampling};

/// What changes logits before a draw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adjustments<'a> {
    /// The tokens of prompt and output, each once; read only where the row has a penalty.
    pub occurrences: &'a [Occurrence],
    /// The sequence's latest token, where `occurrences` lacks it: its count is one more.
    pub latest: Option<u32>,
    /// Each token once.
    pub biases: &'a [Bias],
}

impl Adjustments<'_> {
    pub(super) fn apply(&self, logits: &mut [f32], row: &RowSampling) {
        if has_penalty(row) {
            for occurrence in self.occurrences {
                let is_latest = self.latest == Some(occurrence.token);
                penalise(logits, row, occurrence.token, occurrence.count + u32::from(is_latest));
            }
            let is_listed = |token| self.occurrences.iter().any(|occurrence| occurrence.token == token);
            if let Some(latest) = self.latest.filter(|&latest| !is_listed(latest)) {
                penalise(logits, row, latest, 1);
            }
        }
        for bias in self.biases {
            if let Some(logit) = logits.get_mut(bias.token as usize) {
                *logit += bias.bias;
            }
        }
    }
}

fn has_penalty(row: &RowSampling) -> bool {
    has_repetition_penalty(row) || row.presence_penalty != 0.0 || row.frequency_penalty != 0.0
}

fn has_repetition_penalty(row: &RowSampling) -> bool {
    row.repetition_penalty != 0.0 && row.repetition_penalty != 1.0
}

/// The repetition penalty of CTRL (arXiv 1909.05858 §4.1) as transformers and vLLM apply it: once a token, and a negative
/// logit is multiplied so that it falls as well. Then OpenAI's: `presence + count · frequency` is taken off.
fn penalise(logits: &mut [f32], row: &RowSampling, token: u32, count: u32) {
    let Some(logit) = logits.get_mut(token as usize) else { return };
    if has_repetition_penalty(row) {
        *logit = if *logit > 0.0 { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
    }
    if count > 0 {
        *logit -= row.presence_penalty + count as f32 * row.frequency_penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(token: u32, count: u32) -> Occurrence {
        Occurrence { token, count, ..Occurrence::default() }
    }

    fn bias(token: u32, bias: f32) -> Bias {
        Bias { token, bias, ..Bias::default() }
    }

    fn adjusted<const N: usize>(mut logits: [f32; N], row: RowSampling, with: Adjustments<'_>) -> [f32; N] {
        with.apply(&mut logits, &row);
        logits
    }

    #[test]
    fn repetition_counts_once_wherever_a_token_occurred() {
        let row = RowSampling { repetition_penalty: 2.0, ..RowSampling::default() };
        let occurrences = [occurrence(0, 0), occurrence(1, 2)];
        let with = Adjustments { occurrences: &occurrences, ..Adjustments::default() };
        assert_eq!(adjusted([4.0, -4.0, 4.0], row, with), [2.0, -8.0, 4.0]);
    }

    #[test]
    fn presence_is_taken_once_and_frequency_each_time_in_the_output() {
        let row = RowSampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..RowSampling::default() };
        let occurrences = [occurrence(2, 2), occurrence(0, 1), occurrence(3, 0)];
        let with = Adjustments { occurrences: &occurrences, ..Adjustments::default() };
        assert_eq!(adjusted([1.0; 4], row, with), [0.25, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn the_latest_token_counts_one_more_listed_or_not() {
        let row = RowSampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..RowSampling::default() };
        let occurrences = [occurrence(0, 1)];
        let with = |latest| Adjustments {
            occurrences: &occurrences,
            latest: Some(latest),
            ..Adjustments::default()
        };
        assert_eq!(adjusted([1.0; 2], row, with(0)), [0.0, 1.0]);
        assert_eq!(adjusted([1.0; 2], row, with(1)), [0.25, 0.25]);
        assert_eq!(adjusted([1.0; 2], row, with(9)), [0.25, 1.0]);
    }

    #[test]
    fn a_bias_comes_last_and_none_is_beyond_the_vocabulary() {
        let row = RowSampling { repetition_penalty: 2.0, ..RowSampling::default() };
        let (occurrences, biases) =
            ([occurrence(0, 0), occurrence(7, 0)], [bias(0, 1.0), bias(1, f32::NEG_INFINITY), bias(7, 1.0)]);
        let with = Adjustments { occurrences: &occurrences, biases: &biases, latest: None };
        assert_eq!(adjusted([4.0, 4.0], row, with), [3.0, f32::NEG_INFINITY]);
    }
}
