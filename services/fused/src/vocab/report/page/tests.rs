use fused_vocabulary::report::Comparison;
use fused_vocabulary::{Mode, NToken, PatchContent, PatchVocabulary, Segmentation, TokenId, Vocabulary};

use super::*;

const HOSTILE: &str = "</script><img onerror=\"x\">\u{202E}&amp;";

/// The demo model's tokenizer with one n-token, which reads like markup and turns text around.
fn report(text: &str) -> Report {
    let tokenizer = include_bytes!("../../../../../../tests/models/demo-llama/tokenizer.json");
    let base = Vocabulary::load(tokenizer, None).unwrap();
    let ids = base.encode(HOSTILE, fused_vocabulary::SpecialTokens::Omit).unwrap().ids;
    let size = base.vocab_size() as u32;
    let content = PatchContent {
        base_tokenizer: base.fingerprint(),
        mode: Mode::Extend,
        segmentation: Segmentation::Greedy,
        model_ids: (0..size).map(|id| Some(TokenId(id))).collect(),
        removed: vec![],
        n_tokens: vec![NToken { id: TokenId(size), base: ids, text: HOSTILE.into() }],
    };
    let comparison = Comparison::load(tokenizer, PatchVocabulary::new(content).unwrap()).unwrap();
    comparison.measure([Ok::<_, fused_vocabulary::Error>(text)], None).unwrap()
}

fn page(text: &str) -> String {
    let report = report(text);
    let texts = ["<b>.txt".to_owned()];
    Page { model: "<model>", texts: &texts, made_at: "now", report: &report }.to_html().unwrap()
}

#[test]
fn texts_are_never_markup() {
    let page = page(HOSTILE);
    assert!(!page.contains("<script") && !page.contains("</script") && !page.contains("<img"));
    assert!(!page.contains("<model>") && !page.contains("<b>.txt"));
    // Shown as it reads, in the table and in the example, with the turning character named.
    let shown = page.matches("&lt;&#x2f;script&gt;&lt;img").count();
    assert!(shown >= 2, "{shown}");
    assert!(!page.contains('\u{202E}') && page.contains("<i>U+202E</i>&amp;amp;"));
}

#[test]
fn a_text_that_uses_no_n_token_has_a_page_too() {
    let page = page("word");
    assert!(page.contains("This text uses none of them.") && page.contains("0.0\u{202F}% fewer"));
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn bins_hold_every_document_and_are_few() {
    let steps = [(-1000, 1), (-5, 2), (0, 3), (19, 4), (20, 5), (999, 6)];
    let all = bins(&steps);
    assert!(all.len() as i64 <= MAX_BINS);
    assert_eq!(all.iter().map(|bin| bin.num_documents).sum::<u64>(), 21);
    let narrow = bins(&steps[1..5]);
    let names: Vec<_> = narrow.iter().map(|bin| (bin.name(), bin.num_documents)).collect();
    let name = |text: &str| text.to_owned();
    assert_eq!(
        names,
        [
            (name("\u{2212}1 to 0\u{202F}%"), 2),
            (name("0 to 1\u{202F}%"), 3),
            (name("1 to 2\u{202F}%"), 4),
            (name("2 to 3\u{202F}%"), 5)
        ]
    );
    assert!(bins(&[]).is_empty());
}
