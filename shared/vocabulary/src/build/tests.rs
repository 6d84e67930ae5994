use super::*;
use crate::vocabulary::tests::demo_json;
use crate::{Error, SpecialTokens};

/// Documents of words in an order that repeats pairs often and whole lines never.
fn corpus() -> [String; 1] {
    let words = [
        "list",
        "files",
        "in",
        "the",
        "current",
        "directory",
        "show",
        "all",
        "hidden",
        "entries",
        "of",
        "an",
    ];
    let mut text = String::new();
    let mut state = 1_usize;
    for document in 0..60 {
        text.push_str(&format!(
            "# command {document}\n\n> More information: <https://man.org/{document}>.\n"
        ));
        for _ in 0..40 {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            text.push_str(words[(state >> 16) % words.len()]);
            text.push(' ');
        }
        text.push_str("\n<|endoftext|>\n");
    }
    [text]
}

#[test]
fn it_is_deterministic_and_shortens_the_corpus() {
    let tokenizer_json = demo_json();
    let request = BuildRequest { tokenizer_json: &tokenizer_json, corpus: &corpus(), add: 20 };
    let (patch, report) = build(&request).unwrap();
    assert_eq!(build(&request).unwrap().0, patch);
    assert_eq!(report.num_documents, 60);
    assert!(report.num_tokens * 4 < report.num_base_tokens * 3, "{report}");
    assert_eq!((patch.removed().len(), patch.n_tokens().len(), patch.vocab_size()), (20, 20, 8192));
    assert!(patch.n_tokens().iter().all(|n_token| n_token.base.len() <= MAX_BUILT_N));
    // Ids stay where they were.
    for id in (0..8192).map(TokenId) {
        let is_removed = patch.removed().iter().any(|removed| removed.id == id);
        assert_eq!(patch.model_id(id), (!is_removed).then_some(id));
    }
}

#[test]
fn no_n_token_reaches_across_documents_special_tokens_or_lines() {
    let tokenizer_json = demo_json();
    let corpus = ["x y<|endoftext|>x y\nx y\n<|endoftext|>\n".repeat(50)];
    let (patch, _) =
        build(&BuildRequest { tokenizer_json: &tokenizer_json, corpus: &corpus, add: 1 }).unwrap();
    let special = TokenId(0);
    assert!(patch.n_tokens().iter().all(|n_token| !n_token.base.contains(&special)));
    assert!(patch.n_tokens().iter().all(|n_token| !n_token.text.contains('\n')));
    let error =
        build(&BuildRequest { tokenizer_json: &tokenizer_json, corpus: &corpus, add: 50 }).unwrap_err();
    match error {
        Error::NotReachable { what: "n-tokens", asked: 50, reachable } => {
            assert!((1..10).contains(&reachable))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_least_used_tokens_go_and_single_characters_stay() {
    let tokenizer_json = demo_json();
    let corpus = corpus();
    let (patch, _) =
        build(&BuildRequest { tokenizer_json: &tokenizer_json, corpus: &corpus, add: 20 }).unwrap();
    let base = Vocabulary::load(&tokenizer_json, None).unwrap();
    let used = base.encode(&corpus[0], SpecialTokens::Omit).unwrap().ids;
    for removed in patch.removed() {
        assert!(!used.contains(&removed.id), "{}", removed.text);
        assert!(removed.text.chars().count() > 1, "{}", removed.text);
    }
    let all = removal::choose(
        &TokenizerJson::parse(&tokenizer_json).unwrap(),
        &BaseTokenizer::load(&TokenizerJson::parse(&tokenizer_json).unwrap()).unwrap(),
        &[],
        9000,
    );
    match all {
        Err(Error::NotReachable { what: "removable tokens", reachable, .. }) => {
            assert!(reachable < 8192 - 256)
        }
        _ => panic!("9000 of 8192 tokens removed"),
    }
}

#[test]
fn removing_everything_removable_leaves_a_vocabulary_that_works() {
    let tokenizer_json = demo_json();
    let json = TokenizerJson::parse(&tokenizer_json).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    let removed = removal::choose(&json, &base, &[], 7000).unwrap();
    for (id, parts) in &removed {
        assert_eq!(base.joined_bytes(parts), base.bytes(*id));
        assert!(parts.iter().all(|part| removed.binary_search_by_key(part, |(id, _)| *id).is_err()));
    }
}
