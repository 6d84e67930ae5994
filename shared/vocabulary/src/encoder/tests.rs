use std::sync::LazyLock;

use fused_testkit::test_data;
use proptest::prelude::*;

use crate::{
    Mode, NToken, PatchContent, PatchVocabulary, Segmentation, SpecialText, SpecialTokens, TokenId,
    Vocabulary,
};

/// The published byte-level tokenizers that are there, the demo tokenizer always.
fn vocabularies() -> &'static [(String, Vocabulary)] {
    static VOCABULARIES: LazyLock<Vec<(String, Vocabulary)>> = LazyLock::new(|| {
        let demo = fused_testkit::model_dir("demo-llama").join("tokenizer.json");
        let published = ["gpt2", "llama3", "qwen2.5"];
        let published = published.map(|name| test_data(&format!("tokenizers/{name}/tokenizer.json")));
        let files = published.into_iter().flatten().chain([demo]);
        let load = |path: std::path::PathBuf| {
            let vocabulary = Vocabulary::load(&std::fs::read(&path).unwrap(), None).unwrap();
            assert!(vocabulary.base().is_fast(), "{}", path.display());
            (path.display().to_string(), vocabulary)
        };
        files.map(load).collect()
    });
    &VOCABULARIES
}

/// The same tokenizers, extended by n-tokens of text that the random texts are made of, in both segmentations; and the
/// demo model's own vocabulary, in which thousands of base tokens are removed.
fn adapted() -> &'static [(String, Vocabulary)] {
    static ADAPTED: LazyLock<Vec<(String, Vocabulary)>> = LazyLock::new(|| {
        let mut adapted = Vec::new();
        for (path, base) in vocabularies() {
            let json = std::fs::read(path).unwrap();
            for segmentation in [Segmentation::Greedy, Segmentation::Optimal] {
                let vocabulary = Vocabulary::load(&json, Some(extension(base, segmentation))).unwrap();
                adapted.push((format!("{path}, {segmentation:?}"), vocabulary));
            }
        }
        let folder = fused_testkit::model_dir("demo-llama-tldr");
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let patch = PatchVocabulary::parse(&read("patch_vocabulary.json")).unwrap();
        let demo = Vocabulary::load(&read("tokenizer.json"), Some(patch)).unwrap();
        adapted.push(("demo-llama-tldr".to_owned(), demo));
        adapted
    });
    &ADAPTED
}

fn extension(base: &Vocabulary, segmentation: Segmentation) -> PatchVocabulary {
    let sample = "word Word's  \n\r\n東京 日本語 12345!? ... word word ä e\u{301} 가\t'LL";
    let ids = base.encode(sample, SpecialTokens::Omit).unwrap().ids;
    let bases: std::collections::BTreeSet<_> =
        (2..6).flat_map(|n| ids.windows(n)).map(<[_]>::to_vec).collect();
    let vocab_size = base.base_vocab_size() as u32;
    let n_tokens = (vocab_size..).zip(bases).map(|(id, base_ids)| {
        let bytes: Vec<u8> = base_ids.iter().flat_map(|id| base.token_bytes(*id)).copied().collect();
        NToken { id: TokenId(id), base: base_ids, text: String::from_utf8_lossy(&bytes).into_owned() }
    });
    let content = PatchContent {
        base_tokenizer: base.fingerprint(),
        mode: Mode::Extend,
        segmentation,
        model_ids: (0..vocab_size).map(|id| Some(TokenId(id))).collect(),
        removed: Vec::new(),
        n_tokens: n_tokens.collect(),
    };
    PatchVocabulary::new(content).unwrap()
}

fn oracle(vocabulary: &Vocabulary, text: &str) -> Vec<TokenId> {
    let encoding = vocabulary.base().oracle().encode_fast(text, false).unwrap();
    encoding.get_ids().iter().copied().map(TokenId).collect()
}

fn in_pieces(vocabulary: &Vocabulary, text: &str, mut next_len: impl FnMut() -> usize) -> Vec<TokenId> {
    let (mut encoder, mut ids, mut rest) = (vocabulary.encoder(), Vec::new(), text);
    while !rest.is_empty() {
        let len = rest.ceil_char_boundary(next_len().max(1));
        encoder.push(&rest[..len], &mut ids).unwrap();
        rest = &rest[len..];
    }
    encoder.finish(&mut ids).unwrap();
    ids
}

