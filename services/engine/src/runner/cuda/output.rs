use fused_vocabulary::TokenId;

use super::batch::Batch;
use super::{CudaRunner, Error};
use crate::runner::SequenceOutput;
use crate::sampler::{self, SampleStep, SampledToken, TokenLogprobs};

/// A row whose logits are wanted, and what for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) row: usize,
    sequence_idx: usize,
    purpose: Purpose<'a>,
}

#[derive(Debug)]
enum Purpose<'a> {
    Sample(&'a SampleStep<'a>),
    PromptLogprobs { target: TokenId, num_top: u32 },
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Answer {
    Sampled(SampledToken),
    PromptLogprobs(TokenLogprobs),
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
            let row = first + sequence.tokens.len() - 1;
            wanted.push(Wanted { row, sequence_idx, purpose: Purpose::Sample(step) });
        }
    }
    wanted
}

/// All answers of a step whose rows were all computed at once.
pub(super) fn outputs(
    runner: &mut CudaRunner,
    batch: &Batch<'_>,
    wanted: &[Wanted<'_>],
) -> Result<Vec<SequenceOutput>, Error> {
    let answers = answers(runner, wanted)?;
    Ok(join(batch, wanted, answers.into_iter()))
}

/// Waits for the logits of some rows and answers.
pub(super) fn answers(runner: &mut CudaRunner, wanted: &[Wanted<'_>]) -> Result<Vec<Answer>, Error> {
    let CudaRunner { gpu, scratch, weights, .. } = runner;
    gpu.copy_to_host(&scratch.tokens, 0, &mut scratch.host_tokens, 0..4 * wanted.len())?;
    // Waits.
    let tokens: Vec<u32> =
        bytemuck::cast_slice(&scratch.host_tokens.as_slice()?[..4 * wanted.len()]).to_vec();
    let vocab_size = weights.shape.vocab_size;
    let mut row = Vec::new();
    let answer = |(nth, wanted): (usize, &Wanted<'_>)| {
        if let Purpose::Sample(step) = &wanted.purpose
            && is_plain(step)
        {
            return Ok(Answer::Sampled(SampledToken { token: TokenId(tokens[nth]), logprobs: None }));
        }
        row.resize(vocab_size, 0.0_f32);
        let logits = scratch.logits.slice(4 * nth * vocab_size..4 * (nth + 1) * vocab_size)?;
        logits.read(bytemuck::cast_slice_mut(&mut row))?;
        Ok(match &wanted.purpose {
            Purpose::Sample(step) => Answer::Sampled(sampler::sample(&mut row, step)),
            Purpose::PromptLogprobs { target, num_top } => {
                Answer::PromptLogprobs(sampler::logprobs(&row, *target, *num_top))
            }
        })
    };
    wanted.iter().enumerate().map(answer).collect()
}

/// Whether the likeliest token as it is will do.
fn is_plain(step: &SampleStep<'_>) -> bool {
    let sampling = step.sampling;
    sampling.temperature == 0.0
        && sampling.repetition_penalty == 1.0
        && sampling.presence_penalty == 0.0
        && sampling.frequency_penalty == 0.0
        && sampling.logit_bias.is_empty()
        && step.banned.is_empty()
        && step.num_logprobs.is_none()
}

/// One output a sequence.
pub(super) fn join(
    batch: &Batch<'_>,
    wanted: &[Wanted<'_>],
    answers: impl Iterator<Item = Answer>,
) -> Vec<SequenceOutput> {
    let mut outputs = vec![SequenceOutput::default(); batch.sequences.len()];
    for (wanted, answer) in wanted.iter().zip(answers) {
        let output = &mut outputs[wanted.sequence_idx];
        match answer {
            Answer::Sampled(sampled) => output.sampled = Some(sampled),
            Answer::PromptLogprobs(logprobs) => output.prompt_logprobs.push(logprobs),
        }
    }
    outputs
}
