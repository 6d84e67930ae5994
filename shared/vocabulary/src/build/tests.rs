use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use super::*;
use crate::vocabulary::tests::demo_json;
use crate::{Mode, Removed, SpecialText, SpecialTokens, TokenId};

/// `add` n-tokens in the place of as many tokens.
fn request(tokenizer_json: &[u8], add: usize) -> BuildRequest<'_> {
    BuildRequest {
        tokenizer_json,
        add,
        remove: add,
        max_n: BuildRequest::DEFAULT_MAX_N,
        mode: Mode::Replace,
        words: Words::Cross,
        lines: Lines::Cross,
        selection: Selection::Exact,
        keep: &[],
        scratch: scratch(),
    }
}

fn build_from(request: &BuildRequest<'_>, corpus: &[String]) -> Result<(PatchVocabulary, BuildReport)> {
    build(request, corpus.iter().cloned().map(Ok::<_, Error>), &Unobserved)
}

fn scratch() -> &'static Path {
    static SCRATCH: LazyLock<PathBuf> = LazyLock::new(std::env::temp_dir);
    &SCRATCH
}

/// Documents of words in an order that repeats pairs often and whole lines never.
fn corpus() -> Vec<String> {
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
    let mut state = 1_usize;
    let document = |document: usize| {
        let mut text = String::new();
        text.push_str(&format!(
            "# command {document}\n\n> More information: <https://man.org/{document}>.\n"
        ));
        for _ in 0..40 {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            text.push_str(words[(state >> 16) % words.len()]);
            text.push(' ');
        }
        text.push('\n');
        text
    };
    (0..60).map(document).collect()
}

#[test]
fn it_is_deterministic_and_shortens_the_corpus() {
    let tokenizer_json = demo_json();
    let request = request(&tokenizer_json, 20);
    let (patch, report) = build_from(&request, &corpus()).unwrap();
    assert_eq!(build_from(&request, &corpus()).unwrap().0, patch);
    assert_eq!((report.num_documents, report.num_removed, report.num_n_tokens), (60, 20, 20));
    assert_eq!(report.num_bytes, corpus().iter().map(|text| text.len() as u64).sum::<u64>());
    assert!(report.num_tokens * 4 < report.num_base_tokens * 3, "{report}");
    assert_eq!((patch.removed().len(), patch.n_tokens().len(), patch.vocab_size()), (20, 20, 8192));
    assert!(patch.n_tokens().iter().all(|n_token| n_token.base.len() <= request.max_n));
    // Ids stay where they were.
    for id in (0..8192).map(TokenId) {
        let is_removed = patch.removed().iter().any(|removed| removed.id == id);
        assert_eq!(patch.model_id(id), (!is_removed).then_some(id));
    }
    // The report is what encoding says.
    let vocabulary = Vocabulary::load(&tokenizer_json, Some(patch)).unwrap();
    let encode = |text: &String| vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids.len() as u64;
    assert_eq!(corpus().iter().map(encode).sum::<u64>(), report.num_tokens);
}

#[test]
fn model_ids_follow_the_numbers_asked_for() {
    let tokenizer_json = demo_json();
    let asked = |mode, add, remove| {
        let request = BuildRequest { mode, remove, ..request(&tokenizer_json, add) };
        let (patch, _) = build_from(&request, &corpus()).unwrap();
        assert_eq!((patch.n_tokens().len(), patch.removed().len()), (add, remove));
        assert_eq!(patch.vocab_size(), 8192 + add - remove);
        let written = PatchVocabulary::parse(patch.to_json().as_bytes()).unwrap();
        let vocabulary = Vocabulary::load(&tokenizer_json, Some(written)).unwrap();
        for text in corpus() {
            let ids = vocabulary.encode(&text, SpecialTokens::Omit).unwrap().ids;
            assert_eq!(vocabulary.decode(&ids, SpecialText::Keep), text);
        }
        patch
    };
    let extended = asked(Mode::Extend, 10, 0);
    assert!((8192..).zip(extended.n_tokens()).all(|(id, n_token)| n_token.id == TokenId(id)));
    let grown = asked(Mode::Replace, 10, 4);
    assert!((8192..).zip(&grown.n_tokens()[4..]).all(|(id, n_token)| n_token.id == TokenId(id)));
    asked(Mode::Replace, 4, 10);
    asked(Mode::Replace, 5, 0);
}

