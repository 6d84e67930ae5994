use fused_gpu::{Buffer, Event, Gpu, Pinned};
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::TokenId;

use super::Error;
use super::in_turn::InTurn;
use super::wanted::{Purpose, Wanted};
use crate::runner::SequenceOutput;
use crate::sampler::{SampledToken, TokenLogprobs};

/// What the rows of a step that logits were wanted of came to.
#[derive(Debug)]
pub(super) struct Results {
    /// i32 `[rows]`: the tokens. The next step reads them here.
    pub(super) tokens: Buffer,
    /// `[rows, 1 + 2 · max_top]` words: a row's log-probability, then ids and log-probabilities of the likeliest.
    pub(super) logprobs: Buffer,
    pub(super) max_top: usize,
    host: InTurn<HostResults>,
}

#[derive(Debug)]
struct HostResults {
    tokens: Pinned,
    logprobs: Pinned,
    /// Behind the step.
    done: Event,
}

/// A step that the device has been given.
#[derive(Debug)]
pub(super) struct InFlight {
    asked: Vec<Asked>,
    num_sequences: usize,
    turn: usize,
    /// Nothing of the slots may be unmapped before the step is done.
    _slots: fused_virtual_memory::Pinned<CudaMemory>,
}

/// What is to be made of a row's result.
#[derive(Debug)]
struct Asked {
    sequence_idx: usize,
    /// Of the prompt, whose log-probability alone is asked for.
    target: Option<TokenId>,
    num_top: Option<u32>,
}

impl Results {
    pub(super) fn new(gpu: &Gpu, max_rows: usize, max_top: usize) -> fused_gpu::Result<Self> {
        let row_bytes = 4 * (1 + 2 * max_top);
        let host = || {
            Ok::<_, fused_gpu::Error>(HostResults {
                tokens: gpu.pinned(4 * max_rows)?,
                logprobs: gpu.pinned(row_bytes * max_rows)?,
                done: Event::new(gpu)?,
            })
        };
        Ok(Self {
            tokens: gpu.alloc_zeroed(4 * max_rows)?,
            logprobs: gpu.alloc_zeroed(row_bytes * max_rows)?,
            max_top,
            host: InTurn::new(host)?,
        })
    }

    /// Bytes of a row's log-probabilities.
    pub(super) fn row_bytes(&self) -> usize {
        4 * (1 + 2 * self.max_top)
    }

    /// Has the results of a step that was just launched copied to the host.
    pub(super) fn fetch(
        &mut self,
        gpu: &Gpu,
        wanted: &[Wanted<'_>],
        num_sequences: usize,
        slots: fused_virtual_memory::Pinned<CudaMemory>,
    ) -> Result<InFlight, Error> {
        let row_bytes = self.row_bytes();
        let Self { tokens, logprobs, host, .. } = self;
        let host = host.next();
        gpu.copy_to_host(tokens, 0, &mut host.tokens, 0..4 * wanted.len())?;
        if wanted.iter().any(|wanted| wanted.num_top().is_some()) {
            gpu.copy_to_host(logprobs, 0, &mut host.logprobs, 0..row_bytes * wanted.len())?;
        }
        host.done.record()?;
        let asked = wanted.iter().map(|wanted| Asked {
            sequence_idx: wanted.sequence_idx,
            target: match wanted.purpose {
                Purpose::Sample { .. } => None,
                Purpose::PromptLogprobs { target, .. } => Some(target),
            },
            num_top: wanted.num_top(),
        });
        Ok(InFlight { asked: asked.collect(), num_sequences, turn: self.host.turn(), _slots: slots })
    }

    /// Waits for a step and reads its results: one output a sequence.
    pub(super) fn read(&self, step: InFlight) -> Result<Vec<SequenceOutput>, Error> {
        let host = self.host.of_turn(step.turn);
        host.done.wait()?;
        let tokens: &[u32] = bytemuck::cast_slice(host.tokens.as_slice()?);
        let rows =
            bytemuck::cast_slice::<u8, u32>(host.logprobs.as_slice()?).chunks_exact(1 + 2 * self.max_top);
        let mut outputs = vec![SequenceOutput::default(); step.num_sequences];
        for ((asked, &token), row) in step.asked.iter().zip(tokens).zip(rows) {
            let token = asked.target.unwrap_or(TokenId(token));
            let logprobs = asked.num_top.map(|num_top| logprobs(token, row, num_top as usize));
            let output = &mut outputs[asked.sequence_idx];
            match asked.target {
                None => output.sampled = Some(SampledToken { token, logprobs }),
                Some(_) => output.prompt_logprobs.extend(logprobs),
            }
        }
        Ok(outputs)
    }
}

fn logprobs(token: TokenId, row: &[u32], num_top: usize) -> TokenLogprobs {
    let (own, top) =
        row.split_first().map_or((f32::NEG_INFINITY, row), |(own, top)| (f32::from_bits(*own), top));
    let top = top.chunks_exact(2).take(num_top).map(|pair| (TokenId(pair[0]), f32::from_bits(pair[1])));
    TokenLogprobs { token, logprob: own, top: top.collect() }
}
