//! The README of an adapted directory, in the form of a model card: whoever opens the folder must not take its
//! tokenizer.json for the model's vocabulary.

use fused_vocabulary::PatchVocabulary;

/// The file.
pub(crate) const CARD_FILE: &str = "README.md";

/// The text for the model that was adapted from `base`.
pub(crate) fn model_card(base: &str, patch: &PatchVocabulary) -> String {
    // A name may hold anything that a path may.
    let base: String = base.chars().filter(|char| !char.is_control() && *char != '`').collect();
    let (num_tokens, num_removed) = (patch.n_tokens().len(), patch.removed().len());
    format!(
        "---\nlibrary_name: fused\ntags: [adaptivocab]\n---\n\n# `{base}`, adapted to a domain's vocabulary\n\n\
         {num_tokens} n-tokens, {num_removed} removed tokens: `patch_vocabulary.json`. Serve it with `fused serve --model` and \
         this directory; fine-tune it before, or it writes weaker text than the base model.\n\n\
         **`tokenizer.json` is the base model's.** The weights have a row for each *model* id, and ids that tokenizer.json \
         alone gives mean other texts to them, without an error. Programs that tokenize by themselves (transformers, vLLM, \
         evaluation harnesses) must not do so here: let them send text, or ask the server's `/tokenize`. For training, \
         `fused vocab encode` writes model ids.\n"
    )
}
