use fused_kernels::{Matrix, linear};
use fused_vocabulary::TokenId;
use rayon::prelude::*;

use super::batch::{Batch, num_wanted};
use super::forward::norm;
use super::scratch::Scratch;
use crate::model::Model;
use crate::runner::SequenceOutput;
use crate::sampler::{self, SampleStep, SampledToken, TokenLogprobs};

/// Logits computed at once: rows times vocabulary stays below this, so that a long prompt's log-probabilities do not
/// take memory by the gigabyte.
const MAX_LOGITS: usize = 4 << 20;

/// Draws tokens and computes log-probabilities from `scratch.hidden`: one output a sequence.
pub(super) fn outputs(
    model: &Model<Matrix>,
    batch: &Batch<'_>,
    scratch: &mut Scratch,
) -> Vec<SequenceOutput> {
    let mut outputs = vec![SequenceOutput::default(); batch.sequences.len()];
    let wanted = wanted(batch);
    let rows_at_once = (MAX_LOGITS / model.shape.vocab_size).max(1);
    for wanted in wanted.chunks(rows_at_once) {
        logits(model, wanted, scratch);
        let rows = scratch.logits.par_chunks_exact_mut(model.shape.vocab_size).zip(wanted);
        let answers: Vec<Answer> = rows.map(|(logits, wanted)| wanted.answer(logits)).collect();
        for (wanted, answer) in wanted.iter().zip(answers) {
            let output = &mut outputs[wanted.sequence_idx];
            match answer {
                Answer::Sampled(sampled) => output.sampled = Some(sampled),
                Answer::PromptLogprobs(logprobs) => output.prompt_logprobs.push(logprobs),
            }
        }
    }
    outputs
}

/// A row whose logits are wanted, and what for.
struct Wanted<'a> {
    row: usize,
    sequence_idx: usize,
    purpose: Purpose<'a>,
}

enum Purpose<'a> {
    Sample(&'a SampleStep<'a>),
    PromptLogprobs { target: TokenId, num_top: u32 },
}

enum Answer {
    Sampled(SampledToken),
    PromptLogprobs(TokenLogprobs),
}

impl Wanted<'_> {
    fn answer(&self, logits: &mut [f32]) -> Answer {
        match self.purpose {
            Purpose::Sample(step) => Answer::Sampled(sampler::sample(logits, step)),
            Purpose::PromptLogprobs { target, num_top } => {
                Answer::PromptLogprobs(sampler::logprobs(logits, target, num_top))
            }
        }
    }
}

/// The rows of `scratch.hidden` that logits are wanted of.
fn wanted<'a>(batch: &Batch<'a>) -> Vec<Wanted<'a>> {
    let mut wanted = Vec::with_capacity(batch.sequences.len());
    let mut first_row = 0;
    for (sequence_idx, sequence) in batch.sequences.iter().enumerate() {
        let rows = first_row..first_row + num_wanted(sequence);
        if let Some(prompt) = &sequence.prompt_logprobs {
            wanted.extend(rows.clone().zip(prompt.targets).map(|(row, &target)| {
                let purpose = Purpose::PromptLogprobs { target, num_top: prompt.num_top };
                Wanted { row, sequence_idx, purpose }
            }));
        }
        if let Some(step) = &sequence.sample {
            wanted.push(Wanted { row: rows.end - 1, sequence_idx, purpose: Purpose::Sample(step) });
        }
        first_row = rows.end;
    }
    wanted
}

/// Writes the logits of some rows into `scratch.logits`.
fn logits(model: &Model<Matrix>, wanted: &[Wanted<'_>], scratch: &mut Scratch) {
    let (width, vocab_size) = (model.shape.hidden_size, model.shape.vocab_size);
    scratch.last.resize(wanted.len() * width, 0.0);
    scratch.last_normed.resize(wanted.len() * width, 0.0);
    scratch.logits.resize(wanted.len() * vocab_size, 0.0);
    for (wanted, last) in wanted.iter().zip(scratch.last.chunks_exact_mut(width)) {
        last.copy_from_slice(&scratch.hidden[wanted.row * width..][..width]);
    }
    norm(&model.final_norm, model.shape.norm_eps, &scratch.last, &mut scratch.last_normed);
    let head = model.head.as_ref().unwrap_or(&model.embedding);
    linear(&scratch.last_normed, head, None, &mut scratch.logits);
}
