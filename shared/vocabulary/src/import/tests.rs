use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{SpecialText, SpecialTokens, TokenId, Vocabulary};

macro_rules! toy {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/golden/adaptivocab-toy/", $name)).as_slice()
    };
}

const WHOLE: &[u8] = toy!("patch_tokenizer.pkl");
const TOKENIZER: &[u8] = toy!("tokenizer.json");
const INPUT: &[u8] = toy!("embedding_input_exp_emb.pkl");
const PIECES: Artefacts<'static> = Artefacts::Pieces {
    removed_tokens: toy!("removed_tokens.pkl"),
    added_ngrams: toy!("added_ngrams.pkl"),
    inputs_ids_convert: toy!("inputs_ids_convert.pkl"),
};

fn expected() -> Value {
    serde_json::from_slice(toy!("expected.json")).unwrap()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap().try_into().unwrap())).collect()
}

fn error(artefacts: &Artefacts<'_>, tokenizer: Option<&[u8]>) -> String {
    import(artefacts, tokenizer).unwrap_err().to_string()
}

#[test]
fn the_toy_vocabulary_encodes_as_it_was_made_to() {
    let expected = expected();
    for (artefacts, tokenizer, source) in [
        (Artefacts::PatchTokenizer(WHOLE), None, TokenizerSource::Pickle),
        (Artefacts::PatchTokenizer(WHOLE), Some(TOKENIZER), TokenizerSource::Model),
        (Artefacts::PatchTokenizer(toy!("patch_tokenizer_transformers5.pkl")), None, TokenizerSource::Pickle),
        (PIECES, Some(TOKENIZER), TokenizerSource::ModelUnchecked),
    ] {
        let imported = import(&artefacts, tokenizer).unwrap();
        assert_eq!(&imported.tokenizer_json[..], TOKENIZER);
        assert_eq!(
            imported.report,
            ImportReport {
                num_n_tokens: 6,
                num_removed: 6,
                num_never_matching: 2,
                num_other_rows: 1,
                tokenizer: source
            }
        );
        assert!(imported.report.to_string().contains("2 n-tokens contain a removed or a special token"));
        let vocabulary = Vocabulary::load(TOKENIZER, Some(imported.patch)).unwrap();
        for row in expected["rows"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let encoding = vocabulary.encode(text, SpecialTokens::Omit).unwrap();
            assert_eq!(encoding.ids, ids(&row["patch_ids"]), "{text:?}");
            assert_eq!(encoding.num_base_tokens, ids(&row["base_ids"]).len(), "{text:?}");
            assert_eq!(vocabulary.decode(&encoding.ids, SpecialText::Keep), text);
        }
    }
}

#[test]
fn an_n_token_that_no_text_is_encoded_to_can_be_decoded() {
    let patch = import(&Artefacts::PatchTokenizer(WHOLE), None).unwrap().patch;
    let id = |idx: usize| patch.n_tokens()[idx].id;
    let (with_removed, with_special) = (id(2), id(3));
    let vocabulary = Vocabulary::load(TOKENIZER, Some(patch)).unwrap();
    for special in [SpecialText::Skip, SpecialText::Keep] {
        assert_eq!(vocabulary.decode(&[with_removed, with_special], special), " was a\n<|end|>");
    }
    assert!(!vocabulary.is_special(with_special));
    let end = vocabulary.token_id("<|end|>").unwrap();
    assert!(vocabulary.is_special(end));
    let ids = vocabulary.encode("\n<|end|>", SpecialTokens::Omit).unwrap().ids;
    assert_eq!(ids.last(), Some(&end));
    assert_eq!(vocabulary.decode(&ids, SpecialText::Skip), "\n");
}

