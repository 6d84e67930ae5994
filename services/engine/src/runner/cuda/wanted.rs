use fused_kernels::RowSampling;
use fused_vocabulary::TokenId;

use super::Error;
use super::batch::Batch;
use super::kept::{Kept, Lacks};
use super::lists::OpenLists;
use crate::sampler::{Occurrences, SampleStep};

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

    /// What penalties count of it.
    pub(super) fn occurrences(&self) -> Option<&Occurrences> {
        match self.purpose {
            Purpose::Sample { step, .. } => step.occurrences.filter(|_| step.sampling.has_penalties()),
            Purpose::PromptLogprobs { .. } => None,
        }
    }

    /// Entries of its biases, at most, and one that they may have to be put off by.
    pub(super) fn num_biases(&self) -> usize {
        match self.purpose {
            Purpose::Sample { step, .. } => match step.sampling.logit_bias.len() + step.banned.len() {
                0 => 0,
                num => num + 1,
            },
            Purpose::PromptLogprobs { .. } => 0,
        }
    }

    /// What the kernel is told of it. `kept`: where its [`occurrences`](Self::occurrences) are, if it has any.
    pub(super) fn sampling(
        &self,
        lists: &mut OpenLists<'_>,
        kept: Option<&Kept>,
    ) -> Result<RowSampling, Error> {
        Ok(match self.purpose {
            Purpose::Sample { step, follows } => {
                let biases = step.biases();
                let row = step.row(biases.len());
                let (biases, num_biases) = lists.push(&biases)?;
                let follows = if follows { RowSampling::FOLLOWS } else { 0 };
                let changed = kept.filter(|kept| kept.lacks == Lacks::LastChange);
                let changed = changed.and_then(|_| step.occurrences?.last_change());
                let (changed_place, entry) = changed.unwrap_or_default();
                RowSampling {
                    occurrences: kept.map_or(0, |kept| kept.address),
                    biases,
                    num_biases,
                    flags: row.flags | follows | if changed.is_some() { RowSampling::CHANGES } else { 0 },
                    changed_place: u32::try_from(changed_place).unwrap_or(u32::MAX),
                    changed_token: entry.token,
                    changed_count: entry.count,
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
