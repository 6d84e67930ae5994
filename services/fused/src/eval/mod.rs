//! `fused eval`: how well models predict held-out text, and in how many tokens.
//!
//! The score is bits per byte: minus the binary logarithm of the probability that the model gives the text, divided by
//! the text's UTF-8 bytes. Unlike a loss per token it can be compared between vocabularies. It is the product of *bits
//! per token* (how hard the model's tokens are to predict, which grows as they get longer) and *tokens per byte* (how
//! few of them there are).
//!
//! Every byte is counted once. A document begins behind the token that begins documents for this model: the one that its
//! tokenizer puts in front, else `bos_token_id`, else the first of `eos_token_id`. That token is context and not scored,
//! and neither is the end of a document. A document of more tokens than the context is read in windows: each adds
//! `stride` tokens behind as much as fits of what came before. With `--documents joined` all documents are one stream,
//! each behind its beginning token, which is scored there: so are models trained, and a short document then is helped by
//! what happens to stand before it.

mod documents;
mod model;
mod report;
mod windows;

use anyhow::{Context, bail};
use fused_checkpoint::{ModelConfig, ModelFiles, Wanted};

use crate::cli::Eval;
use crate::{model as models, process};
use model::{Measured, Model};
use report::Report;
use windows::Windows;

/// The longest context that is taken unasked: attention grows with its square.
const MAX_DEFAULT_CONTEXT: usize = 4096;

pub(crate) fn run(command: &Eval) -> anyhow::Result<()> {
    let documents = documents::read(&command.text, command.field.as_deref(), command.max_bytes)?;
    let models = models(command)?;
    let windows = windows(command, &models)?;
    let mut measured: Vec<Measured> = Vec::with_capacity(models.len());
    // One after the other: only one model is in memory at a time.
    for model in &models {
        let result = model.measure(&documents, command.documents, windows);
        measured.push(result.with_context(|| format!("--model {}", model.label))?);
    }
    let report = Report { documents: &documents, order: command.documents, windows, measured: &measured };
    process::print(&if command.json { report.json() } else { report.table() })
}

/// Each model with its patch vocabulary.
fn models(command: &Eval) -> anyhow::Result<Vec<Model>> {
    let named: Vec<_> = match command.model.as_slice() {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str())).collect(),
    };
    let patches = &command.patch_vocabulary;
    if !patches.is_empty() && patches.len() != named.len() {
        bail!(
            "--patch-vocabulary is given {} times and --model {} times: give one for each model, in their order, or \
             none",
            patches.len(),
            named.len()
        );
    }
    let open = |(idx, name): (usize, &Option<&str>)| {
        let files = models::files(*name, Wanted::Everything)?;
        let patch_name = patches.get(idx).map(String::as_str);
        let patch = models::patch(patch_name, &files)?;
        let embeddings = models::patch_embeddings(patch_name)?;
        let config = ModelConfig::parse(&files)?;
        Ok(Model { label: label(&files, patch_name), files, config, patch, embeddings })
    };
    named.iter().enumerate().map(open).collect()
}

/// A model's name, and how it was changed on the command line.
fn label(files: &ModelFiles, patch_name: Option<&str>) -> String {
    match patch_name {
        None => files.name().to_owned(),
        Some("none") => format!("{} (base)", files.name()),
        Some(path) => {
            let file = std::path::Path::new(path).file_name().unwrap_or_default();
            format!("{} + {}", files.name(), file.to_string_lossy())
        }
    }
}

/// The same for all models, so that they are measured alike.
fn windows(command: &Eval, models: &[Model]) -> anyhow::Result<Windows> {
    let shortest = models.iter().min_by_key(|model| model.config.max_positions);
    let Some(shortest) = shortest else { bail!("no --model") };
    let most = shortest.config.max_positions;
    let context = command.context.unwrap_or(most.min(MAX_DEFAULT_CONTEXT));
    if context > most {
        bail!("--context {context} is over the {most} tokens that model {} was made for", shortest.label);
    }
    let stride = command.stride.unwrap_or((context / 2).max(1));
    if stride >= context {
        bail!("--stride {stride} must be below --context, which is {context}: a token needs one before it");
    }
    Ok(Windows { context, stride })
}