#[test]
fn a_model_whose_tokenizer_encodes_otherwise_is_refused_with_the_difference() {
    let changed = |change: fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(TOKENIZER).unwrap();
        change(&mut json);
        json.to_string().into_bytes()
    };
    let whole = Artefacts::PatchTokenizer(WHOLE);
    for (change, difference) in [
        (
            (|json: &mut Value| {
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                let (e, t) = (vocab["e"].clone(), vocab["t"].clone());
                (vocab["e"], vocab["t"]) = (t, e);
            }) as fn(&mut Value),
            "model.vocab: 2 tokens have another id or none; token \"e\" has the id 73 in the pickle and 88 in the model",
        ),
        (
            |json| {
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                vocab.insert("new".to_owned(), json!(128));
            },
            "model.vocab: the model has 1 tokens more, as \"new\" with the id 128",
        ),
        (
            |json| json["model"]["merges"].as_array_mut().unwrap().swap(0, 3),
            "model.merges: rank 0 joins \"Ġ\" and \"t\" in the pickle, \"i\" and \"n\" in the model",
        ),
        (
            |json| drop(json["model"]["merges"].as_array_mut().unwrap().pop()),
            "model.merges: there are 29 in the pickle and 28 in the model",
        ),
        (
            |json| {
                json["added_tokens"][2]["lstrip"] = json!(true);
            },
            "added_tokens: 2 is {\"id\":2,\"content\":",
        ),
        (
            |json| {
                json["normalizer"] = json!({"type": "NFC"});
            },
            "normalizer is null in the pickle and {\"type\":\"NFC\"} in the model",
        ),
        (
            |json| {
                json["pre_tokenizer"]["use_regex"] = json!(true);
            },
            "pre_tokenizer is {",
        ),
        (
            |json| {
                json["model"]["ignore_merges"] = json!(true);
            },
            "model.ignore_merges is false in the pickle and true in the model",
        ),
    ] {
        let error = error(&whole, Some(&changed(change)));
        let message = "the vocabulary was made for another tokenizer than the model's: ";
        assert!(error.starts_with(&format!("{message}{difference}")), "{error}");
    }
    // Other spellings and defaults, another decoder: the ids of every text are the same.
    let spelled = changed(|json| {
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
        json["model"].as_object_mut().unwrap().remove("ignore_merges");
        json["decoder"]["trim_offsets"] = json!(false);
        json["truncation"] = json!(null);
    });
    let imported = import(&whole, Some(&spelled)).unwrap();
    assert_eq!(imported.report.tokenizer, TokenizerSource::ModelWrittenOtherwise);
    assert!(Vocabulary::load(&spelled, Some(imported.patch)).is_ok());
}

