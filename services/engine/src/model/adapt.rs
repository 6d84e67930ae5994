//! Weights and the patch vocabulary: whether they belong together, and the matrices of an adapted model.

use fused_adaptation::AdaptedRows;
use fused_checkpoint::{Dtype, ModelConfig};
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::embedding::{Initialisation, Side};
use fused_vocabulary::import::EmbeddingMatrix;

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

/// A matrix of the adapted model that was made elsewhere, perhaps trained, in its own precision.
///
/// # Errors
/// It has not as many rows as the vocabulary has tokens, not as many columns as the model, or a value that is no number.
pub(super) fn pickled(
    matrix: &EmbeddingMatrix,
    side: &'static str,
    patch: &PatchVocabulary,
    hidden_size: usize,
) -> Result<Tensor, Error> {
    let found = (matrix.num_rows(), matrix.num_cols());
    let wanted = (patch.vocab_size(), hidden_size);
    if found != wanted {
        return Err(Error::PickledShape { side, found, wanted });
    }
    let read = fused_checkpoint::Tensor { dtype: Dtype::F32, shape: &[], bytes: matrix.bytes() };
    let read = Tensor::read(&read, found.0, found.1);
    if read.is_finite() {
        Ok(read)
    } else {
        Err(Error::NotFinite { tensor: format!("pickled {side} embedding") })
    }
}
