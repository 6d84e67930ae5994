use std::time::Instant;

use anyhow::{Context, bail};
use fused_checkpoint::{ModelConfig, ModelFiles};
use fused_engine::{Scorer, Window};
use fused_vocabulary::import::PatchEmbeddings;
use fused_vocabulary::{PatchVocabulary, SpecialTokens, TokenId, Vocabulary};
use indicatif::{ProgressBar, ProgressStyle};

use super::windows::Windows;
use crate::cli::Documents;

/// A model to be measured.
pub(super) struct Model {
    /// What it is called in the report.
    pub(super) label: String,
    pub(super) files: ModelFiles,
    pub(super) config: ModelConfig,
    pub(super) patch: Option<PatchVocabulary>,
    pub(super) embeddings: Option<PatchEmbeddings>,
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) label: String,
    /// Text that was scored.
    pub(super) num_bytes: usize,
    /// Tokens that were scored.
    pub(super) num_tokens: usize,
    /// Tokens that the base vocabulary has for the same.
    pub(super) num_base_tokens: usize,
    /// Minus the binary logarithm of the text's probability.
    pub(super) bits: f64,
    /// Encoding and loading left out.
    pub(super) seconds: f64,
    pub(super) device: String,
}

/// Texts as a model reads them: each begins with a token that is not scored.
struct Encoded {
    texts: Vec<Vec<TokenId>>,
    num_base_tokens: usize,
}

impl Model {
    /// Scores all documents.
    pub(super) fn measure(
        &self,
        documents: &[String],
        order: Documents,
        windows: Windows,
    ) -> anyhow::Result<Measured> {
        let vocabulary =
            Vocabulary::load(&fused_adaptation::tokenizer_json(&self.files)?, self.patch.clone())?;
        let encoded = self.encode(documents, order, &vocabulary)?;
        drop(vocabulary);
        let windows_of_texts: Vec<_> = encoded.texts.iter().flat_map(|text| windows.of(text)).collect();
        let longest = windows_of_texts.iter().map(|window| window.tokens.len()).max().unwrap_or(0);
        let mut scorer =
            Scorer::load(&self.files, self.patch.as_ref(), self.embeddings.as_ref(), longest.max(2))?;
        let begun = Instant::now();
        let (bits, num_tokens) = score(&mut scorer, &windows_of_texts)?;
        Ok(Measured {
            label: self.label.clone(),
            num_bytes: documents.iter().map(String::len).sum(),
            num_tokens,
            num_base_tokens: encoded.num_base_tokens,
            bits,
            seconds: begun.elapsed().as_secs_f64(),
            device: scorer.device(),
        })
    }

    fn encode(
        &self,
        documents: &[String],
        order: Documents,
        vocabulary: &Vocabulary,
    ) -> anyhow::Result<Encoded> {
        let begin = self.begin_token(vocabulary)?;
        let mut encoded = Encoded { texts: Vec::new(), num_base_tokens: 0 };
        for document in documents {
            let encoding = vocabulary.encode(document, SpecialTokens::Omit)?;
            encoded.num_base_tokens += encoding.num_base_tokens;
            let text = match (order, encoded.texts.last_mut()) {
                (Documents::Joined, Some(stream)) => {
                    encoded.num_base_tokens += 1;
                    stream
                }
                _ => {
                    encoded.texts.push(Vec::new());
                    let Some(text) = encoded.texts.last_mut() else { continue };
                    text
                }
            };
            text.push(begin);
            text.extend(encoding.ids);
        }
        Ok(encoded)
    }

    /// The token behind which a document begins, in model ids.
    fn begin_token(&self, vocabulary: &Vocabulary) -> anyhow::Result<TokenId> {
        if let Some(first) = vocabulary.encode("", SpecialTokens::Add)?.ids.first() {
            return Ok(*first);
        }
        let config = &self.config;
        let Some(id) = config.bos_token_id.or(config.eos_token_ids.first().copied()).map(TokenId) else {
            bail!("neither tokenizer nor config.json says which token a text begins with");
        };
        match &self.patch {
            // The configuration of an adapted checkpoint names model ids.
            Some(patch) if config.vocabulary_fingerprint.is_none() => {
                patch.model_id(id).with_context(|| format!("the patch vocabulary has no token for {id}"))
            }
            _ => Ok(id),
        }
    }
}

/// Bits and number of all scored tokens.
fn score(scorer: &mut Scorer, windows: &[Window<'_>]) -> anyhow::Result<(f64, usize)> {
    let bar = bar(windows.iter().map(num_scored).sum());
    let (mut nats, mut num_tokens, mut rest) = (0.0, 0, windows);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(scorer.num_at_once(rest));
        for logprobs in scorer.score(now)? {
            nats -= logprobs.iter().copied().map(f64::from).sum::<f64>();
            num_tokens += logprobs.len();
        }
        bar.inc(now.iter().map(num_scored).sum());
        rest = later;
    }
    bar.finish_and_clear();
    Ok((nats / std::f64::consts::LN_2, num_tokens))
}

fn num_scored(window: &Window<'_>) -> u64 {
    (window.tokens.len() - window.num_context) as u64
}

/// On a terminal only.
fn bar(num_tokens: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} tokens, {per_sec}, {eta} left");
    let bar = ProgressBar::new(num_tokens);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}
