//! Written directories hold the rows that AdaptiVocab's own code computed for the same vocabulary.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write;

use fused_adaptation::AdaptedModel;
use fused_checkpoint::{Checkpoint, ModelFiles};
use fused_testkit::{repository, test_data};
use fused_vocabulary::embedding::Initialisation;
use fused_vocabulary::import::{Artefacts, EmbeddingMatrix, import};

#[test]
fn rows_are_those_of_the_reference_for_both_initialisations() {
    let Some(golden) = test_data("adaptivocab-golden") else { return };
    let Ok(base) = ModelFiles::open(&repository().join("../shared/data/models/stories260K")) else {
        // Not by a macro: the test harness would swallow it, and a skipped test must be seen to be skipped.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no model stories260K beside the repository");
        return;
    };
    let checkpoint = Checkpoint::open(&base).unwrap();
    let tokenizer = base.read("tokenizer.json").unwrap().unwrap();
    for run in ["stories260K-300", "stories260K-400-nocache"] {
        let folder = golden.join(run);
        let pickle = std::fs::read(folder.join("patch_tokenizer.pkl")).unwrap();
        let patch = import(&Artefacts::PatchTokenizer(&pickle), Some(&tokenizer)).unwrap().patch;
        for (initialisation, method) in
            [(Initialisation::Exponential, "exp_emb"), (Initialisation::Mean, "mean_emb")]
        {
            let out = tempfile::tempdir().unwrap();
            let model = AdaptedModel::plan(&base, &checkpoint, &patch, initialisation, u64::MAX).unwrap();
            model.write(out.path(), &mut |_| true).unwrap();
            let written = Checkpoint::open(&ModelFiles::open(out.path()).unwrap()).unwrap();
            for (side, tensor) in [("input", "model.embed_tokens.weight"), ("output", "lm_head.weight")] {
                let file = std::fs::read(folder.join(format!("embedding_{side}_{method}.pkl"))).unwrap();
                let pickled = EmbeddingMatrix::parse(file).unwrap();
                let shape = [pickled.num_rows(), pickled.num_cols()];
                let rows = written.tensor_with_shape(tensor, &shape).unwrap().to_f32();
                let (pickled, _) = pickled.bytes().as_chunks::<4>();
                let errors =
                    rows.iter().zip(pickled).map(|(row, bytes)| (row - f32::from_le_bytes(*bytes)).abs());
                let max_error = errors.fold(0.0, f32::max);
                assert!(max_error <= 1e-6, "{run}, {side}, {method}: {max_error}");
            }
        }
    }
}
