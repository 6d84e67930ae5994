use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use fused_checkpoint::{
    Checkpoint, ModelConfig, ModelFiles, NewTensor, Shards, StoredTensor, TEMPLATE_FOLDER, TensorSink,
};
use fused_vocabulary::embedding::{Initialisation, Side};
use fused_vocabulary::{PatchVocabulary, Vocabulary};

use crate::card::{CARD_FILE, model_card};
use crate::{AdaptedConfig, AdaptedRows, Error, Result, tokenizer_json};

const TOKENIZER_FILE: &str = "tokenizer.json";
const PATCH_FILE: &str = "patch_vocabulary.json";

/// What a tokenizer may consist of, beside tokenizer.json. Copied as they are: they speak of base ids, as every part of
/// a vocabulary does but the patch.
const TOKENIZER_FILES: [&str; 10] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
];

/// Bytes written at once: between two of them the caller may stop.
const BLOCK_BYTES: usize = 8 << 20;

/// A base model and the patch vocabulary it is going to be adapted to, checked as far as it can be without writing.
///
/// The adapted model is untied, whatever the base model was: the two rows of an n-token differ. Tensors that do not
/// depend on the vocabulary are copied, whatever their type; names without the outer module's get it, because a head
/// beside them has none, and readers take one or the other form.
#[derive(Debug)]
pub struct AdaptedModel<'a> {
    base: &'a ModelFiles,
    checkpoint: &'a Checkpoint,
    patch: &'a PatchVocabulary,
    config: AdaptedConfig,
    tokenizer: Vec<u8>,
    /// By the name that a tensor is written with.
    sources: HashMap<String, Source<'a>>,
    shards: Shards,
}

/// What a tensor is written from.
#[derive(Debug)]
enum Source<'a> {
    Rows {
        rows: AdaptedRows<'a>,
        /// The tensor that they are made from.
        stored: String,
    },
    Stored(StoredTensor<'a>),
}

/// Called after each block with the bytes it had. Answers whether to go on.
pub type Progress<'p> = &'p mut dyn FnMut(u64) -> bool;

impl<'a> AdaptedModel<'a> {
    /// Checks the base model and the patch vocabulary against each other and plans what is written: files of at most
    /// `max_shard_bytes` each.
    ///
    /// # Errors
    /// The model cannot be read, is adapted already, or does not belong to the patch vocabulary.
    pub fn plan(
        base: &'a ModelFiles,
        checkpoint: &'a Checkpoint,
        patch: &'a PatchVocabulary,
        initialisation: Initialisation,
        max_shard_bytes: u64,
    ) -> Result<Self> {
        let model_config = ModelConfig::parse(base)?;
        if let Some(weights) = &model_config.vocabulary_fingerprint {
            return Err(Error::Adapted { model: base.name().to_owned(), weights: weights.clone() });
        }
        let tokenizer = tokenizer_json(base)?;
        // Every rule that ties a patch to a tokenizer is checked by whoever loads both.
        Vocabulary::load(&tokenizer, Some(patch.clone()))
            .map_err(|source| Error::Vocabulary { model: base.name().to_owned(), source })?;
        let config = AdaptedConfig::new(base, patch)?;
        let rows = |stored: &str, side| {
            let shape = [model_config.vocab_size, model_config.hidden_size];
            let tensor = checkpoint.tensor_with_shape(stored, &shape)?;
            let rows = AdaptedRows::new(tensor, patch, initialisation, side)?;
            Ok(Source::Rows { rows, stored: stored.to_owned() })
        };
        let tensors = tensors(checkpoint, &model_config, &rows)?;
        let new = tensors.iter().map(|(name, source)| source.new_tensor(name)).collect();
        let shards = Shards::plan(new, max_shard_bytes)?;
        let sources = tensors.into_iter().collect();
        Ok(Self { base, checkpoint, patch, config, tokenizer, sources, shards })
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.shards.num_bytes()
    }

    /// Files with tensors.
    #[must_use]
    pub fn num_shards(&self) -> usize {
        self.shards.num_shards()
    }

