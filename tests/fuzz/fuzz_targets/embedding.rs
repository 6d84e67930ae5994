//! A pickled embedding matrix.
#![no_main]

use fused_vocabulary::import::EmbeddingMatrix;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(matrix) = EmbeddingMatrix::parse(data.to_vec()) {
        assert_eq!(matrix.bytes().len(), matrix.num_rows() * matrix.num_cols() * 4);
    }
});
