use std::ops::Range;

use fused_checkpoint::{Dtype, Tensor};
use fused_vocabulary::embedding::{Initialisation, Side};
use fused_vocabulary::{PatchVocabulary, Row, TokenId};

use crate::{Error, Result};

/// One matrix of the adapted model, `[patch vocabulary, hidden]`, made from the base model's `[base vocabulary, hidden]`
/// in the same precision: a base token's row is copied, an n-token's is the average of its base tokens' rows, computed
/// in f32 and rounded once. Base rows that the patch vocabulary does not name, such as those that fill a matrix up
/// behind the tokenizer's last id, have no row in the adapted model.
#[derive(Debug)]
pub struct AdaptedRows<'a> {
    base: Tensor<'a>,
    num_cols: usize,
    rows: Vec<Row<'a>>,
    /// By number of base tokens.
    weights: Vec<Vec<f32>>,
}

impl<'a> AdaptedRows<'a> {
    /// The rows of one side. `base` is a matrix.
    ///
    /// # Errors
    /// The patch vocabulary builds on a token that the matrix has no row for.
    pub fn new(
        base: Tensor<'a>,
        patch: &'a PatchVocabulary,
        initialisation: Initialisation,
        side: Side,
    ) -> Result<Self> {
        let num_rows = base.shape.first().copied().unwrap_or(0);
        let num_cols = base.num_elements().checked_div(num_rows).unwrap_or(0);
        let rows: Vec<_> = patch.rows().collect();
        if let Some(token) =
            rows.iter().find_map(|row| base_tokens(row).iter().find(|token| token.row() >= num_rows))
        {
            return Err(Error::BaseToken { token: *token, num_rows });
        }
        let most = rows.iter().map(|row| base_tokens(row).len()).max().unwrap_or(0);
        let weights = (0..=most).map(|len| initialisation.weights(side, len)).collect();
        Ok(Self { base, num_cols, rows, weights })
    }

    /// Rows: model ids.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Columns: the model's width.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// The base matrix's element type, which the rows have too.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.base.dtype
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.num_cols * self.base.dtype.num_bytes()
    }

    /// Appends some of the rows, little-endian; those that do not exist are left out.
    pub fn append(&self, rows: Range<usize>, bytes: &mut Vec<u8>) {
        let mut average = vec![0.0; self.num_cols];
        for row in self.rows.iter().take(rows.end).skip(rows.start) {
            match row {
                Row::Base(token) => bytes.extend_from_slice(self.base_row(*token)),
                Row::NToken(tokens) => {
                    self.average(tokens, &mut average);
                    self.base.dtype.append(&average, bytes);
                }
            }
        }
    }

    fn average(&self, tokens: &[TokenId], average: &mut [f32]) {
        average.fill(0.0);
        for (token, weight) in tokens.iter().zip(&self.weights[tokens.len()]) {
            let row = Tensor { dtype: self.base.dtype, shape: &[], bytes: self.base_row(*token) };
            for (sum, element) in average.iter_mut().zip(row.to_f32()) {
                *sum += weight * element;
            }
        }
    }

    /// Within the matrix: every token was checked by [`new`](Self::new).
    fn base_row(&self, token: TokenId) -> &[u8] {
        &self.base.bytes[token.row() * self.row_bytes()..][..self.row_bytes()]
    }
}

fn base_tokens<'r>(row: &'r Row<'_>) -> &'r [TokenId] {
    match row {
        Row::Base(token) => std::slice::from_ref(token),
        Row::NToken(tokens) => tokens,
    }
}

#[cfg(test)]
mod tests {
    use fused_vocabulary::{Mode, NToken, PatchContent, Segmentation};

    use super::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    /// Three base tokens, moved up by the two n-tokens before them.
    fn patch() -> PatchVocabulary {
        PatchVocabulary::new(PatchContent {
            base_tokenizer: "07".repeat(32).parse().unwrap(),
            mode: Mode::Extend,
            segmentation: Segmentation::Optimal,
            model_ids: [2, 4, 3].map(|id| Some(TokenId(id))).into(),
            removed: Vec::new(),
            n_tokens: vec![
                NToken { id: TokenId(0), base: ids(&[0, 1]), text: String::new() },
                NToken { id: TokenId(1), base: ids(&[2, 1, 2]), text: String::new() },
            ],
        })
        .unwrap()
    }

    /// A matrix of 4 rows, the last of which no token has.
    const BASE: [f32; 8] = [3.0, -6.0, 12.0, 0.75, 7.0, 14.0, 1e30, f32::NAN];

    fn rows(dtype: Dtype, initialisation: Initialisation, side: Side, blocks: &[Range<usize>]) -> Vec<f32> {
        let mut bytes = Vec::new();
        dtype.append(&BASE, &mut bytes);
        let patch = patch();
        let base = Tensor { dtype, shape: &[4, 2], bytes: &bytes };
        let rows = AdaptedRows::new(base, &patch, initialisation, side).unwrap();
        assert_eq!((rows.num_rows(), rows.num_cols(), rows.dtype()), (5, 2, dtype));
        let mut made = Vec::new();
        blocks.iter().for_each(|block| rows.append(block.clone(), &mut made));
        assert_eq!(made.len(), 5 * rows.row_bytes());
        Tensor { dtype, shape: &[], bytes: &made }.to_f32()
    }

    #[test]
    fn rows_are_copied_moved_and_averaged_in_every_precision() {
        let kept = [3.0, -6.0, 7.0, 14.0, 12.0, 0.75];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (initialisation, side, averages) in [
                (Initialisation::Exponential, Side::Input, [9.0, -1.5, 8.428_572, 10.214_286]),
                (Initialisation::Exponential, Side::Output, [6.0, -3.75, 8.428_572, 10.214_286]),
                (Initialisation::Mean, Side::Output, [7.5, -2.625, 8.666_667, 9.583_333]),
            ] {
                let made = rows(dtype, initialisation, side, std::slice::from_ref(&(0..5)));
                assert_eq!(made[4..], kept, "copied as they are");
                let tolerance = if dtype == Dtype::F32 { 1e-6 } else { 1.0 / 256.0 };
                for (got, wanted) in made.iter().zip(averages) {
                    assert!((got - wanted).abs() <= tolerance * wanted.abs(), "{dtype:?}: {got} {wanted}");
                }
                assert_eq!(rows(dtype, initialisation, side, &[0..1, 1..4, 4..9]), made, "in blocks");
            }
        }
    }

    #[test]
    fn a_token_without_a_row_is_named() {
        let patch = patch();
        let base = Tensor { dtype: Dtype::F32, shape: &[2, 2], bytes: &[0; 16] };
        let error = AdaptedRows::new(base, &patch, Initialisation::Mean, Side::Input).unwrap_err();
        assert!(matches!(error, Error::BaseToken { token: TokenId(2), num_rows: 2 }), "{error}");
        let empty = Tensor { dtype: Dtype::F32, shape: &[], bytes: &[] };
        assert!(AdaptedRows::new(empty, &patch, Initialisation::Mean, Side::Input).is_err());
    }
}
