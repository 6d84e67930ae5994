use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::build::{BuildRequest, Lines, Selection, Unobserved, Words, build};
use crate::{Mode, NToken, PatchContent, Removed, Segmentation};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn demo_json() -> Vec<u8> {
    std::fs::read(repository().join("tests/models/demo-llama/tokenizer.json")).unwrap()
}

/// The demo tokenizer, 8192 byte-level tokens, without a patch.
pub(crate) fn demo() -> &'static Vocabulary {
    static DEMO: LazyLock<Vocabulary> = LazyLock::new(|| Vocabulary::load(&demo_json(), None).unwrap());
    &DEMO
}

/// The demo tokenizer with a patch that removes used tokens too, so that every step of encoding has work.
fn patched() -> &'static Vocabulary {
    static PATCHED: LazyLock<Vocabulary> = LazyLock::new(|| {
        let corpus = ["lists files\n", "current directory\n"].map(|text| text.repeat(2)).into_iter();
        let request = BuildRequest {
            tokenizer_json: &demo_json(),
            add: 2,
            remove: 2,
            max_n: BuildRequest::DEFAULT_MAX_N,
            mode: Mode::Replace,
            words: Words::Cross,
            lines: Lines::Cross,
            selection: Selection::Exact,
            keep: &[],
            scratch: &std::env::temp_dir(),
        };
        let (patch, _) = build(&request, corpus.cycle().take(20).map(Ok::<_, Error>), &Unobserved).unwrap();
        Vocabulary::load(&demo_json(), Some(with_common_tokens_removed(&patch))).unwrap()
    });
    &PATCHED
}

/// The same n-tokens, but " the" and " is" are removed as well, for two more n-tokens.
fn with_common_tokens_removed(patch: &PatchVocabulary) -> PatchVocabulary {
    let id = |text: &str| demo().token_id(text).unwrap();
    let mut removed = patch.removed().to_vec();
    removed.push(Removed {
        id: id("Ġthe"),
        parts: vec![id("Ġ"), id("t"), id("h"), id("e")],
        text: " the".into(),
    });
    removed.push(Removed { id: id("Ġis"), parts: vec![id("Ġ"), id("i"), id("s")], text: " is".into() });
    removed.sort_by_key(|removed| removed.id);
    let is_free = |base: &[TokenId]| !base.iter().any(|id| removed.iter().any(|removed| removed.id == *id));
    let kept = patch.n_tokens().iter().map(|n_token| n_token.base.clone()).filter(|base| is_free(base));
    let extra = ["ab", "abc", "cab", "ba"]
        .map(|text| text.chars().map(|char| id(&char.to_string())).collect::<Vec<_>>());
    let text = |base: &[TokenId]| demo().decode(base, SpecialText::Keep);
    let n_tokens = kept.chain(extra).zip(&removed);
    let n_tokens: Vec<_> =
        n_tokens.map(|(base, removed)| NToken { id: removed.id, text: text(&base), base }).collect();
    let mut model_ids: Vec<_> = (0..8192).map(|id| Some(TokenId(id))).collect();
    removed.iter().for_each(|removed| model_ids[removed.id.row()] = None);
    let base_tokenizer = patch.base_tokenizer();
    let (mode, segmentation) = (Mode::Replace, Segmentation::Greedy);
    PatchVocabulary::new(PatchContent { base_tokenizer, mode, segmentation, model_ids, removed, n_tokens })
        .unwrap()
}

fn data(path: &str) -> Option<Vec<u8>> {
    fused_testkit::test_data(path).map(|path| std::fs::read(path).unwrap())
}

const TEXTS: &[&str] = &[
    "Hello world",
    " leading and trailing  ",
    "  two spaces\n\n\tand\ttabs\r\n",
    "naïve café — “quotes” … 東京 👩‍👩‍👧‍👦 \u{0}\u{7f}",
    "fn main() { println!(\"{}\", 1 + 1); }",
    "word▁with▁markers <0x41> and <s> markup",
    "",
];