    /// Writes the directory's files into `dir`, which is there and has none of them. They are on the disk when this
    /// returns. Takes memory for the base model's largest tensor: what has been copied is given back.
    ///
    /// # Errors
    /// A file cannot be written, by its path, or `progress` said to stop. What was written until then is left behind.
    pub fn write(&self, dir: &Path, progress: Progress<'_>) -> Result<()> {
        for (name, text) in self.config.files() {
            write_file(dir, name, text.as_bytes())?;
        }
        write_file(dir, CARD_FILE, model_card(self.base.name(), self.patch).as_bytes())?;
        write_file(dir, PATCH_FILE, self.patch.to_json().as_bytes())?;
        write_file(dir, TOKENIZER_FILE, &self.tokenizer)?;
        for name in TOKENIZER_FILES {
            if let Some(bytes) = self.base.read(name)? {
                write_file(dir, name, &bytes)?;
            }
        }
        let templates = self.base.read_folder(TEMPLATE_FOLDER, "jinja")?;
        if !templates.is_empty() {
            let folder = dir.join(TEMPLATE_FOLDER);
            std::fs::create_dir(&folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
            for (name, bytes) in templates {
                write_file(&folder, &format!("{name}.jinja"), &bytes)?;
            }
            sync_dir(&folder)?;
        }
        self.shards.write(dir, |tensor, sink| self.write_tensor(&tensor.name, sink, progress))?;
        sync_dir(dir)
    }

    fn write_tensor(&self, name: &str, sink: &mut TensorSink<'_>, progress: Progress<'_>) -> Result<()> {
        match self.sources.get(name) {
            Some(Source::Rows { rows, stored }) => {
                let rows_at_once = (BLOCK_BYTES / rows.row_bytes().max(1)).max(1);
                let mut block = Vec::new();
                for first in (0..rows.num_rows()).step_by(rows_at_once) {
                    block.clear();
                    rows.append(first..first + rows_at_once, &mut block);
                    push(&block, sink, progress)?;
                }
                self.checkpoint.release(stored);
            }
            Some(Source::Stored(stored)) => {
                stored.bytes.chunks(BLOCK_BYTES).try_for_each(|block| push(block, sink, progress))?;
                self.checkpoint.release(stored.name);
            }
            // Not in the plan: the sink says that its bytes are missing.
            None => {}
        }
        Ok(())
    }
}

impl Source<'_> {
    fn new_tensor(&self, name: &str) -> NewTensor {
        let name = name.to_owned();
        match self {
            Self::Rows { rows, .. } => {
                NewTensor { name, dtype: rows.dtype().into(), shape: vec![rows.num_rows(), rows.num_cols()] }
            }
            Self::Stored(stored) => NewTensor { name, dtype: stored.dtype, shape: stored.shape.to_vec() },
        }
    }
}

/// What is written under which name: the embedding, what does not depend on the vocabulary in the order of the base
/// model's files, the head. `rows` makes a side's rows of a stored tensor.
fn tensors<'a>(
    checkpoint: &'a Checkpoint,
    config: &ModelConfig,
    rows: &dyn Fn(&str, Side) -> Result<Source<'a>>,
) -> Result<Vec<(String, Source<'a>)>> {
    let (module, embedding, head) =
        (config.family.module_prefix(), config.family.embedding_tensor(), config.family.head_tensor());
    let stored_tensors = checkpoint.token_tensors(config);
    let stored_head = stored_tensors.head.as_ref().unwrap_or(&stored_tensors.embedding);
    let mut tensors = vec![(format!("{module}{embedding}"), rows(&stored_tensors.embedding, Side::Input)?)];
    let missing_prefix = if checkpoint.prefix(module).is_empty() { module } else { "" };
    for stored in checkpoint.stored() {
        // A tied model's file may hold the head all the same, and one name of a shared tensor may be the other's.
        if stored.name != stored_tensors.embedding && stored.name != head {
            tensors.push((format!("{missing_prefix}{}", stored.name), Source::Stored(stored)));
        }
    }
    tensors.push((head.to_owned(), rows(stored_head, Side::Output)?));
    Ok(tensors)
}

fn push(block: &[u8], sink: &mut TensorSink<'_>, progress: Progress<'_>) -> Result<()> {
    sink.push(block)?;
    if progress(block.len() as u64) { Ok(()) } else { Err(Error::Interrupted) }
}

fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let written = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| Error::Write { path, source })
}

/// Makes the files' names last, too.
fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Error::Write { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests;
