use proptest::prelude::*;

use super::savings::SavingsTally;
use super::*;
use crate::vocabulary::tests::{demo, demo_json};
use crate::{Mode, NToken, PatchContent, Removed, Segmentation};

const TEXTS: [&str; 4] = [
    "abc the cat is abcab, the ab is a cab\n",
    "nothing in here is worth a word\n",
    "the the the the",
    "näïve 東京 👩‍👩‍👧‍👦 abc",
];

/// " the" and " is" are removed, for n-tokens of two and three letters; one is never used.
fn comparison() -> Comparison {
    let id = |text: &str| demo().token_id(text).unwrap();
    let mut removed = vec![
        Removed { id: id("Ġthe"), parts: ["Ġ", "t", "h", "e"].map(id).into(), text: " the".into() },
        Removed { id: id("Ġis"), parts: ["Ġ", "i", "s"].map(id).into(), text: " is".into() },
        Removed { id: id("Ġof"), parts: ["Ġ", "o", "f"].map(id).into(), text: " of".into() },
    ];
    removed.sort_by_key(|removed| removed.id);
    let letters = |text: &str| text.chars().map(|char| id(&char.to_string())).collect::<Vec<_>>();
    let n_tokens = [("the", letters("the")), ("is", letters("is")), ("QZXW", letters("QZXW"))]
        .into_iter()
        .zip(&removed)
        .map(|((text, base), removed)| NToken { id: removed.id, base, text: text.into() })
        .collect();
    let mut model_ids: Vec<_> = (0..8192).map(|id| Some(TokenId(id))).collect();
    removed.iter().for_each(|removed| model_ids[removed.id.row()] = None);
    let patch = PatchVocabulary::new(PatchContent {
        base_tokenizer: demo().fingerprint(),
        mode: Mode::Replace,
        segmentation: Segmentation::Greedy,
        model_ids,
        removed,
        n_tokens,
    });
    Comparison::load(&demo_json(), patch.unwrap()).unwrap()
}

fn measure(texts: &[&str], example: Option<u64>) -> Report {
    comparison().measure(texts.iter().map(Ok::<_, Error>), example).unwrap()
}

fn assert_adds_up(report: &Report) {
    let base_and_extra = report.num_base_tokens + report.removed.num_extra_tokens;
    assert_eq!(base_and_extra, report.num_tokens + report.num_saved_tokens);
    let by_length = |of: fn(&LengthFigures) -> u64| report.lengths.iter().map(of).sum::<u64>();
    assert_eq!(by_length(|length| length.num_saved_tokens), report.num_saved_tokens);
    assert_eq!(by_length(|length| length.num_n_tokens as u64), report.vocabulary.num_n_tokens as u64);
    assert_eq!(by_length(|length| length.num_used as u64), report.n_tokens.len() as u64);
    let uses = report.n_tokens.iter().map(|n_token| n_token.num_uses).sum::<u64>();
    assert_eq!(by_length(|length| length.num_uses), uses);
    assert!(report.n_tokens.is_sorted_by_key(|n_token| std::cmp::Reverse(n_token.num_saved_tokens)));
    assert!(report.savings.steps.is_sorted());
}

#[test]
fn the_figures_are_those_of_encoding_and_add_up() {
    let report = measure(&TEXTS, None);
    let Comparison { adapted, .. } = comparison();
    let encodings = TEXTS.map(|text| adapted.encode(text, SpecialTokens::Omit).unwrap());
    assert_eq!(report.num_documents, 4);
    assert_eq!(report.num_bytes, TEXTS.concat().len() as u64);
    assert_eq!(report.num_tokens, encodings.iter().map(|encoding| encoding.ids.len() as u64).sum::<u64>());
    let num_base_tokens = encodings.iter().map(|encoding| encoding.num_base_tokens as u64).sum::<u64>();
    assert_eq!(report.num_base_tokens, num_base_tokens);
    assert_adds_up(&report);
    assert_eq!(report.savings.steps.iter().map(|(_, count)| count).sum::<u64>(), 4);

    // " the" four times where it follows a space; each takes four parts, of which "the" joins three.
    let the = report.removed.tokens.iter().find(|token| token.text == " the").unwrap();
    assert_eq!((the.num_occurrences, the.num_extra_tokens), (5, 15));
    let joined = report.n_tokens.iter().find(|n_token| n_token.text == "the").unwrap();
    assert_eq!((joined.num_uses, joined.num_saved_tokens), (5, 10));
    assert_eq!(joined.base_texts, ["t", "h", "e"]);
    assert!(report.n_tokens.iter().all(|n_token| n_token.text != "QZXW"));
    assert_eq!(report.lengths[2].num_used, 0);
    assert_eq!(report.lengths[2].num_n_tokens, 1);
}

#[test]
fn coverage_counts_the_n_tokens_that_a_share_needs() {
    let report = measure(&TEXTS, None);
    assert_eq!(report.num_n_tokens_for(0.0), 1);
    assert_eq!(report.num_n_tokens_for(0.5), 1);
    assert_eq!(report.num_n_tokens_for(1.0), 2);
    let unused = measure(&["xyz"], None);
    assert_eq!(unused.num_n_tokens_for(1.0), 0);
    assert_adds_up(&unused);
}

