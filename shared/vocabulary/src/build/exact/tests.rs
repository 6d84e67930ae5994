use std::collections::HashSet;

use fused_testkit::test_data;
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;

use super::places::Place;
use super::*;
use crate::base::{Kind, TokenizerJson};
use crate::build::{Lines, Selection, Unobserved, Words, build};
use crate::vocabulary::tests::demo_json;
use crate::{Mode, SpecialTokens, Vocabulary};

/// Chooses from base ids; fewer than `num` where the corpus has no more.
fn selected(places: &[Place], documents: &[Vec<TokenId>], num: usize, max_n: usize) -> Vec<Vec<TokenId>> {
    let selector = Selector {
        spool: &Spool::of(documents),
        observer: &Unobserved,
        max_n,
        discount: Discount::new(),
        symbols: Symbols::new(places),
        uses: Vec::new(),
    };
    selector.select(num).unwrap()
}

fn on_threads<T: Send>(num: usize, f: impl FnOnce() -> T + Send) -> T {
    ThreadPoolBuilder::new().num_threads(num).build().unwrap().install(f)
}

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

#[test]
fn what_repeats_most_is_chosen_whole() {
    let phrase = [1, 2, 3, 4, 5];
    let documents: Vec<_> =
        (0..30).map(|idx| ids(&[&[6 + idx], &phrase[..], &[40 + idx]].concat())).collect();
    let places = [Place::Any; 80];
    assert_eq!(selected(&places, &documents, 1, 8), [ids(&phrase)]);
    assert!(selected(&places, &documents, 1, 4)[0].len() <= 4);
    // Steps on the way to the whole phrase are of no use beside it, and nothing else repeats.
    assert_eq!(selected(&places, &documents, 10, 8), [ids(&phrase)]);
    assert!(selected(&[Place::Nowhere; 80], &documents, 1, 8).is_empty());
}

#[test]
fn the_most_valuable_stand_first() {
    // Of 2 base tokens 60 times: worth 60. Of 4 base tokens 30 times: worth 90.
    let document = |idx: u32| match idx % 3 {
        0 => ids(&[10 + idx, 1, 2, 3, 4]),
        _ => ids(&[10 + idx, 5, 6]),
    };
    let documents: Vec<_> = (0..90).map(document).collect();
    let chosen = selected(&[Place::Any; 100], &documents, 2, 8);
    assert_eq!(chosen, [ids(&[1, 2, 3, 4]), ids(&[5, 6])]);
}

#[test]
fn a_run_of_one_token_is_counted_without_overlap() {
    let documents = vec![vec![TokenId(0); 9]; 4];
    let chosen = selected(&[Place::Any], &documents, 1, 3);
    assert_eq!(chosen, [ids(&[0, 0, 0])]);
}

fn places() -> impl Strategy<Value = Vec<Place>> {
    let place = prop_oneof![1 => Just(Place::Nowhere), 2 => Just(Place::First), 5 => Just(Place::Any)];
    prop::collection::vec(place, 8)
}

proptest! {
    #[test]
    fn n_tokens_stand_in_the_corpus_and_keep_the_rules(
        places in places(),
        documents in prop::collection::vec(prop::collection::vec((0_u32..8).prop_map(TokenId), 1..40), 1..20),
        num in 1_usize..40,
        max_n in 2_usize..9,
    ) {
        let chosen = on_threads(1, || selected(&places, &documents, num, max_n));
        prop_assert_eq!(&chosen, &on_threads(3, || selected(&places, &documents, num, max_n)));
        prop_assert!(chosen.len() <= num);
        prop_assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), chosen.len());
        for n_token in &chosen {
            prop_assert!((2..=max_n).contains(&n_token.len()));
            prop_assert!(n_token.iter().all(|id| places[id.row()] != Place::Nowhere));
            prop_assert!(n_token[1..].iter().all(|id| places[id.row()] == Place::Any));
            let num_places: usize = documents
                .iter()
                .map(|ids| ids.windows(n_token.len()).filter(|window| window == n_token).count())
                .sum();
            prop_assert!(num_places >= 2);
        }
    }
}

#[test]
fn shares_rise_to_the_whole() {
    let shares: Vec<_> = (0..=8).map(|part| share(1000, part, 8)).collect();
    assert!(shares.is_sorted());
    assert_eq!((shares[0], shares[4], shares[8]), (0, 353, 1000));
}

fn request(tokenizer_json: &[u8], add: usize) -> BuildRequest<'_> {
    BuildRequest {
        tokenizer_json,
        add,
        remove: 0,
        max_n: BuildRequest::DEFAULT_MAX_N,
        mode: Mode::Extend,
        words: Words::Cross,
        lines: Lines::Cross,
        selection: Selection::Exact,
        keep: &[],
        scratch: std::path::Path::new("/tmp"),
    }
}

/// The documents of a corpus beside the repository.
fn documents(name: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(test_data(name)?).unwrap();
    Some(text.split("<|endoftext|>\n").map(str::to_owned).collect())
}

#[test]
fn unseen_text_of_the_domain_takes_little_more_than_half_the_tokens() {
    let (Some(train), Some(heldout)) =
        (documents("corpora/tldr/train.txt"), documents("corpora/tldr/heldout.txt"))
    else {
        return;
    };
    let json = demo_json();
    let built = |request: &BuildRequest<'_>, num_threads| {
        let documents = train.iter().cloned().map(Ok::<_, Error>);
        on_threads(num_threads, || build(request, documents, &Unobserved)).unwrap().0
    };
    let saved = |patch| {
        let vocabulary = Vocabulary::load(&json, Some(patch)).unwrap();
        let (mut num_base, mut num) = (0, 0);
        for document in &heldout {
            let encoding = vocabulary.encode(document, SpecialTokens::Omit).unwrap();
            (num_base, num) = (num_base + encoding.num_base_tokens, num + encoding.ids.len());
        }
        1.0 - num as f64 / num_base as f64
    };
    let across = saved(built(&request(&json, 4000), 2));
    let within_lines = BuildRequest { lines: Lines::Within, ..request(&json, 1000) };
    let patch = built(&within_lines, 2);
    assert_eq!(patch, built(&within_lines, 1));
    assert!(patch.n_tokens().iter().all(|n_token| !n_token.text.contains('\n')));
    let within = saved(patch);
    assert!(across > 0.46 && within > 0.23, "{across} {within}");
}

#[test]
fn built_n_tokens_keep_to_words_lines_and_learned_tokens() {
    let json = demo_json();
    let base = BaseTokenizer::load(&TokenizerJson::parse(&json).unwrap()).unwrap();
    let document =
        |idx: usize| format!("# zyxwvu-{}\n\n- show zyxwvu\n<|endoftext|>zyxwvu qponml;\n", idx % 7);
    let documents: Vec<_> = (0..60).map(document).collect();
    for (words, lines) in [Words::Cross, Words::Within]
        .into_iter()
        .flat_map(|words| [(words, Lines::Cross), (words, Lines::Within)])
    {
        let request = BuildRequest { words, lines, ..request(&json, 3) };
        let documents = documents.iter().cloned().map(Ok::<_, Error>);
        let (patch, _) = build(&request, documents, &Unobserved).unwrap();
        for n_token in patch.n_tokens() {
            let text = &n_token.text;
            let within_word = !text.trim_ascii_start().contains(|c: char| c.is_ascii_whitespace());
            assert!(words == Words::Cross || within_word, "{text:?}");
            assert!(lines == Lines::Cross || !text.contains('\n'), "{text:?}");
            assert!(n_token.base.iter().all(|id| base.kind(*id) == Kind::Learned), "{text:?}");
        }
    }
}
