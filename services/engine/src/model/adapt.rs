//! Weights and the patch vocabulary: whether they belong together, and the matrices of an adapted model.

use fused_adaptation::AdaptedRows;
use fused_checkpoint::ModelConfig;
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::embedding::{Initialisation, Side};

use super::{Error, Tensor};

/// The patch vocabulary that is still to be applied: none for weights that were saved adapted to it.
///
/// # Errors
/// The weights are adapted to another vocabulary.
pub(super) fn needed<'a>(
    config: &ModelConfig,
    patch: Option<&'a PatchVocabulary>,
) -> Result<Option<&'a PatchVocabulary>, Error> {
    match (&config.vocabulary_fingerprint, patch) {
        (None, patch) => Ok(patch),
        (Some(weights), None) => Err(Error::PatchMissing { weights: weights.clone() }),
        (Some(weights), Some(patch)) if *weights != patch.fingerprint().to_string() => {
            Err(Error::OtherPatch { weights: weights.clone(), patch: patch.fingerprint().to_string() })
        }
        (Some(_), Some(patch)) if config.vocab_size != patch.vocab_size() => {
            Err(Error::AdaptedRows { num_rows: config.vocab_size, vocab_size: patch.vocab_size() })
        }
        (Some(_), Some(_)) => Ok(None),
    }
}

/// The adapted model's matrix `[patch vocabulary, hidden]`, as a checkpoint that was saved adapted has it.
///
/// # Errors
/// The patch vocabulary builds on a token that the matrix has no row for.
pub(super) fn matrix(
    base: fused_checkpoint::Tensor<'_>,
    patch: &PatchVocabulary,
    side: Side,
) -> Result<Tensor, Error> {
    let rows = AdaptedRows::new(base, patch, Initialisation::default(), side)?;
    let mut bytes = Vec::with_capacity(rows.num_rows() * rows.row_bytes());
    rows.append(0..rows.num_rows(), &mut bytes);
    let made = fused_checkpoint::Tensor { dtype: rows.dtype(), shape: &[], bytes: &bytes };
    Ok(Tensor::read(&made, rows.num_rows(), rows.num_cols()))
}
