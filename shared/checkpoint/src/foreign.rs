//! What is no model of the form that is read here: said by what it is, and what to do with it.

use crate::weights::{INDEX_FILE, WEIGHTS_FILE};
use crate::{Error, ModelFiles, Result};

/// A kind of file, and what one without a model of ours beside it means.
struct Kind {
    is: fn(&str) -> bool,
    what: &'static str,
    advice: &'static str,
}

const SAVE: &str =
    "load it with transformers and save it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)";

/// What has no config.json of ours either. The first that fits says it: an adapter may lie beside pickles, and checkpoints in
/// several forms side by side.
const FORMS: [Kind; 4] = [
    Kind {
        is: |name| name == "adapter_config.json",
        what: "an adapter (LoRA) without the model that it changes",
        advice: "merge the two and serve the result: PeftModel.merge_and_unload(), then save_pretrained(OUT)",
    },
    Kind {
        is: |name| name == "model_index.json",
        what: "a diffusion pipeline, which generates no text",
        advice: "serve a language model",
    },
    Kind {
        is: |name| has_extension(name, &["gguf"]),
        what: "weights in GGUF form",
        advice: "serve the model that they were made from, or convert them: \
                 AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE).save_pretrained(OUT)",
    },
    Kind {
        is: |name| name == "params.json" || name.starts_with("consolidated."),
        what: "a checkpoint in the form of Meta's or Mistral's own code",
        advice: "serve the same model in Hugging Face form, or convert it with transformers' \
                 convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py",
    },
];

/// Weights that are not read, or not found.
const WEIGHTS: [Kind; 4] = [
    Kind {
        is: |name| {
            has_extension(name, &["bin", "pt", "pth", "ckpt"]) || name == "pytorch_model.bin.index.json"
        },
        what: "weights as pickles (pytorch_model.bin), which could execute code and are not read",
        advice: SAVE,
    },
    Kind {
        is: |name| has_extension(name, &["h5", "msgpack"]),
        what: "weights of TensorFlow or Flax",
        advice: SAVE,
    },
    Kind {
        is: |name| has_extension(name, &["onnx", "ot", "xml", "tflite", "engine"]),
        what: "weights of another runtime (ONNX, OpenVINO, TensorRT)",
        advice: "serve the model that they were made from",
    },
    Kind {
        is: |name| has_extension(name, &["safetensors"]),
        what: "safetensors files of other names, and no index of them",
        advice: "name a single one model.safetensors, or bring the model.safetensors.index.json that belongs to them",
    },
];

/// Files that say of weights beside them that they are not what config.json speaks of.
const MARKS: [(&str, &str, &str); 4] = [
    ("quantize_config.json", "weights quantised by GPTQ", UNQUANTISED),
    ("quant_config.json", "weights quantised by AWQ", UNQUANTISED),
    ("hf_quant_config.json", "weights quantised by ModelOpt", UNQUANTISED),
    (
        "modules.json",
        "a model of sentence-transformers, which makes embeddings and no text",
        "serve it with a server of embeddings, and a language model here",
    ),
];
pub(crate) const UNQUANTISED: &str =
    "serve the model that it was made from, whose weights are bfloat16, float16 or float32";

/// The files beside a model that are looked for, to be downloaded with it.
pub(crate) fn marks() -> impl Iterator<Item = &'static str> {
    MARKS.iter().map(|(file, ..)| *file)
}

/// # Errors
/// A file beside config.json says that this is no language model of plain weights.
pub(crate) fn check(files: &ModelFiles) -> Result<()> {
    for (file, what, advice) in MARKS {
        if files.read(file)?.is_some() {
            let what = format!("{what} ({file})");
            return Err(Error::Foreign { model: files.name().to_owned(), what, advice });
        }
    }
    Ok(())
}

/// Why a model with these files has no config.json.
pub(crate) fn no_config(model: &str, names: &[String]) -> Error {
    explained(model, names, FORMS.iter(), "config.json".to_owned())
}

/// Why a model with these files has no weights.
pub(crate) fn no_weights(model: &str, names: &[String]) -> Error {
    explained(model, names, FORMS.iter().chain(&WEIGHTS), format!("{WEIGHTS_FILE} (or {INDEX_FILE})"))
}

fn explained<'a>(
    model: &str,
    names: &[String],
    mut kinds: impl Iterator<Item = &'a Kind>,
    missing: String,
) -> Error {
    let model = model.to_owned();
    match kinds.find(|kind| names.iter().any(|name| (kind.is)(name))) {
        Some(Kind { what, advice, .. }) => Error::Foreign { model, what: (*what).to_owned(), advice },
        None => Error::MissingFile { model, file: missing },
    }
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| extensions.contains(&extension))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::{Checkpoint, ModelConfig};

    fn folder(names: &[&str]) -> (TempDir, ModelFiles) {
        let dir = TempDir::new().unwrap();
        names.iter().for_each(|name| fs::write(dir.path().join(name), "{}").unwrap());
        let files = ModelFiles::open(dir.path()).unwrap();
        (dir, files)
    }

    #[test]
    fn a_folder_without_a_model_says_what_it_holds_instead() {
        for (names, said) in [
            (&["adapter_config.json", "adapter_model.safetensors"][..], "merge_and_unload"),
            (&["model_index.json"], "diffusion"),
            (&["model-q4_k_m.gguf", "pytorch_model.bin"], "gguf_file="),
            (&["consolidated.00.pth", "params.json"], "Meta's or Mistral's"),
            (&["consolidated.safetensors", "params.json"], "Meta's or Mistral's"),
            (&["pytorch_model.bin"], "save_pretrained"),
            (&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickles"),
            (&["tf_model.h5"], "TensorFlow"),
            (&["flax_model.msgpack"], "Flax"),
            (&["decoder_model.onnx"], "ONNX"),
            (&["model-00001-of-00002.safetensors"], "index"),
            (&["README.md"], "model.safetensors (or model.safetensors.index.json) is missing"),
        ] {
            let (_dir, files) = folder(names);
            let error = Checkpoint::open(&files).unwrap_err().to_string();
            assert!(error.contains(said), "{names:?}: {error}");
        }
        let (_dir, files) = folder(&["adapter_config.json"]);
        assert!(ModelConfig::parse(&files).unwrap_err().to_string().contains("LoRA"));
        for names in [&["README.md"][..], &["model.safetensors"]] {
            let (_dir, files) = folder(names);
            assert!(ModelConfig::parse(&files).unwrap_err().to_string().ends_with("config.json is missing"));
        }
    }

    #[test]
    fn a_mark_beside_the_configuration_is_believed() {
        for (file, ..) in MARKS {
            let (_dir, files) = folder(&["config.json", file]);
            let error = ModelConfig::parse(&files).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }
}
