//! Scores given tokens, without a service or requests: how probable a model finds each in its context.

use fused_checkpoint::{Checkpoint, ModelConfig, ModelFiles};
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::import::PatchEmbeddings;
use fused_vocabulary::{PatchVocabulary, TokenId};

use crate::config::{KvNeeds, PageRules};
use crate::kv::{self, KvCache};
use crate::runner::cpu::CpuRunner;
use crate::runner::{PromptLogprobStep, Runner, SequenceStep};
use crate::{Config, Error, memory};

/// Rows of one step: enough for the products to run at the speed of the multipliers, few enough for its intermediate
/// values to stay small beside a model.
const MAX_ROWS: usize = 1024;
/// Windows of one step.
const MAX_WINDOWS: usize = 64;

/// A model on this machine's processors, to measure text with.
#[derive(Debug)]
pub struct Scorer {
    runner: CpuRunner,
    kv: KvCache<LinuxMemory>,
    page_bytes: usize,
}

/// Tokens that are read together, each in the context of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<'a> {
    /// At most as many as the scorer was made for.
    pub tokens: &'a [TokenId],
    /// Of them, at the beginning, are context only; at least 1.
    pub num_context: usize,
}

impl Window<'_> {
    /// Tokens that a step runs: the last one is only predicted.
    fn num_rows(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }
}

impl Scorer {
    /// Loads a model, adapted to `patch` where it is not yet, with `embeddings` where they are given, for windows of at most
    /// `max_window` tokens.
    ///
    /// # Errors
    /// A model that cannot be read, or does not belong to the patch vocabulary; a machine without the memory.
    pub fn load(
        files: &ModelFiles,
        patch: Option<&PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        max_window: usize,
    ) -> Result<Self, Error> {
        let mut config = ModelConfig::parse(files)?;
        config.limit_context(max_window);
        let runner = CpuRunner::load(&Checkpoint::open(files)?, &config, patch, embeddings)?;
        let needs = KvNeeds {
            layout: runner.kv_layout(),
            model_max_len: runner.shape().max_positions,
            available_bytes: memory::available_bytes(),
            pages: PageRules::host(),
        };
        let limits = Config {
            max_model_len: Some(max_window),
            max_num_sequences: MAX_WINDOWS,
            prefix_cache: false,
            ..Config::default()
        };
        let plan = limits.kv_plan(needs)?;
        let memory = LinuxMemory::new(plan.page_bytes, plan.size.pool_bytes)?;
        let kv = KvCache::new(memory, needs.layout, plan.size)?;
        Ok(Self { runner, kv, page_bytes: plan.page_bytes })
    }

    /// What the model runs on.
    #[must_use]
    pub fn device(&self) -> String {
        self.runner.device()
    }