/// Texts of what tokenizers stumble over: spaces, contractions, marks that compose, added tokens whole and in part.
fn texts() -> impl Strategy<Value = String> {
    let pieces = [
        "'s",
        "'LL",
        "'ſ",
        " ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\u{a0}",
        "\u{85}",
        "word",
        " Word",
        "東京",
        "日本語",
        "e\u{301}",
        "\u{301}",
        "\u{323}\u{307}",
        "가",
        "\u{1100}\u{1161}\u{11a8}",
        "\u{212b}",
        "ﬁ",
        "12345",
        "²",
        "!?",
        "...",
        "👩\u{200d}👧",
        "<|endoftext|>",
        "<|im_start|>",
        "<|end",
        "of_text|>",
        "<|eot_id|>",
        "<tool_call>",
        "<",
        "\0",
        "ä",
        "\u{fb1d}",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    let piece = prop_oneof![
        4 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => "[a-z ]{1,20}",
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn ids_are_those_of_the_tokenizers_crate(text in texts()) {
        for (name, vocabulary) in vocabularies() {
            let ids = vocabulary.encode(&text, SpecialTokens::Omit).unwrap().ids;
            prop_assert_eq!(ids, oracle(vocabulary, &text), "{} {:?}", name, text);
        }
    }

    #[test]
    fn pieces_give_the_ids_of_the_whole(text in texts(), lens in prop::collection::vec(1..12_usize, 1..20)) {
        for (name, vocabulary) in vocabularies() {
            let mut lens = lens.iter().copied().cycle();
            let ids = in_pieces(vocabulary, &text, || lens.next().unwrap());
            let whole = vocabulary.encode(&text, SpecialTokens::Omit).unwrap().ids;
            prop_assert_eq!(ids, whole, "{} {:?}", name, text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// What the base tokenizer gives back, an adapted one gives back; an extended one in no more tokens.
    #[test]
    fn adapted_vocabularies_give_the_text_back(text in texts(), lens in prop::collection::vec(1..12_usize, 1..20)) {
        for (name, vocabulary) in adapted() {
            let encoding = vocabulary.encode(&text, SpecialTokens::Omit).unwrap();
            let base_ids: Vec<u32> = oracle(vocabulary, &text).iter().map(|id| id.0).collect();
            let base_text = vocabulary.base().oracle().decode(&base_ids, false).unwrap();
            prop_assert_eq!(vocabulary.decode(&encoding.ids, SpecialText::Keep), base_text, "{}", name);
            prop_assert_eq!(encoding.num_base_tokens, base_ids.len(), "{}", name);
            if vocabulary.patch().is_some_and(|patch| patch.mode() == Mode::Extend) {
                prop_assert!(encoding.ids.len() <= base_ids.len(), "{}", name);
            }
            let mut lens = lens.iter().copied().cycle();
            prop_assert_eq!(in_pieces(vocabulary, &text, || lens.next().unwrap()), encoding.ids, "{}", name);
        }
    }
}

#[test]
fn whole_corpora_have_the_ids_of_the_tokenizers_crate() {
    for corpus in ["biomed", "dc-law", "k8s-keps", "rust-docs", "tldr"] {
        let Some(path) = test_data(&format!("corpora/{corpus}/heldout.txt")) else { return };
        let text = std::fs::read_to_string(path).unwrap();
        // The oracle is slow: a piece of each corpus here, all of them in the bench.
        let text = &text[..text.floor_char_boundary(200_000)];
        for (name, vocabulary) in vocabularies() {
            assert_eq!(
                vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids,
                oracle(vocabulary, text),
                "{name} {corpus}"
            );
            assert_eq!(
                in_pieces(vocabulary, text, || 1000),
                oracle(vocabulary, text),
                "{name} {corpus}, in pieces"
            );
        }
    }
}

#[test]
fn a_word_of_a_megabyte_in_small_pieces_is_not_scanned_for_each_of_them() {
    let text = "ab".repeat(1 << 19);
    for (_, vocabulary) in vocabularies() {
        let ids = in_pieces(vocabulary, &text, || 64);
        assert_eq!(ids, vocabulary.encode(&text, SpecialTokens::Omit).unwrap().ids);
    }
}

#[test]
fn ids_come_before_the_text_ends() {
    let (_, vocabulary) = vocabularies().last().unwrap();
    let (mut encoder, mut ids) = (vocabulary.encoder(), Vec::new());
    encoder.push("The first words of a long text", &mut ids).unwrap();
    let expected = vocabulary.encode("The first words", SpecialTokens::Omit).unwrap().ids;
    assert!(ids.starts_with(&expected), "{ids:?}");
}
