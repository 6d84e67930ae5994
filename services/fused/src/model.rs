//! Which model: the one named by the settings, or the demo model that this binary carries.

use std::path::Path;

use anyhow::Context;
use fused_checkpoint::{ModelFiles, Wanted};
use fused_settings::Settings;
use fused_vocabulary::PatchVocabulary;

/// The patch vocabulary of a model directory.
const PATCH_FILE: &str = "patch_vocabulary.json";

macro_rules! demo_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../tests/models/demo-llama/", $name)))
    };
}

const DEMO_NAME: &str = "demo-llama";
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
        Some(model) => Ok(ModelFiles::resolve(model, wanted)?),
    }
}

/// The patch vocabulary: the file that is named, unless that is `none`, else the one beside the model, else none.
pub(crate) fn patch(named: Option<&str>, files: &ModelFiles) -> anyhow::Result<Option<PatchVocabulary>> {
    match named {
        Some("none") => Ok(None),
        Some(path) => {
            let bytes =
                std::fs::read(Path::new(path)).with_context(|| format!("patch vocabulary `{path}`"))?;
            let patch =
                PatchVocabulary::parse(&bytes).with_context(|| format!("patch vocabulary `{path}`"))?;
            Ok(Some(patch))
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

/// The name clients use.
pub(crate) fn served_name(settings: &Settings, files: &ModelFiles) -> String {
    settings.served_model_name.clone().unwrap_or_else(|| files.name().to_owned())
}