#[test]
fn requests_that_cannot_be_met_name_their_field() {
    let tokenizer_json = demo_json();
    let good = request(&tokenizer_json, 20);
    let unknown = ["no such token at all".to_owned()];
    let field = |request: BuildRequest<'_>| match build_from(&request, &corpus()) {
        Err(Error::Request { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(BuildRequest { add: 0, ..good }), "add");
    assert_eq!(field(BuildRequest { max_n: 1, ..good }), "max_n");
    assert_eq!(field(BuildRequest { max_n: 65, ..good }), "max_n");
    assert_eq!(field(BuildRequest { mode: Mode::Extend, ..good }), "remove");
    assert_eq!(field(BuildRequest { keep: &unknown, ..good }), "keep");
    assert!(matches!(build_from(&good, &[]), Err(Error::EmptyCorpus)));
    assert!(matches!(build_from(&good, &[String::new()]), Err(Error::EmptyCorpus)));
    let missing = BuildRequest { scratch: Path::new("/no/such/folder"), ..good };
    assert!(matches!(build_from(&missing, &corpus()), Err(Error::Spool { .. })));
    for kind in ["Unigram", "WordPiece", "WordLevel"] {
        let other = format!(r#"{{"model": {{"type": "{kind}", "vocab": {{}}}}}}"#);
        let request = BuildRequest { tokenizer_json: other.as_bytes(), ..good };
        assert!(matches!(build_from(&request, &corpus()), Err(Error::NotBpe(name)) if name == kind));
    }
}

#[test]
fn an_observer_ends_it() {
    struct EndsAt(&'static str, Mutex<Vec<&'static str>>);

    impl Observer for EndsAt {
        fn begin(&self, stage: &Stage) {
            self.1.lock().unwrap().push(stage.name);
        }

        fn advance(&self, _: u64) {}

        fn is_cancelled(&self) -> bool {
            self.1.lock().unwrap().last() == Some(&self.0)
        }
    }

    let tokenizer_json = demo_json();
    for stage in [
        "encoding the corpus",
        "counting tokens",
        "finding candidates",
        "choosing n-tokens",
        "counting what is saved",
    ] {
        let observer = EndsAt(stage, Mutex::default());
        let documents = corpus().into_iter().map(Ok::<_, Error>);
        let ended = build(&request(&tokenizer_json, 20), documents, &observer);
        assert!(matches!(ended, Err(Error::Cancelled)), "{stage}");
    }
}

#[test]
fn no_n_token_reaches_across_documents_or_special_tokens() {
    let tokenizer_json = demo_json();
    let corpus = vec!["x y<|endoftext|>x y\nx y\n".to_owned(); 50];
    let (patch, _) = build_from(&request(&tokenizer_json, 1), &corpus).unwrap();
    let special = TokenId(0);
    assert!(patch.n_tokens().iter().all(|n_token| !n_token.base.contains(&special)));
    match build_from(&request(&tokenizer_json, 50), &corpus).unwrap_err() {
        Error::NotReachable { what: "n-tokens", asked: 50, reachable } => {
            assert!((1..10).contains(&reachable))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn n_tokens_within_words_have_no_space_inside() {
    let tokenizer_json = demo_json();
    let corpus: Vec<_> = corpus().iter().map(|text| text.replace("the", "zyxwvuq")).collect();
    let request = BuildRequest { words: Words::Within, ..request(&tokenizer_json, 5) };
    let (patch, _) = build_from(&request, &corpus).unwrap();
    for n_token in patch.n_tokens() {
        assert!(!n_token.text[1..].contains(' '), "{:?}", n_token.text);
    }
}

#[test]
fn the_least_used_tokens_go_and_single_characters_stay() {
    let tokenizer_json = demo_json();
    let corpus = corpus();
    let (patch, _) = build_from(&request(&tokenizer_json, 20), &corpus).unwrap();
    let base = Vocabulary::load(&tokenizer_json, None).unwrap();
    let used = base.encode(&corpus.concat(), SpecialTokens::Omit).unwrap().ids;
    for removed in patch.removed() {
        assert!(!used.contains(&removed.id), "{}", removed.text);
        assert!(removed.text.chars().count() > 1, "{}", removed.text);
    }
    let json = TokenizerJson::parse(&tokenizer_json).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    match removal::choose(&json, &base, &[0; 8192], 9000, &[]) {
        Err(Error::NotReachable { what: "removable tokens", reachable, .. }) => {
            assert!(reachable < 8192 - 256)
        }
        _ => panic!("9000 of 8192 tokens removed"),
    }
}

#[test]
fn of_unused_tokens_those_of_unused_halves_go_first() {
    let tokenizer_json = demo_json();
    let json = TokenizerJson::parse(&tokenizer_json).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    let halves = removal::halves(&json, &base);
    let mut uses = [0; 8192];
    let first = removal::choose(&json, &base, &uses, 20, &[]).unwrap();
    // Now both halves of one of these are used, and so it gives way to a token learned earlier.
    let (left, right) = halves[&first[0].id];
    (uses[left.row()], uses[right.row()]) = (5, 5);
    let then = removal::choose(&json, &base, &uses, 20, &[]).unwrap();
    assert!(then.iter().all(|removed| removed.id != first[0].id));
    uses[left.row()] = 0;
    let then = removal::choose(&json, &base, &uses, 20, &[]).unwrap();
    assert!(then.iter().any(|removed| removed.id == first[0].id));
}

#[test]
fn kept_tokens_stay() {
    let tokenizer_json = demo_json();
    let json = TokenizerJson::parse(&tokenizer_json).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    let uses = [0; 8192];
    let first = removal::choose(&json, &base, &uses, 2, &[]).unwrap();
    // One as the file spells it, one as it reads.
    let spelled = first[0].text.replace(' ', "Ġ").replace('\n', "Ċ");
    let keep = [spelled, first[1].text.clone()];
    let then = removal::choose(&json, &base, &uses, 2, &keep).unwrap();
    assert!(then.iter().all(|removed| first.iter().all(|first| first.id != removed.id)));
}

#[test]
fn removing_everything_removable_leaves_a_vocabulary_that_works() {
    let tokenizer_json = demo_json();
    let json = TokenizerJson::parse(&tokenizer_json).unwrap();
    let base = BaseTokenizer::load(&json).unwrap();
    let removed = removal::choose(&json, &base, &[0; 8192], 7000, &[]).unwrap();
    for Removed { id, parts, .. } in &removed {
        assert_eq!(base.joined_bytes(parts), base.bytes(*id));
        assert!(parts.iter().all(|part| removed.binary_search_by_key(part, |removed| removed.id).is_err()));
    }
}