    /// How many of the first windows fit into one step; at least one where there is one.
    #[must_use]
    pub fn num_at_once(&self, windows: &[Window<'_>]) -> usize {
        let (mut num_rows, mut num_bytes) = (0, 0);
        let fitting = windows.iter().take(MAX_WINDOWS).take_while(|window| {
            num_rows += window.num_rows();
            num_bytes +=
                (window.num_rows() * self.kv.layout().token_bytes()).next_multiple_of(self.page_bytes);
            num_rows <= MAX_ROWS && num_bytes <= self.kv.stats().total_bytes
        });
        fitting.count().max(1).min(windows.len())
    }

    /// The natural logarithm of the probability of each token behind the context, window by window. Independent of which
    /// windows are scored together, bit for bit.
    ///
    /// # Errors
    /// A token that the model does not have, a window that is too long, or more of them than fit.
    pub fn score(&mut self, windows: &[Window<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        let mut slots = Vec::with_capacity(windows.len());
        let scored = self.score_in(windows, &mut slots);
        for slot in slots {
            self.kv.release(slot);
        }
        scored
    }

    fn score_in(
        &mut self,
        windows: &[Window<'_>],
        slots: &mut Vec<kv::SlotId>,
    ) -> Result<Vec<Vec<f32>>, Error> {
        for window in windows {
            let slot = self.kv.acquire(window.num_rows()).map_err(|error| match error {
                kv::Error::OutOfPages => Error::TooManyWindows,
                error => error.into(),
            })?;
            slots.push(slot);
        }
        // The context first: of its rows no logits are wanted, and those are a good part of a small model's work.
        let mut context = Vec::with_capacity(windows.len());
        let mut scored = Vec::with_capacity(windows.len());
        for (window, &slot) in windows.iter().zip(&*slots) {
            let context_len = window.num_context.saturating_sub(1).min(window.num_rows());
            let (before, rest) = window.tokens.split_at(context_len);
            let step = SequenceStep {
                slot,
                context_len: 0,
                tokens: before,
                sample: None,
                drawn_by: None,
                prompt_logprobs: None,
            };
            if !before.is_empty() {
                context.push(step);
            }
            // The last token is a target only.
            let (Some((_, targets)), Some((_, tokens))) = (rest.split_first(), rest.split_last()) else {
                continue;
            };
            let prompt_logprobs = Some(PromptLogprobStep { targets, num_top: 0 });
            if !tokens.is_empty() {
                scored.push(SequenceStep {
                    slot,
                    context_len,
                    tokens,
                    sample: None,
                    drawn_by: None,
                    prompt_logprobs,
                });
            }
        }
        self.runner.step(&context, &self.kv)?;
        let mut outputs = self.runner.step(&scored, &self.kv)?.into_iter();
        let logprobs = windows.iter().map(|window| {
            // A window of one token runs nothing, and has nothing to score.
            let output = if window.num_rows() == 0 { None } else { outputs.next() };
            let logprobs = output.unwrap_or_default().prompt_logprobs;
            logprobs.into_iter().map(|scored| scored.logprob).collect()
        });
        Ok(logprobs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scorer(max_window: usize) -> Scorer {
        let files = ModelFiles::open(&fused_testkit::model_dir("tiny-llama3")).unwrap();
        Scorer::load(&files, None, None, max_window).unwrap()
    }

    fn tokens(num: u32) -> Vec<TokenId> {
        (0..num).map(|idx| TokenId((idx * 37 + 11) % 128)).collect()
    }

    #[test]
    fn a_context_changes_what_is_scored_and_not_how() {
        let mut scorer = scorer(64);
        let tokens = tokens(64);
        let whole = scorer.score(&[Window { tokens: &tokens, num_context: 1 }]).unwrap().remove(0);
        assert_eq!(whole.len(), 63);
        assert!(whole.iter().all(|logprob| *logprob < 0.0 && logprob.is_finite()));
        for num_context in [2, 3, 32, 63, 64] {
            let part = scorer.score(&[Window { tokens: &tokens, num_context }]).unwrap().remove(0);
            assert_eq!(part, whole[num_context - 1..], "{num_context}");
        }
    }

    #[test]
    fn windows_together_are_scored_as_alone() {
        let mut scorer = scorer(128);
        let tokens = tokens(128);
        let windows: Vec<_> = (1..=80)
            .map(|len| Window { tokens: &tokens[len % 7..len % 7 + len], num_context: 1 + len / 3 })
            .collect();
        let alone: Vec<_> =
            windows.iter().map(|window| scorer.score(&[*window]).unwrap().remove(0)).collect();
        let (mut together, mut rest) = (Vec::new(), windows.as_slice());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(scorer.num_at_once(rest));
            together.extend(scorer.score(now).unwrap());
            rest = later;
        }
        assert_eq!(together, alone);
        assert_eq!(alone[0], Vec::<f32>::new(), "one token has nothing before it");
        assert_eq!(scorer.kv.stats().live_slots, 0);
    }

    #[test]
    fn what_cannot_be_scored_is_an_error_and_holds_no_memory() {
        let mut scorer = scorer(8);
        let tokens = tokens(128);
        assert!(scorer.score(&[Window { tokens: &tokens, num_context: 1 }]).is_err(), "too long");
        let unknown = [TokenId(0), TokenId(128), TokenId(1)];
        assert!(scorer.score(&[Window { tokens: &unknown, num_context: 1 }]).is_err());
        let many = [Window { tokens: &tokens[..2], num_context: 1 }; MAX_WINDOWS + 1];
        assert!(matches!(scorer.score(&many), Err(Error::TooManyWindows)));
        assert_eq!(scorer.kv.stats().live_slots, 0);
        assert_eq!(scorer.score(&many[1..]).unwrap().len(), MAX_WINDOWS);
    }
}
