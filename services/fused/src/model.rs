//! Which model: the one named by the settings, or the demo model that this binary carries.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail};
use fused_adaptation::tokenizer_json;
use fused_checkpoint::{ModelFiles, Wanted};
use fused_settings::Settings;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::{PatchEmbeddings, import};

use crate::reference_files::{self, ReferenceFiles};

/// The patch vocabulary of a model directory.
const PATCH_FILE: &str = "patch_vocabulary.json";
/// What is read of a chat template's file; the tokenizer takes less.
const MAX_TEMPLATE_FILE_BYTES: u64 = 1 << 20;
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

macro_rules! demo_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../tests/models/demo-llama-tldr/", $name)))
    };
}

const DEMO_NAME: &str = "demo-llama-tldr";
static DEMO_FILES: [(&str, &[u8]); 6] = [
    demo_file!("config.json"),
    demo_file!("generation_config.json"),
    demo_file!("model.safetensors"),
    demo_file!("tokenizer.json"),
    demo_file!("tokenizer_config.json"),
    demo_file!("patch_vocabulary.json"),
];

/// The files of the model that `model` names; none: the demo model.
pub(crate) fn files(model: Option<&str>, wanted: Wanted) -> anyhow::Result<ModelFiles> {
    match model {
        None => Ok(ModelFiles::embedded(DEMO_NAME, &DEMO_FILES)),
        Some(model) => {
            // A relative path may mean another place than was thought of.
            let path = std::path::absolute(model).unwrap_or_else(|_| model.into());
            if path.is_file() {
                bail!("setting model: {} is a file: give the directory that it lies in", path.display());
            }
            ModelFiles::resolve(model, wanted).with_context(|| match path.is_dir() {
                true => "setting model".to_owned(),
                false => format!("setting model: there is no directory {}", path.display()),
            })
        }
    }
}

/// The patch vocabulary: the file that is named, unless that is `none`, else the one beside the model, else none.
pub(crate) fn patch(named: Option<&str>, files: &ModelFiles) -> anyhow::Result<Option<PatchVocabulary>> {
    match named {
        Some("none") => Ok(None),
        Some(path) => {
            read_patch(Path::new(path), files).with_context(|| format!("patch vocabulary `{path}`")).map(Some)
        }
        None => files
            .read(PATCH_FILE)?
            .map(|bytes| {
                PatchVocabulary::parse(&bytes)
                    .with_context(|| format!("{PATCH_FILE} of model `{}`", files.name()))
            })
            .transpose(),
    }
}

/// A `patch_vocabulary.json`, or a pickle of AdaptiVocab's own code.
fn read_patch(path: &Path, files: &ModelFiles) -> anyhow::Result<PatchVocabulary> {
    if !reference_files::is_pickle(path)? {
        return Ok(PatchVocabulary::parse(&std::fs::read(path)?)?);
    }
    let reference = ReferenceFiles::read(path)?;
    Ok(import(&reference.artefacts(), Some(&tokenizer_json(files)?))?.patch)
}

/// The embedding matrices that lie beside a named pickle, to be taken in place of those computed from the model's.
pub(crate) fn patch_embeddings(named: Option<&str>) -> anyhow::Result<Option<PatchEmbeddings>> {
    match named.map(Path::new) {
        Some(path) if path != Path::new("none") && reference_files::is_pickle(path)? => {
            reference_files::embeddings(path)
        }
        _ => Ok(None),
    }
}

/// A chat template in place of the model's: what is no path's text is the template itself.
pub(crate) fn chat_template(given: &str) -> anyhow::Result<String> {
    if given.contains(['{', '\n']) {
        return Ok(given.to_owned());
    }
    let read = || {
        let mut text = String::new();
        File::open(given)?.take(MAX_TEMPLATE_FILE_BYTES + 1).read_to_string(&mut text)?;
        anyhow::ensure!(text.len() as u64 <= MAX_TEMPLATE_FILE_BYTES, "over {MAX_TEMPLATE_FILE_BYTES} bytes");
        Ok(text)
    };
    read().with_context(|| format!("setting chat_template: the file `{given}` cannot be read"))
}

/// The names clients may use, at least one.
pub(crate) fn served_names(settings: &Settings, files: &ModelFiles) -> Vec<String> {
    match &*settings.served_model_name {
        [] => vec![files.name().to_owned()],
        names => names.to_vec(),
    }
}

/// The name that answers tell.
pub(crate) fn served_name(settings: &Settings, files: &ModelFiles) -> String {
    settings.served_model_name.first().map_or(files.name(), String::as_str).to_owned()
}

/// Whose `generation_config.json` counts, if any does.
pub(crate) fn generation_config(
    settings: &Settings,
    files: &ModelFiles,
) -> anyhow::Result<Option<ModelFiles>> {
    match &*settings.generation_config {
        "auto" => Ok(Some(files.clone())),
        // The latter is vLLM's name for it.
        "none" | "vllm" => Ok(None),
        dir => {
            let files = ModelFiles::open(Path::new(dir));
            let problem = || format!("setting generation_config: `{dir}` is not auto, none or a directory");
            let files = files.with_context(problem)?;
            if files.read(GENERATION_CONFIG_FILE)?.is_none() {
                anyhow::bail!("setting generation_config: `{dir}` has no {GENERATION_CONFIG_FILE}");
            }
            Ok(Some(files))
        }
    }
}