#[test]
fn an_error_among_the_documents_ends_the_measurement() {
    let documents = [Ok("a"), Err(Error::field("document", "broken"))];
    assert!(comparison().measure(documents, None).is_err());
    let nothing = measure(&[], None);
    assert_eq!((nothing.num_documents, nothing.num_base_tokens, nothing.saved_share), (0, 0, 0.0));
    assert!(nothing.example.is_none());
}

#[test]
fn batches_do_not_change_the_figures() {
    let long: Vec<String> =
        (0..MAX_BATCH_DOCUMENTS + 3).map(|idx| format!("document {idx} is the")).collect();
    let comparison = comparison();
    let report = comparison.measure(long.iter().map(Ok::<_, Error>), None).unwrap();
    assert_eq!(report.num_documents, long.len() as u64);
    assert_adds_up(&report);
    let once: u64 = long
        .iter()
        .map(|text| comparison.adapted.encode(text, SpecialTokens::Omit).unwrap().ids.len() as u64)
        .sum();
    assert_eq!(report.num_tokens, once);
}

#[test]
fn the_example_is_the_document_asked_for_or_a_long_one_near_the_median() {
    let asked = measure(&TEXTS, Some(3)).example.unwrap();
    assert_eq!((asked.number, asked.is_cut), (3, false));
    let text = |pieces: &[Piece]| pieces.iter().map(|piece| piece.text.as_str()).collect::<String>();
    assert_eq!(text(&asked.base), TEXTS[2]);
    assert_eq!(text(&asked.adapted), TEXTS[2]);
    let n_tokens: Vec<_> = asked.adapted.iter().filter(|piece| !piece.base_texts.is_empty()).collect();
    assert_eq!(n_tokens[0].base_texts.concat(), n_tokens[0].text);
    assert!(measure(&TEXTS, Some(5)).example.is_none());

    let long = "words in a paragraph, and some more\n\n".repeat(60);
    let found = measure(&["no", &long, "none", "nothing"], None).example.unwrap();
    assert_eq!(found.number, 2);
    assert!(found.is_cut);
    let shown = text(&found.adapted);
    assert!(shown.chars().count() <= 1500 && shown.ends_with("some more"), "{shown}");
}

#[test]
fn of_a_long_document_the_piece_that_saves_as_much_as_the_whole_is_shown() {
    // Its first 1,000 characters grow; in the 14,400 after them nothing changes.
    let document =
        format!("{}\n\n{}", " the".repeat(250), "words in a paragraph, and some more\n\n".repeat(400));
    let example = measure(&[&document], None).example.unwrap();
    assert!(example.is_cut);
    let text = |pieces: &[Piece]| pieces.iter().map(|piece| piece.text.as_str()).collect::<String>();
    assert!(text(&example.adapted).starts_with("words in"));
    assert_eq!(text(&example.base), text(&example.adapted));
    assert_eq!(measure(&["\n"], Some(1)).example.map(|example| example.is_cut), Some(false));
}

#[test]
fn parts_of_characters_are_shown_by_their_bytes() {
    assert_eq!(readable("a東\n".as_bytes()), "a東\n");
    assert_eq!(readable(&[b'a', 0xE6, 0x9D, b'b', 0xFF]), "a\\xE6\\x9Db\\xFF");
}

#[test]
fn the_best_and_the_worst_documents_are_named() {
    let mut tally = SavingsTally::new();
    for (number, (base, tokens)) in
        (1..).zip([(10, 5), (10, 20), (10, 5), (0, 0), (4, 1), (8, 8), (10, 60), (9, 6)])
    {
        tally.add(number, "some  words\nhere", base, tokens);
    }
    let savings = tally.finish();
    let numbers =
        |named: &[DocumentFigures]| named.iter().map(|document| document.number).collect::<Vec<_>>();
    assert_eq!(numbers(&savings.best), [5, 1, 3, 8, 6]);
    assert_eq!(numbers(&savings.worst), [7, 2, 6, 8, 1]);
    assert_eq!(savings.best[0].first_words, "some words here");
    assert_eq!(savings.num_longer, 2);
    let Quartiles { min, lower, median, upper, max } = savings.quartiles;
    assert_eq!((min, lower, median, upper, max), (-5.0, -1.0, 0.333, 0.5, 0.75));
    // The document that grows sixfold is counted in the last step.
    assert_eq!(savings.steps, [(-1000, 2), (0, 1), (333, 1), (500, 2), (750, 1)]);
}

proptest! {
    #[test]
    fn figures_add_up_on_any_text(texts in prop::collection::vec("([a-z é東]{0,8}|the| is|\n|.){0,12}", 0..12)) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        static COMPARISON: std::sync::LazyLock<Comparison> = std::sync::LazyLock::new(comparison);
        let report = COMPARISON.measure(texts.iter().map(Ok::<_, Error>), None).unwrap();
        assert_adds_up(&report);
        let Quartiles { min, lower, median, upper, max } = report.savings.quartiles;
        prop_assert!(min <= lower && lower <= median && median <= upper && upper <= max);
    }
}
