//! The reference's choice as a build request.

use std::path::PathBuf;
use std::sync::LazyLock;

use rayon::ThreadPoolBuilder;

use super::super::super::{BuildReport, BuildRequest, Lines, Selection, Unobserved, Words, build};
use super::super::*;
use crate::vocabulary::tests::demo_json;
use crate::{PatchVocabulary, Segmentation};

fn request(tokenizer_json: &[u8], mode: Mode) -> BuildRequest<'_> {
    static SCRATCH: LazyLock<PathBuf> = LazyLock::new(std::env::temp_dir);
    BuildRequest {
        tokenizer_json,
        add: 30,
        remove: BuildRequest::default_remove(mode, 30),
        max_n: BuildRequest::REFERENCE_MAX_N,
        mode,
        words: Words::Cross,
        lines: Lines::Cross,
        selection: Selection::Reference,
        keep: &[],
        scratch: &SCRATCH,
    }
}

fn build_from(
    request: &BuildRequest<'_>,
    corpus: &[String],
    observer: &dyn Observer,
) -> Result<(PatchVocabulary, BuildReport)> {
    build(request, corpus.iter().cloned().map(Ok::<_, Error>), observer)
}

/// Long documents, and one with 49 words.
fn corpus() -> Vec<String> {
    let document =
        |start: usize| (0..60).map(|word| format!("file{} of ", (start + word * word) % 17)).collect();
    let mut corpus: Vec<String> = (0..20).map(document).collect();
    corpus.push("xylophone ".repeat(49));
    corpus
}

#[test]
fn replace_mode_removes_and_adds_as_many() {
    let tokenizer_json = demo_json();
    let request = request(&tokenizer_json, Mode::Replace);
    let (patch, report) = build_from(&request, &corpus(), &Unobserved).unwrap();
    assert_eq!(report.num_documents, 20);
    assert_eq!(report.num_removed, report.num_n_tokens);
    assert!((1..=30).contains(&report.num_removed));
    assert_eq!(patch.segmentation(), Segmentation::Greedy);
    assert!(patch.n_tokens().iter().all(|n_token| n_token.base.len() <= 3));
    assert!(report.num_tokens < report.num_base_tokens);

    let one_thread = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let again = one_thread.install(|| build_from(&request, &corpus(), &Unobserved)).unwrap();
    assert_eq!(again, (patch, report));
}

#[test]
fn extend_mode_adds_what_is_asked_for() {
    let tokenizer_json = demo_json();
    let (patch, _) = build_from(&request(&tokenizer_json, Mode::Extend), &corpus(), &Unobserved).unwrap();
    assert_eq!((patch.removed().len(), patch.n_tokens().len()), (0, 30));
}

#[test]
fn what_the_reference_cannot_do_is_refused_by_name() {
    let tokenizer_json = demo_json();
    let refused = |change: fn(&mut BuildRequest<'_>), corpus: &[String]| {
        let mut request = request(&tokenizer_json, Mode::Replace);
        change(&mut request);
        build_from(&request, corpus, &Unobserved).unwrap_err().to_string()
    };
    let corpus = corpus();
    let error = refused(|request| request.words = Words::Within, &corpus);
    assert_eq!(error, "cross_words: the reference has its own rule about words, which cannot be chosen");
    let error = refused(|request| request.remove = 7, &corpus);
    assert_eq!(error, "remove: the reference adds as many n-tokens as tokens are removed: 7 is not 30");
    let error = refused(|_| (), &corpus[20..]);
    let expected = "selection: the reference passes over documents with fewer than 50 words, and all 1 of the corpus have \
                    fewer";
    assert_eq!(error, expected);
    let error = refused(|request| (request.add, request.remove) = (4000, 4000), &corpus);
    assert!(error.contains("n-tokens were asked for, but only"), "{error}");
}

#[test]
fn kept_tokens_stay() {
    let tokenizer_json = demo_json();
    let mut request = request(&tokenizer_json, Mode::Replace);
    let (patch, _) = build_from(&request, &corpus(), &Unobserved).unwrap();
    let keep: Vec<String> = patch.removed().iter().map(|removed| removed.text.clone()).collect();
    request.keep = &keep;
    let (other, _) = build_from(&request, &corpus(), &Unobserved).unwrap();
    assert!(other.removed().iter().all(|removed| !keep.contains(&removed.text)));
}

/// Ends each stage in turn.
struct Ends(&'static str, std::sync::Mutex<Vec<&'static str>>);

impl Observer for Ends {
    fn begin(&self, stage: &Stage) {
        self.1.lock().unwrap().push(stage.name);
    }

    fn advance(&self, _: u64) {}

    fn is_cancelled(&self) -> bool {
        self.1.lock().unwrap().last() == Some(&self.0)
    }
}

#[test]
fn it_ends_when_told_to() {
    let tokenizer_json = demo_json();
    for stage in ["counting tokens", "counting n-grams", "choosing n-tokens"] {
        let observer = Ends(stage, std::sync::Mutex::default());
        let request = request(&tokenizer_json, Mode::Replace);
        let error = build_from(&request, &corpus(), &observer).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{stage}: {error}");
    }
}
