//! Embedding rows for a patch vocabulary (AdaptiVocab, arXiv 2503.19693, section 3.3).

use fused_checkpoint::{Dtype, ModelConfig};
use fused_vocabulary::import::EmbeddingMatrix;
use fused_vocabulary::{PatchVocabulary, Row, TokenId};

use super::tensor::{Element, MakeRows};
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

/// The adapted model's matrix `[patch vocabulary, hidden]`: a base token's row is copied; an n-token's is the average of
/// its base tokens' rows with `weights` of their number, computed in f32 and rounded to the matrix's precision.
///
/// # Errors
/// The patch vocabulary builds on a token that the matrix has no row for.
pub(super) fn rows(
    base: &Tensor,
    patch: &PatchVocabulary,
    weights: fn(usize) -> Vec<f32>,
) -> Result<Tensor, Error> {
    let num_rows = base.num_rows();
    let unknown = patch.rows().find_map(|row| {
        let tokens = match &row {
            Row::Base(token) => std::slice::from_ref(token),
            Row::NToken(tokens) => tokens,
        };
        tokens.iter().copied().find(|token| token.row() >= num_rows)
    });
    if let Some(token) = unknown {
        return Err(Error::BaseToken { token, num_rows });
    }
    Ok(base.with_rows(patch.vocab_size(), &Rows { rows: patch.rows().collect(), weights }))
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

struct Rows<'a> {
    rows: Vec<Row<'a>>,
    weights: fn(usize) -> Vec<f32>,
}

impl MakeRows for Rows<'_> {
    fn append<T: Element>(&self, row_idx: usize, base: &[T], num_cols: usize, made: &mut Vec<T>) {
        let row_of = |token: TokenId| &base[token.row() * num_cols..][..num_cols];
        match self.rows[row_idx] {
            Row::Base(token) => made.extend_from_slice(row_of(token)),
            Row::NToken(tokens) => {
                let mut average = vec![0.0; num_cols];
                for (token, weight) in tokens.iter().zip((self.weights)(tokens.len())) {
                    for (sum, element) in average.iter_mut().zip(row_of(*token)) {
                        *sum += weight * element.widen();
                    }
                }
                made.extend(average.into_iter().map(T::narrow));
            }
        }
    }
}