/// What a whole text decodes to must be what the `tokenizers` crate decodes it to.
fn assert_decodes_as_the_oracle(vocabulary: &Vocabulary, name: &str) {
    for text in TEXTS {
        for special in [SpecialTokens::Add, SpecialTokens::Omit] {
            let ids = vocabulary.encode(text, special).unwrap().ids;
            let raw: Vec<u32> = vocabulary.expand(&ids).iter().map(|id| id.0).collect();
            for (skip, ours) in [(true, SpecialText::Skip), (false, SpecialText::Keep)] {
                let expected = vocabulary.base.oracle().decode(&raw, skip).unwrap();
                assert_eq!(vocabulary.decode(&ids, ours), expected, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn the_demo_tokenizer_decodes_as_the_oracle() {
    assert_decodes_as_the_oracle(demo(), "demo");
    assert_decodes_as_the_oracle(patched(), "demo, patched");
}

#[test]
fn published_tokenizers_decode_as_the_oracle() {
    for name in ["gpt2", "llama2", "llama3", "qwen2.5"] {
        let Some(json) = data(&format!("tokenizers/{name}/tokenizer.json")) else { continue };
        assert_decodes_as_the_oracle(&Vocabulary::load(&json, None).unwrap(), name);
    }
}

/// The `tokenizers` crate numbers added tokens on, whatever ids the file gives them; both ways of encoding mean the same.
#[test]
fn an_added_token_behind_a_gap_has_one_id() {
    let mut json: serde_json::Value = serde_json::from_slice(&demo_json()).unwrap();
    let added = serde_json::json!({"id": 9000, "content": "<gap>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(added);
    let vocabulary = Vocabulary::load(json.to_string().as_bytes(), None).unwrap();
    assert!(vocabulary.base.is_fast());
    let ids = vocabulary.encode("x<gap>y", SpecialTokens::Omit).unwrap().ids;
    assert_eq!(ids[1], TokenId(8192));
    let oracle = vocabulary.base.oracle().encode("x<gap>y", false).unwrap();
    assert_eq!(ids.iter().map(|id| id.0).collect::<Vec<_>>(), oracle.get_ids());
    assert_eq!(vocabulary.decode(&ids, SpecialText::Keep), "x<gap>y");
}

#[test]
fn metaspace_decoders_drop_the_first_tokens_space() {
    let metaspace = r#""pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}]}"#;
    let vocab = r#"{"▁": 0, "a": 1, "▁a": 2, "<0xC3>": 3, "<0xA4>": 4, "<s>": 5}"#;
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [{{"id": 5, "content": "<s>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}}], {metaspace}, "model": {{"type": "BPE",
        "vocab": {vocab}, "merges": ["▁ a"], "byte_fallback": true, "unk_token": null}}}}"#
    );
    let vocabulary = Vocabulary::load(json.as_bytes(), None).unwrap();
    for text in ["a", " a a", "ä a", "a ä", "<s>a", "<s> a"] {
        let ids = vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids;
        let raw: Vec<u32> = ids.iter().map(|id| id.0).collect();
        for (skip, ours) in [(true, SpecialText::Skip), (false, SpecialText::Keep)] {
            assert_eq!(
                vocabulary.decode(&ids, ours),
                vocabulary.base.oracle().decode(&raw, skip).unwrap(),
                "{text}"
            );
        }
    }
}

#[test]
fn text_after_a_prompt_keeps_its_space() {
    let Some(json) = data("tokenizers/llama2/tokenizer.json") else { return };
    let vocabulary = Vocabulary::load(&json, None).unwrap();
    let word = vocabulary.token_id("▁word").unwrap();
    let bos = vocabulary.token_id("<s>").unwrap();
    let text_after = |prompt: &[TokenId]| {
        let mut text = String::new();
        Decoder::after(&vocabulary, prompt, SpecialText::Skip).push(&vocabulary, word, &mut text);
        text
    };
    assert_eq!(text_after(&[bos, word]), " word");
    assert_eq!(text_after(&[bos]), "word");
    assert_eq!(text_after(&[]), "word");
}

#[test]
fn the_first_n_token_in_the_list_stands_even_where_a_longer_one_matches() {
    let vocabulary = patched();
    let patch = vocabulary.patch().unwrap();
    let texts = |ids: Vec<TokenId>| {
        ids.into_iter().map(|id| vocabulary.decode(&[id], SpecialText::Keep)).collect::<Vec<_>>()
    };
    let base = ["a", "b", "c"].map(|text| demo().token_id(text).unwrap());
    // "ab" stands before "abc" in the list.
    assert_eq!(texts(vocabulary.adapt(base.to_vec())), ["ab", "c"]);
    let before = patch.n_tokens().iter().position(|n| n.text == "ab");
    assert!(before < patch.n_tokens().iter().position(|n| n.text == "abc"));
}

#[test]
fn removed_tokens_are_no_longer_there() {
    let vocabulary = patched();
    assert_eq!(vocabulary.token_id("Ġthe"), None);
    assert!(demo().token_id("Ġthe").is_some());
    let encoding = vocabulary.encode("what is the point", SpecialTokens::Omit).unwrap();
    let removed: Vec<_> = vocabulary.patch().unwrap().removed().iter().map(|removed| removed.id).collect();
    assert!(vocabulary.expand(&encoding.ids).iter().all(|id| !removed.contains(id)));
    assert_eq!(
        encoding.num_base_tokens,
        demo().encode("what is the point", SpecialTokens::Omit).unwrap().ids.len()
    );
}

#[test]
fn special_tokens_are_recognised_in_text_and_skipped_where_asked() {
    let ids = patched().encode("a<|endoftext|>b", SpecialTokens::Omit).unwrap().ids;
    assert!(ids.iter().any(|id| patched().is_special(*id)));
    assert_eq!(patched().decode(&ids, SpecialText::Skip), "ab");
    assert_eq!(patched().decode(&ids, SpecialText::Keep), "a<|endoftext|>b");
}

#[test]
fn a_patch_for_another_tokenizer_is_refused_with_both_hashes() {
    let patch = patched().patch().unwrap().clone();
    let mut other: serde_json::Value = serde_json::from_slice(&demo_json()).unwrap();
    other["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
    let hash = fingerprint(other.to_string().as_bytes(), None).unwrap();
    let error =
        Vocabulary::load(other.to_string().as_bytes(), Some(patch.clone())).err().unwrap().to_string();
    assert!(
        error.contains(&hash.to_string()) && error.contains(&patch.base_tokenizer().to_string()),
        "{error}"
    );
}

#[test]
fn a_patch_that_contradicts_the_tokenizer_is_refused_by_the_fields_name() {
    let id = |text: &str| demo().token_id(text).unwrap();
    let good = || PatchContent {
        base_tokenizer: demo().fingerprint(),
        mode: Mode::Replace,
        segmentation: Segmentation::Greedy,
        model_ids: (0..8192).map(|id| Some(TokenId(id))).collect(),
        removed: vec![Removed {
            id: id("Ġthe"),
            parts: vec![id("Ġ"), id("t"), id("he")],
            text: " the".into(),
        }],
        n_tokens: vec![NToken { id: id("Ġthe"), base: vec![id("a"), id("b")], text: "ab".into() }],
    };
    let refused = |change: fn(&mut PatchContent)| {
        let mut content = good();
        change(&mut content);
        content.removed.iter().for_each(|removed| content.model_ids[removed.id.row()] = None);
        let patch = PatchVocabulary::new(content).unwrap();
        match Vocabulary::load(&demo_json(), Some(patch)) {
            Ok(_) => "nothing".to_owned(),
            Err(Error::Field { field, .. }) => field,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(refused(|_| ()), "nothing");
    assert_eq!(refused(|content| content.removed[0].parts.truncate(2)), "removed[0].parts");
    assert_eq!(refused(|content| content.removed[0].text = "the".into()), "removed[0].text");
    assert_eq!(refused(|content| content.n_tokens[0].text = "harmless".into()), "n_tokens[0].text");
    assert_eq!(
        refused(|content| {
            content.removed[0].id = TokenId(0);
            content.n_tokens[0].id = TokenId(0);
        }),
        "removed[0].id"
    );
    assert_eq!(
        refused(|content| {
            content.model_ids.push(Some(TokenId(8192)));
        }),
        "base_vocab_size"
    );
}

/// Ids that a plain segmentation in Python made on top of the `tokenizers` package.
#[test]
fn the_demo_model_encodes_as_the_golden_data_say() {
    let folder = fused_testkit::model_dir("demo-llama-tldr");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let patch = PatchVocabulary::parse(&read("patch_vocabulary.json")).unwrap();
    let vocabulary = Vocabulary::load(&read("tokenizer.json"), Some(patch)).unwrap();
    let golden = fused_testkit::golden("demo-llama-tldr.json").unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(prompts.len() >= 20);
    for prompt in prompts {
        let text = prompt["text"].as_str().unwrap();
        let ids = vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids;
        assert_eq!(
            serde_json::json!(ids.iter().map(|id| id.0).collect::<Vec<_>>()),
            prompt["ids"],
            "{text:?}"
        );
        assert_eq!(vocabulary.decode(&ids, SpecialText::Keep), text);
    }
}

#[test]
fn the_demo_models_patch_never_lengthens_text_of_its_domain() {
    let file =
        std::fs::read(repository().join("tests/models/demo-llama-tldr/patch_vocabulary.json")).unwrap();
    let vocabulary = Vocabulary::load(&demo_json(), Some(PatchVocabulary::parse(&file).unwrap())).unwrap();
    let Some(heldout) = data("corpora/tldr/heldout.txt") else { return };
    let heldout = String::from_utf8(heldout).unwrap();
    let (mut num_base_tokens, mut num_tokens) = (0, 0);
    for document in heldout.split("<|endoftext|>\n") {
        let encoding = vocabulary.encode(document, SpecialTokens::Omit).unwrap();
        assert_eq!(vocabulary.decode(&encoding.ids, SpecialText::Keep), document);
        assert!(encoding.ids.len() <= encoding.num_base_tokens, "{document}");
        num_base_tokens += encoding.num_base_tokens;
        num_tokens += encoding.ids.len();
    }
    println!("held out: {num_base_tokens} base tokens, {num_tokens} patched");
    assert!(num_tokens * 100 <= num_base_tokens * 55, "45 % fewer are promised");
}

#[test]
fn broken_tokenizers_are_refused() {
    for json in ["", "[]", "{}", r#"{"model": {"type": "BPE"}}"#, r#"{"decoder": {"type": "ByteLevel"}}"#] {
        assert!(Vocabulary::load(json.as_bytes(), None).is_err(), "{json}");
    }
    let json = demo_json();
    assert!(Vocabulary::load(&json[..json.len() / 2], None).is_err());
    let huge = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 4294967295},
        "merges": []}, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}}"#;
    assert!(matches!(Vocabulary::load(huge.as_bytes(), None), Err(Error::VocabularyTooLarge { .. })));
}

proptest! {
    #[test]
    fn any_text_survives_encoding_and_decoding(text in any::<String>()) {
        for vocabulary in [demo(), patched()] {
            let ids = vocabulary.encode(&text, SpecialTokens::Omit).unwrap().ids;
            prop_assert_eq!(&vocabulary.decode(&ids, SpecialText::Keep), &text);
            prop_assert!(text.len() <= ids.len() * vocabulary.max_token_bytes());
        }
    }

    #[test]
    fn domain_text_survives_too(words in prop::collection::vec("(the|is|a|ab|cab| |files|\n|current directory|ä)", 0..30)) {
        let text = words.concat();
        let encoding = patched().encode(&text, SpecialTokens::Omit).unwrap();
        prop_assert_eq!(patched().decode(&encoding.ids, SpecialText::Keep), text);
        let num_base: usize = encoding.ids.iter().map(|id| patched().num_base_tokens(*id)).sum();
        prop_assert_eq!(num_base, patched().expand(&encoding.ids).len());
    }
}
