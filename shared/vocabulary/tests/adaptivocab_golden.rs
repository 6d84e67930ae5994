//! Vocabularies that AdaptiVocab's own code made, imported, against what that code encodes and decodes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use std::path::Path;
use std::process::Command;

use fused_testkit::test_data;
use fused_vocabulary::import::{Artefacts, Imported, TokenizerSource, import};
use fused_vocabulary::{
    Mode, PatchVocabulary, Segmentation, SpecialText, SpecialTokens, TokenId, Vocabulary,
};
use serde_json::Value;

/// Run, and the base tokenizer beside it in the test data, where it is there.
const RUNS: [(&str, Option<&str>); 5] = [
    ("gpt2-k8s-1000", Some("gpt2")),
    ("llama3-biomed-2000", Some("llama3")),
    ("qwen2.5-rust-600", Some("qwen2.5")),
    ("stories260K-300", None),
    ("stories260K-400-nocache", None),
];

/// A file of a run, which may be packed.
fn read(run: &Path, name: &str) -> Vec<u8> {
    let plain = run.join(name);
    if plain.exists() {
        return std::fs::read(plain).unwrap();
    }
    let output = Command::new("xz").arg("-dc").arg(run.join(format!("{name}.xz"))).output().unwrap();
    assert!(output.status.success(), "xz cannot unpack {name} of {}", run.display());
    output.stdout
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap().try_into().unwrap())).collect()
}

/// What transformers does to a decoded text where the tokenizer asks for it. `fused` does not: it would change what a
/// model wrote, as `b != c` to `b!= c`.
fn clean_up(text: &str) -> String {
    let rules = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    rules.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[derive(Debug, Default)]
struct Counts {
    rows: usize,
    /// Rows that show a fault of the reference: what is wanted of them is checked instead.
    faulty: usize,
    cleaned_up: usize,
    n_tokens: usize,
}

fn check_row(row: &Value, patched: &Vocabulary, base: &Vocabulary, cleans_up: bool, counts: &mut Counts) {
    let text = row["text"].as_str().unwrap();
    let what = format!("row {}: {text:?}", row["id"]);
    assert!(row["error"].is_null(), "{what}");
    let flags: Vec<_> = row["flags"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap()).collect();
    let is_faulty = flags.iter().any(|flag| ["unk", "token_string_mismatch"].contains(flag));
    counts.rows += 1;
    counts.faulty += usize::from(is_faulty);

    let base_ids = base.encode(text, SpecialTokens::Omit).unwrap().ids;
    assert_eq!(base_ids, ids(&row["base_ids"]), "{what}");
    let encoding = patched.encode(text, SpecialTokens::Omit).unwrap();
    assert_eq!(encoding.num_base_tokens, base_ids.len(), "{what}");
    counts.n_tokens += encoding.ids.iter().filter(|id| patched.num_base_tokens(**id) > 1).count();
    if !is_faulty {
        assert_eq!(encoding.ids, ids(&row["patch_ids"]), "{what}");
    }

    // Whatever the text is: patched and base vocabulary decode to the same, special tokens left out or not.
    for special in [SpecialText::Skip, SpecialText::Keep] {
        assert_eq!(patched.decode(&encoding.ids, special), base.decode(&base_ids, special), "{what}");
    }
    let decoded = patched.decode(&encoding.ids, SpecialText::Skip);
    let cleaned = if cleans_up { clean_up(&decoded) } else { decoded.clone() };
    counts.cleaned_up += usize::from(cleaned != decoded);
    assert_eq!(cleaned, row["base_decoded"].as_str().unwrap(), "{what}");
    if !is_faulty {
        assert_eq!(cleaned, row["decoded"].as_str().unwrap(), "{what}");
    }
    if row["roundtrip"].as_bool().unwrap() {
        assert_eq!(decoded, text, "{what}");
    }
}

#[test]
fn imported_vocabularies_encode_and_decode_as_the_reference() {
    let Some(golden) = test_data("adaptivocab-golden") else { return };
    for (run, tokenizer) in RUNS {
        let dir = golden.join(run);
        let pickle = read(&dir, "patch_tokenizer.pkl");
        let whole = Artefacts::PatchTokenizer(&pickle);
        let alone = import(&whole, None).unwrap();
        assert_eq!(alone.report.tokenizer, TokenizerSource::Pickle);
        check_against_meta(&alone, &dir);
        // Seconds for the two largest, and nothing new.
        if !["llama3-biomed-2000", "qwen2.5-rust-600"].contains(&run) {
            check_against_pieces(&alone, &dir);
        }
        if let Some(json) = tokenizer.and_then(|name| test_data(&format!("tokenizers/{name}/tokenizer.json")))
        {
            let json = std::fs::read(json).unwrap();
            let bound = import(&whole, Some(&json)).unwrap();
            assert_eq!(bound.report.tokenizer, TokenizerSource::Model, "{run}");
            assert_eq!(bound.patch, alone.patch, "{run}");
        }

        let base = Vocabulary::load(&alone.tokenizer_json, None).unwrap();
        let patched = Vocabulary::load(&alone.tokenizer_json, Some(alone.patch)).unwrap();
        // Of the five, only this tokenizer is configured to clean up.
        let cleans_up = run.starts_with("llama3");
        let mut counts = Counts::default();
        for line in std::fs::read_to_string(dir.join("golden.jsonl")).unwrap().lines() {
            check_row(&serde_json::from_str(line).unwrap(), &patched, &base, cleans_up, &mut counts);
        }
        assert!(counts.rows > 200 && counts.n_tokens > 0);
        eprintln!("{run}: {counts:?}");
    }
}

fn check_against_meta(imported: &Imported<'_>, dir: &Path) {
    let meta: Value = serde_json::from_slice(&read(dir, "meta.json")).unwrap();
    let (patch, report) = (&imported.patch, &imported.report);
    assert_eq!(report.num_n_tokens as u64, meta["added"].as_u64().unwrap());
    assert_eq!(report.num_removed as u64, meta["removed"].as_u64().unwrap());
    assert_eq!(
        report.num_never_matching as u64,
        meta["dead_ngrams_containing_a_removed_token"].as_u64().unwrap()
    );
    assert_eq!(report.num_other_rows, 0);
    assert_eq!(patch.n_tokens().len(), report.num_n_tokens);
    assert_eq!((patch.mode(), patch.segmentation()), (Mode::Replace, Segmentation::Greedy));
    // The file that `fused vocab import` writes says all of it.
    assert_eq!(&PatchVocabulary::parse(patch.to_json().as_bytes()).unwrap(), patch);
}

/// The three files, without the tokenizer, say the same as the one.
fn check_against_pieces(imported: &Imported<'_>, dir: &Path) {
    let [removed, ngrams, converter] =
        ["removed_tokens.pkl", "added_ngrams.pkl", "inputs_ids_convert.pkl"].map(|name| read(dir, name));
    let pieces =
        Artefacts::Pieces { removed_tokens: &removed, added_ngrams: &ngrams, inputs_ids_convert: &converter };
    let from_pieces = import(&pieces, Some(&imported.tokenizer_json)).unwrap();
    assert_eq!(from_pieces.report.tokenizer, TokenizerSource::ModelUnchecked);
    assert_eq!(from_pieces.patch, imported.patch);
    let error = import(&pieces, None).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json must be given"), "{error}");
}
