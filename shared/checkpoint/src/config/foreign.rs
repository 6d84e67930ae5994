//! Configurations of models that are something else than a dense language model of plain weights. Each would load in
//! part, or not at all with a message about some key that it lacks.

use super::keys::{Keys, Problem};
use crate::foreign::UNQUANTISED;

const ENCODERS: [&str; 15] = [
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "longformer",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
    "new",
];
const EXPERTS: [&str; 4] = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];

/// # Errors
/// The first key that says what else it is.
pub(super) fn check(keys: &Keys<'_>) -> Result<(), Problem> {
    quantised(keys)?;
    for key in ["vision_config", "audio_config", "text_config", "language_config", "thinker_config"] {
        if keys.is_object(key) {
            return Err(multimodal(key, "describes a part of a model of text and images or sound"));
        }
    }
    if keys.flag("is_encoder_decoder")?.unwrap_or(false) {
        let problem =
            "is true: an encoder with a decoder, which is not supported; serve a decoder-only model";
        return Err(Problem::new("is_encoder_decoder", problem));
    }
    if let Some(model_type) = keys.text("model_type")?
        && ENCODERS.contains(&model_type)
    {
        let problem =
            format!("is `{model_type}`, an encoder, which generates no text; serve a decoder-only model");
        return Err(Problem::new("model_type", problem));
    }
    for key in EXPERTS {
        if let Some(count) = keys.count(key, 0..=usize::MAX)?.filter(|&count| count > 1) {
            let problem = format!("is {count}: mixtures of experts are not supported; serve a dense model");
            return Err(Problem::new(key, problem));
        }
    }
    architectures(keys)
}

fn quantised(keys: &Keys<'_>) -> Result<(), Problem> {
    for key in ["quantization_config", "compression_config", "quantization"] {
        let Some(config) = keys.object(key)?.filter(|config| !config.is_empty()) else { continue };
        let is = |flag| config.flag(flag).is_ok_and(|flag| flag == Some(true));
        let method = match config.text("quant_method")?.or(config.text("quant_algo")?) {
            Some(method) => method,
            None if is("load_in_4bit") || is("load_in_8bit") => "bitsandbytes",
            None if key == "compression_config" => "compressed-tensors",
            None if key == "quantization" => "MLX",
            None => "an unnamed method",
        };
        let problem =
            format!("says that the weights are quantised ({method}), which is not supported; {UNQUANTISED}");
        return Err(Problem::new(key, problem));
    }
    Ok(())
}

/// Heads other than a language model's share its `model_type` and most of its weights.
fn architectures(keys: &Keys<'_>) -> Result<(), Problem> {
    let key = "architectures";
    let Some(names) = keys.texts(key)?.filter(|names| !names.is_empty()) else { return Ok(()) };
    let is_language_model =
        |name: &&str| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel") || *name == "GPT2Model";
    if names.iter().any(is_language_model) {
        return Ok(());
    }
    let name = names[0];
    if name.ends_with("ForConditionalGeneration") || name.ends_with("ForImageTextToText") {
        return Err(multimodal(key, &format!("names `{name}`, a model of text and images or sound")));
    }
    let problem = format!(
        "names `{name}`, which has no head of a language model and generates no text; serve a …ForCausalLM"
    );
    Err(Problem::new(key, problem))
}

fn multimodal(key: &str, what: &str) -> Problem {
    let advice = "save its language model alone (model.language_model.save_pretrained(OUT) in transformers), or serve a model of text";
    Problem::new(key, format!("{what}, which is not supported; {advice}"))
}
