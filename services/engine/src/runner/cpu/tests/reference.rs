//! A model adapted by AdaptiVocab's own code: its vocabulary imported, its rows taken from its pickles or computed.

use std::path::Path;

use fused_testkit::{repository, test_data};
use fused_vocabulary::import::{Artefacts, EmbeddingMatrix, import};
use fused_vocabulary::{Row, SpecialTokens, Vocabulary};

use super::*;
use crate::model::{Error, Model};

fn matrix(folder: &Path, side: &str, method: &str) -> EmbeddingMatrix {
    let file = std::fs::read(folder.join(format!("embedding_{side}_{method}.pkl"))).unwrap();
    EmbeddingMatrix::parse(file).unwrap()
}

fn embeddings(folder: &Path, method: &str) -> PatchEmbeddings {
    PatchEmbeddings { input: matrix(folder, "input", method), output: matrix(folder, "output", method) }
}

fn elements(matrix: &EmbeddingMatrix) -> Vec<f32> {
    matrix.bytes().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn elements_of(tensor: &Tensor) -> &[f32] {
    match tensor.elements() {
        fused_kernels::Elements::F32(elements) => elements,
        _ => panic!("not in f32"),
    }
}

fn load(
    files: &ModelFiles,
    patch: &PatchVocabulary,
    embeddings: Option<&PatchEmbeddings>,
) -> Result<Model<Tensor>, Error> {
    let (checkpoint, config) = (Checkpoint::open(files).unwrap(), ModelConfig::parse(files).unwrap());
    Model::load(&checkpoint, &config, Some(patch), embeddings, &Ok)
}

/// The rows computed here against those of the pickles, to 1e-6; kept tokens' to the bit.
fn check_rows(files: &ModelFiles, patch: &PatchVocabulary, folder: &Path) {
    let adapted = load(files, patch, None).unwrap();
    let width = adapted.shape.hidden_size;
    let mut max_error = 0.0_f32;
    let mut max_to_mean = 0.0_f32;
    for (side, tensor) in [("input", &adapted.embedding), ("output", adapted.head.as_ref().unwrap())] {
        let pickled = elements(&matrix(folder, side, "exp_emb"));
        let mean = elements(&matrix(folder, side, "mean_emb"));
        let to_mean = elements_of(tensor).iter().zip(&mean).map(|(computed, mean)| (computed - mean).abs());
        max_to_mean = to_mean.fold(max_to_mean, f32::max);
        let rows = elements_of(tensor).chunks(width).zip(pickled.chunks(width));
        assert_eq!(rows.len(), patch.vocab_size());
        for (row, (computed, pickled)) in patch.rows().zip(rows) {
            match row {
                Row::Base(token) => assert_eq!(computed, pickled, "{side}, base token {token}"),
                Row::NToken(_) => {
                    let errors =
                        computed.iter().zip(pickled).map(|(computed, pickled)| (computed - pickled).abs());
                    max_error = errors.fold(max_error, f32::max);
                }
            }
        }
    }
    assert!(max_error <= 1e-6, "{max_error}");
    assert!(max_to_mean > 1e-2, "otherwise made rows are further off: {max_to_mean}");
    println!("{}: rows of n-tokens within {max_error:e}", folder.display());
}

/// What the case's model makes of the case's prompt; how many greedy tokens could be compared.
fn check_case(case: &Value, vocabulary: &Vocabulary, bos: u64, machine: &mut Machine) -> usize {
    let what = format!("{} {:?}", case["method"], case["prompt"]);
    let prompt = ids(&case["ids"]);
    let text = vocabulary.encode(case["prompt"].as_str().unwrap(), SpecialTokens::Omit).unwrap().ids;
    let bos = case["bos"].as_bool().unwrap().then(|| TokenId(bos.try_into().unwrap()));
    assert_eq!(bos.into_iter().chain(text).collect::<Vec<_>>(), prompt, "{what}");

    let mut running = [machine.start(&prompt)];
    let wanted = ids(&case["greedy_ids"]);
    let margins = case["greedy_margin"].as_array().unwrap().iter().map(|margin| margin.as_f64().unwrap());
    let mut num_sure = 0;
    for (idx, (wanted, margin)) in wanted.iter().zip(margins).enumerate() {
        let drawn = machine.step(&mut running);
        if idx == 0 {
            let tops = ids(&case["top8_ids"]).into_iter().zip(case["top8_logits"].as_array().unwrap());
            tops.for_each(|(id, logit)| assert_close(machine.logits(0)[id.row()], logit, &what));
        }
        // Some n-tokens read the same and have the same rows: either is as likely.
        if margin > 1e-3 {
            assert_eq!(drawn, [*wanted], "{what}, token {idx}");
            num_sure += 1;
        }
        running[0].tokens = vec![*wanted];
    }
    machine.kv.release(running[0].slot);
    num_sure
}

#[test]
fn a_model_adapted_by_the_reference_writes_what_it_writes_there() {
    let Some(golden) = test_data("adaptivocab-golden") else { return };
    let Ok(files) = ModelFiles::open(&repository().join("../shared/data/models/stories260K")) else {
        return println!("SKIPPED: no model stories260K beside the repository");
    };
    let tokenizer = files.read("tokenizer.json").unwrap().unwrap();
    for run in ["stories260K-300", "stories260K-400-nocache"] {
        let folder = golden.join(run);
        let pickle = std::fs::read(folder.join("patch_tokenizer.pkl")).unwrap();
        let patch = import(&Artefacts::PatchTokenizer(&pickle), Some(&tokenizer)).unwrap().patch;
        check_rows(&files, &patch, &folder);

        let vocabulary = Vocabulary::load(&tokenizer, Some(patch.clone())).unwrap();
        let base = Vocabulary::load(&tokenizer, None).unwrap();
        let json: Value =
            serde_json::from_slice(&std::fs::read(folder.join("model_golden.json")).unwrap()).unwrap();
        let new_bos = json["bos_new_id"].as_u64().unwrap();
        let [exp, mean] = ["exp_emb", "mean_emb"].map(|method| embeddings(&folder, method));
        let (mut num_prompts, mut num_tokens) = (0, 0);
        for (method, vocabulary, bos, patch, embeddings) in [
            ("base", &base, 1, None, None),
            ("exp_emb", &vocabulary, new_bos, Some(&patch), None),
            ("exp_emb", &vocabulary, new_bos, Some(&patch), Some(&exp)),
            ("mean_emb", &vocabulary, new_bos, Some(&patch), Some(&mean)),
        ] {
            let mut machine = Machine::load(&files, patch, embeddings, None);
            for case in json["cases"].as_array().unwrap().iter().filter(|case| case["method"] == method) {
                num_tokens += check_case(case, vocabulary, bos, &mut machine);
                num_prompts += 1;
            }
        }
        println!("{run}: {num_prompts} prompts, {num_tokens} greedy tokens");
        assert_eq!(num_prompts, 80);
        assert!(num_tokens > 80 * 20);
    }
}

#[test]
fn pickled_matrices_are_taken_as_they_are_or_refused_by_their_shape() {
    let folder = repository().join("tests/golden/adaptivocab-toy");
    let tokenizer = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let pickle = std::fs::read(folder.join("patch_tokenizer.pkl")).unwrap();
    let patch = import(&Artefacts::PatchTokenizer(&pickle), Some(&tokenizer)).unwrap().patch;
    let made = embeddings(&folder, "exp_emb");
    let files = |model| ModelFiles::open(&model_dir(model)).unwrap();
    let model = load(&files("tiny-llama3"), &patch, Some(&made)).unwrap();
    assert_eq!(elements_of(&model.embedding), elements(&made.input));
    assert_eq!(elements_of(model.head.as_ref().unwrap()), elements(&made.output));

    let error = load(&files("demo-llama"), &patch, Some(&made)).unwrap_err();
    assert!(matches!(error, Error::PickledShape { found: (128, 48), wanted: (128, 256), .. }), "{error}");
    let mut file = std::fs::read(folder.join("embedding_output_exp_emb.pkl")).unwrap();
    let end = file.windows(4).rposition(|bytes| bytes == made.output.bytes().last_chunk::<4>().unwrap());
    file.splice(end.unwrap()..end.unwrap() + 4, f32::NAN.to_le_bytes());
    let broken = PatchEmbeddings { output: EmbeddingMatrix::parse(file).unwrap(), ..made };
    let error = load(&files("tiny-llama3"), &patch, Some(&broken)).unwrap_err();
    assert!(
        error.to_string().contains("`pickled output embedding` holds a value that is not finite"),
        "{error}"
    );
}
