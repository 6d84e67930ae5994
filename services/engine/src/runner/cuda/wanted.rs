use fused_kernels::RowSampling;
use fused_vocabulary::TokenId;

use super::Error;
use super::batch::Batch;
use super::lists::OpenLists;
use crate::sampler::SampleStep;

/// A row whose logits are wanted, and what for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) row: usize,
    pub(super) sequence_idx: usize,
    pub(super) purpose: Purpose<'a>,
}

#[derive(Debug)]
pub(super) enum Purpose<'a> {
    /// `follows`: the token before is known to the device alone.
    Sample {
        step: &'a SampleStep<'a>,
        follows: bool,
    },
    PromptLogprobs {
        target: TokenId,
        num_top: u32,
    },
}

/// The rows that logits are wanted of, in order.
pub(super) fn wanted<'a>(batch: &Batch<'a>) -> Vec<Wanted<'a>> {
    let mut wanted = Vec::with_capacity(batch.sequences.len());
    for ((sequence_idx, sequence), first) in batch.sequences.iter().enumerate().zip(&batch.first_rows) {
        if let Some(prompt) = &sequence.prompt_logprobs {
            wanted.extend(prompt.targets.iter().zip(*first..).map(|(&target, row)| Wanted {
                row,
                sequence_idx,
                purpose: Purpose::PromptLogprobs { target, num_top: prompt.num_top },
            }));
        }
        if let Some(step) = &sequence.sample {
            let row = first + sequence.num_tokens() - 1;
            let purpose = Purpose::Sample { step, follows: sequence.drawn_by.is_some() };
            wanted.push(Wanted { row, sequence_idx, purpose });
        }
    }
    wanted
}

/// For each sequence where the token that it draws is among the results.
pub(super) fn drawn(wanted: &[Wanted<'_>], num_sequences: usize) -> Vec<Option<u32>> {
    let mut drawn = vec![None; num_sequences];
    for (wanted, place) in wanted.iter().zip(0..) {
        if let Purpose::Sample { .. } = wanted.purpose {
            drawn[wanted.sequence_idx] = Some(place);
        }
    }
    drawn
}

impl Wanted<'_> {
    /// How many log-probabilities beside the token's; `None` where there are none at all.
    pub(super) fn num_top(&self) -> Option<u32> {
        match self.purpose {
            Purpose::Sample { step, .. } => step.num_logprobs,
            Purpose::PromptLogprobs { num_top, .. } => Some(num_top),
        }
    }

    /// Entries of the lists that it is sampled with, at most, and one that each may have to be put off by.
    pub(super) fn num_listed(&self) -> usize {
        match self.purpose {
            Purpose::Sample { step, .. } => {
                let num_biases = step.sampling.logit_bias.len() + step.banned.len();
                [step.occurrences.len(), num_biases].map(|num| if num > 0 { num + 1 } else { 0 }).iter().sum()
            }
            Purpose::PromptLogprobs { .. } => 0,
        }
    }

    /// What the kernel is told of it.
    pub(super) fn sampling(&self, lists: &mut OpenLists<'_>) -> Result<RowSampling, Error> {
        Ok(match self.purpose {
            Purpose::Sample { step, follows } => {
                let biases = step.biases();
                let row = step.row(biases.len());
                let (occurrences, num_occurrences) = lists.push(step.occurrences)?;
                let (biases, num_biases) = lists.push(&biases)?;
                let follows = if follows { RowSampling::FOLLOWS } else { 0 };
                RowSampling {
                    occurrences,
                    num_occurrences,
                    biases,
                    num_biases,
                    flags: row.flags | follows,
                    batch_row: u32::try_from(self.row).unwrap_or(u32::MAX),
                    ..row
                }
            }
            Purpose::PromptLogprobs { target, num_top } => RowSampling {
                flags: RowSampling::IS_GIVEN | RowSampling::WANTS_LOGPROBS,
                token: target.0,
                num_top,
                ..RowSampling::default()
            },
        })
    }
}