/// Python values, to write pickles of.
enum Py {
    Int(i32),
    Text(&'static str),
    List(Vec<Py>),
    Tuple(Vec<Py>),
    Dict(Vec<(Py, Py)>),
}

fn pickled(value: &Py) -> Vec<u8> {
    fn write(value: &Py, out: &mut Vec<u8>) {
        match value {
            Py::Int(int) => {
                out.push(b'J');
                out.extend(int.to_le_bytes());
            }
            Py::Text(text) => {
                out.push(b'X');
                out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
                out.extend(text.as_bytes());
            }
            Py::List(items) => {
                out.extend(b"](");
                items.iter().for_each(|item| write(item, out));
                out.push(b'e');
            }
            Py::Tuple(items) => {
                out.push(b'(');
                items.iter().for_each(|item| write(item, out));
                out.push(b't');
            }
            Py::Dict(items) => {
                out.extend(b"}(");
                items.iter().for_each(|(key, value)| {
                    write(key, out);
                    write(value, out);
                });
                out.push(b'u');
            }
        }
    }
    let mut out = b"\x80\x02".to_vec();
    write(value, &mut out);
    out.push(b'.');
    out
}

/// The three pieces, as values that a test changes.
struct Pieces {
    removed: Vec<(Py, Py)>,
    ngrams: Vec<(Py, Py)>,
    converter: Vec<(Py, Py)>,
}

/// A tokenizer of four tokens: `a`, `b`, `ab` and `aba`, of which the last becomes the n-token `a b`.
const FOUR: &str = r#"{"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": ["a b", "ab a"]}}"#;

fn texts(texts: &[&'static str]) -> Vec<Py> {
    texts.iter().map(|text| Py::Text(text)).collect()
}

fn entry(old: Py, new: i32) -> Py {
    Py::Dict(vec![(Py::Text("old_indices"), old), (Py::Text("new_index"), Py::Int(new))])
}

fn pieces() -> Pieces {
    let ngram = || Py::Tuple(texts(&["b", "a"]));
    let numbered = |text, old, new| (Py::Text(text), entry(Py::Int(old), new));
    Pieces {
        removed: vec![(Py::Text("aba"), Py::List(texts(&["ab", "a"])))],
        ngrams: vec![(ngram(), Py::Int(7))],
        converter: vec![
            numbered("ab", 2, 0),
            numbered("a", 0, 1),
            numbered("b", 1, 2),
            (ngram(), entry(Py::List(vec![Py::Int(1), Py::Int(0)]), 3)),
        ],
    }
}

fn import_pieces(pieces: Pieces) -> std::result::Result<PatchVocabulary, String> {
    import_pieces_for(pieces, FOUR)
}

fn import_pieces_for(pieces: Pieces, tokenizer: &str) -> std::result::Result<PatchVocabulary, String> {
    let [removed, ngrams, converter] =
        [pieces.removed, pieces.ngrams, pieces.converter].map(|items| pickled(&Py::Dict(items)));
    let artefacts =
        Artefacts::Pieces { removed_tokens: &removed, added_ngrams: &ngrams, inputs_ids_convert: &converter };
    import(&artefacts, Some(tokenizer.as_bytes()))
        .map(|imported| imported.patch)
        .map_err(|error| error.to_string())
}

#[test]
fn pieces_that_contradict_themselves_are_refused() {
    let patch = import_pieces(pieces()).unwrap();
    let vocabulary = Vocabulary::load(FOUR.as_bytes(), Some(patch)).unwrap();
    let encoded = |text| vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids;
    assert_eq!(encoded("aba"), [0, 1].map(TokenId), "the parts of the removed token");
    assert_eq!(encoded("bba"), [2, 3].map(TokenId), "the n-token at the end");

    type Change = fn(&mut Pieces);
    let cases: [(Change, &str); 16] = [
        (|pieces| pieces.removed[0].0 = Py::Text("abc"), "removed_tokens: \"abc\" is no token"),
        (|pieces| pieces.removed[0].0 = Py::Int(1), "removed_tokens: expected a text, found an integer"),
        (|pieces| pieces.removed[0].1 = Py::Text("ab"), "removed_tokens: expected a list, found a text"),
        (
            |pieces| pieces.removed[0].1 = Py::List(texts(&["ab"])),
            "removed_tokens: the parts of base token 3 do not make it up",
        ),
        (
            |pieces| pieces.removed[0].1 = Py::List(texts(&["a", "ab"])),
            "removed[0].parts: their bytes joined",
        ),
        (|pieces| pieces.removed[0].1 = Py::List(texts(&["aba"])), "removed[0].parts: 1 base ids"),
        (
            |pieces| pieces.removed.push((Py::Text("aba"), Py::List(texts(&["ab", "a"])))),
            "base token 3 is removed twice",
        ),
        (
            |pieces| pieces.removed.push((Py::Text("ab"), Py::List(texts(&["a", "b"])))),
            "base token 2 is removed, but has the new id 0",
        ),
        (|pieces| drop(pieces.removed.pop()), "base token 3 (\"aba\") has no new id and is not removed"),
        (|pieces| pieces.converter[0].1 = entry(Py::Int(3), 0), "\"ab\" has the base id 3, and 2 in"),
        (|pieces| pieces.converter[0].1 = entry(Py::Int(2), -1), "inputs_ids_convert: -1 is out of range"),
        (|pieces| pieces.converter[0].1 = entry(Py::Int(2), 1), "kept: 1 is given twice"),
        (|pieces| pieces.converter[0].1 = entry(Py::Int(2), 9), "kept: 9 is not under vocab_size 4"),
        (|pieces| pieces.converter[1].1 = Py::Dict(vec![]), "inputs_ids_convert: has no `new_index`"),
        (|pieces| drop(pieces.converter.pop()), "added_ngrams: \"ba\" stands twice, or has no new id"),
        (
            |pieces| drop(pieces.ngrams.pop()),
            "inputs_ids_convert: \"ba\" is numbered, and is none of the added",
        ),
    ];
    for (change, problem) in cases {
        let mut changed = pieces();
        change(&mut changed);
        let error = import_pieces(changed).unwrap_err();
        assert!(error.contains(problem), "{problem}: {error}");
    }
    let mut long = pieces();
    long.ngrams[0].0 = Py::Tuple(texts(&["a"; 65]));
    assert_eq!(import_pieces(long).unwrap_err(), "added_ngrams: 65 tokens in a row are over the limit of 64");
    // A token of a megabyte, 40 times in one n-gram.
    let megabyte: &str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    let mut huge = pieces();
    huge.converter.push((Py::Text(megabyte), entry(Py::Int(4), 4)));
    huge.ngrams[0].0 = Py::Tuple(texts(&[megabyte; 40]));
    let tokenizer = FOUR.replace("\"aba\": 3", &format!("\"aba\": 3, \"{megabyte}\": 4"));
    let error = import_pieces_for(huge, &tokenizer).unwrap_err();
    assert_eq!(error, "added_ngrams: the n-grams stand for over 33554432 bytes of text");
}

#[test]
fn a_pickle_of_something_else_is_refused_by_what_is_missing() {
    let other = pickled(&Py::Dict(vec![(Py::Text("existing_tokenizer"), Py::Text("gpt2"))]));
    let message = error(&Artefacts::PatchTokenizer(&other), None);
    assert_eq!(
        message,
        "patch_tokenizer: existing_tokenizer: expected a tokenizer of transformers, found a text"
    );
    let message = error(&Artefacts::PatchTokenizer(b"cos\nsystem\n(S'id'\ntR."), None);
    assert_eq!(message, "patch_tokenizer: pickle asks for os.system, which is not read (byte 0)");
    assert_eq!(
        error(&PIECES, None),
        "inputs_ids_convert comes without a tokenizer: the model's tokenizer.json must be given"
            .replace(" comes", ": comes")
    );
    assert!(is_pickle(WHOLE) && !is_pickle(b"{") && !is_pickle(b""));
}

#[test]
fn a_pickled_matrix_is_read_in_place() {
    let matrix = EmbeddingMatrix::parse(INPUT.to_vec()).unwrap();
    assert_eq!((matrix.num_rows(), matrix.num_cols()), (128, 48));
    let (quads, []) = matrix.bytes().as_chunks::<4>() else { panic!("not of four bytes each") };
    let values: Vec<_> = quads.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    let ends = &expected()["embeddings"]["input"];
    assert_eq!(json!(values[..3]), ends["first"]);
    assert_eq!(json!(values[values.len() - 3..]), ends["last"]);
}

#[test]
fn a_matrix_that_is_not_what_it_says_is_refused() {
    let refused = |bytes: Vec<u8>| EmbeddingMatrix::parse(bytes).unwrap_err().to_string();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = INPUT.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = INPUT.to_vec();
        bytes.splice(at..at + from.len(), to.iter().copied());
        bytes
    };
    assert!(refused(WHOLE.to_vec()).contains("asks for transformers.tokenization_utils_fast."));
    // Shape (128, 48) and strides (48, 1).
    assert!(refused(replaced(b"K\x80K0\x86", b"K\x7fK0\x86")).contains("127 × 48 elements and 24576 bytes"));
    assert!(refused(replaced(b"K0K\x01\x86", b"K0K\x02\x86")).contains("does not lie row by row"));
    assert!(refused(replaced(b"FloatStorage", b"HalfdStorage")).contains("asks for torch.HalfdStorage"));
    // 6144 elements, said in the storage's id and again before them.
    assert!(refused(replaced(b"M\x00\x18", b"M\x00\x17")).contains("says 5888, then 6144 elements"));
    assert!(
        refused(replaced(b"\x00\x18\0\0\0\0\0\0", b"\x01\x18\0\0\0\0\0\0")).contains("then 6145 elements")
    );
    assert!(refused(replaced(b"little_endianq\x02\x88", b"little_endianq\x02\x89")).contains("big-endian"));
    assert!(refused(replaced(b"M\xe9\x03.", b"M\xe8\x03.")).contains("version 1000"));
    assert!(refused(replaced(&[0x6C, 0xFC], &[0x6C, 0xFD])).contains("magic number"));
    for len in (0..INPUT.len()).step_by(7) {
        assert!(EmbeddingMatrix::parse(INPUT[..len].to_vec()).is_err(), "{len}");
    }
}

proptest! {
    #[test]
    fn changed_artefacts_are_imported_or_refused(
        changes in prop::collection::vec((0..WHOLE.len(), any::<u8>()), 1..4),
    ) {
        let mut bytes = WHOLE.to_vec();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        for tokenizer in [None, Some(TOKENIZER)] {
            if let Ok(imported) = import(&Artefacts::PatchTokenizer(&bytes), tokenizer) {
                prop_assert!(Vocabulary::load(&imported.tokenizer_json, Some(imported.patch)).is_ok());
            }
        }
    }

    #[test]
    fn changed_matrices_are_read_or_refused(changes in prop::collection::vec((0..400_usize, any::<u8>()), 1..4)) {
        let mut bytes = INPUT.to_vec();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        if let Ok(matrix) = EmbeddingMatrix::parse(bytes) {
            prop_assert_eq!(matrix.bytes().len(), matrix.num_rows() * matrix.num_cols() * 4);
        }
    }
}
