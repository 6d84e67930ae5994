//! `fused vocab report`: the page is whole, stands alone and says what encoding says; bad input leaves no file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use fused_testkit::{Finished, model_dir, run_to_end};
use fused_vocabulary::{PatchVocabulary, SpecialTokens, Vocabulary};
use serde_json::Value;

const DOCUMENTS: [&str; 3] = [
    "# tar\n\n> Archiving utility.\n> More information: <https://www.gnu.org/software/tar>.\n\n- Create an archive:\n",
    "# ls\n\n> List directory contents.\n\n- List files one per line:\n\n`ls -1 {{path/to/directory}}`\n",
    "Nothing in here is a </script> of a command & \"quotes\".\n",
];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text.txt"), DOCUMENTS.join("<|endoftext|>\n")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs the command on the demo model with its own patch vocabulary, and more arguments.
    fn run(&self, text: &str, out: &str, more: &[&str]) -> Finished {
        let model = model_dir("demo-llama-tldr");
        let patch = model.join("patch_vocabulary.json");
        let (model, patch) = (model.to_str().unwrap(), patch.to_str().unwrap());
        let arguments =
            ["vocab", "report", "--model", model, "--patch-vocabulary", patch, "--text", text, "--out", out];
        run_to_end(Path::new(env!("CARGO_BIN_EXE_fused")), &[&arguments[..], more].concat(), &[]).unwrap()
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into())
            .collect();
        names.sort();
        names
    }
}

/// Walks the tags: every one that opens is closed in order. Returns how often each tag opens.
fn assert_balanced(html: &str) -> std::collections::HashMap<&str, usize> {
    const VOID: [&str; 1] = ["meta"];
    let (mut open, mut counts) = (Vec::new(), std::collections::HashMap::new());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at + 1..];
        let end = tag.find('>').unwrap();
        let (tag, after) = (&tag[..end], &tag[end + 1..]);
        assert_eq!(tag.matches('"').count() % 2, 0, "an open quote in <{tag}>");
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        rest = after;
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another tag");
            continue;
        }
        *counts.entry(name).or_insert(0) += 1;
        if name == "style" {
            // Its text is no markup.
            rest = &rest[rest.find("</style>").unwrap()..];
        }
        if !(tag.starts_with('!') || tag.ends_with('/') || VOID.contains(&name)) {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
    counts
}

fn grouped(number: usize) -> String {
    // Figures of this test are under a million.
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

#[test]
fn the_page_stands_alone_and_says_what_encoding_says() {
    let place = Place::new();
    let (text, out, json) = (place.path("text.txt"), place.path("report.html"), place.path("report.json"));
    let finished = place.run(&text, &out, &["--json", &json, "--example", "2"]);
    assert!(finished.status.success(), "{}", finished.stderr);
    assert_eq!(place.names(), ["report.html", "report.json", "text.txt"].map(PathBuf::from));

    let model = model_dir("demo-llama-tldr");
    let patch = PatchVocabulary::parse(&fs::read(model.join("patch_vocabulary.json")).unwrap()).unwrap();
    let tokenizer = fs::read(model.join("tokenizer.json")).unwrap();
    let vocabulary = Vocabulary::load(&tokenizer, Some(patch)).unwrap();
    let encodings = DOCUMENTS.map(|text| vocabulary.encode(text, SpecialTokens::Omit).unwrap());
    let num_tokens: usize = encodings.iter().map(|encoding| encoding.ids.len()).sum();
    let num_base_tokens: usize = encodings.iter().map(|encoding| encoding.num_base_tokens).sum();
    assert!(num_tokens < num_base_tokens, "the demo vocabulary suits this text");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["num_tokens"], num_tokens);
    assert_eq!(report["num_base_tokens"], num_base_tokens);
    assert_eq!(report["num_documents"], 3);
    assert_eq!(report["num_bytes"], DOCUMENTS.concat().len());
    assert_eq!(report["example"]["base"].as_array().unwrap().len(), encodings[1].num_base_tokens);
    assert_eq!(report["example"]["adapted"].as_array().unwrap().len(), encodings[1].ids.len());

    let page = fs::read_to_string(&out).unwrap();
    let headline = format!("{} before, {} after", grouped(num_base_tokens), grouped(num_tokens));
    assert!(page.contains(&headline), "no `{headline}`");
    assert!(page.contains(&vocabulary.fingerprint().to_string()));
    assert!(!page.contains(place.folder.path().to_str().unwrap()), "folders are nobody's business");

    let counts = assert_balanced(&page);
    assert_eq!((counts["h1"], counts["svg"], counts["main"]), (1, 3, 1));
    assert_eq!(page.matches("role=\"img\" aria-label=\"").count(), counts["svg"]);
    for loaded in ["script", "link", "img", "iframe", "object", "embed", "base"] {
        assert!(!counts.contains_key(loaded), "<{loaded}>");
    }
    for reference in ["http://", "https://", " src=", " href=", "url(", "@import", "@font-face"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn bad_input_ends_with_2_names_what_is_wrong_and_leaves_no_file() {
    let place = Place::new();
    let (text, out) = (place.path("text.txt"), place.path("report.html"));
    let refused = |finished: Finished, words: &[&str]| {
        assert_eq!(finished.status.code(), Some(2), "{}", finished.stderr);
        for word in words {
            assert!(finished.stderr.contains(word), "no `{word}` in: {}", finished.stderr);
        }
    };
    let write = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        place.path(name)
    };
    let (empty, latin) = (write("empty.txt", b"\n<|endoftext|>\n"), write("latin.txt", b"caf\xE9"));
    let broken = write("broken.json", b"{}");
    let before = place.names();

    refused(place.run("/no/such/text", &out, &[]), &["--text", "/no/such/text"]);
    refused(place.run(&empty, &out, &[]), &["--text", "document"]);
    refused(place.run(&latin, &out, &[]), &["latin.txt", "not UTF-8 at byte 3"]);
    refused(place.run(&text, &out, &["--example", "4"]), &["--example 4", "only 3 documents"]);
    refused(place.run(&text, &out, &["--example", "0"]), &["--example"]);
    refused(place.run(&text, &text, &[]), &["text.txt", "overwritten"]);
    refused(place.run(&text, &out, &["--json", &out]), &["report.html", "named twice"]);
    refused(place.run(&text, place.folder.path().to_str().unwrap(), &[]), &["plain file"]);
    let model = model_dir("demo-llama-tldr");
    let run = |model: &str, patch: &str| {
        let arguments = [
            "vocab",
            "report",
            "--model",
            model,
            "--patch-vocabulary",
            patch,
            "--text",
            &text,
            "--out",
            &out,
        ];
        run_to_end(Path::new(env!("CARGO_BIN_EXE_fused")), &arguments, &[]).unwrap()
    };
    let model = model.to_str().unwrap();
    let patch = format!("{model}/patch_vocabulary.json");
    refused(run(model, &broken), &["patch vocabulary", "broken.json"]);
    refused(run(model, "/no/such/patch"), &["patch vocabulary", "/no/such/patch"]);
    refused(run("/no/such/model", &patch), &["/no/such/model"]);
    let other = model_dir("tiny-gpt2");
    refused(run(other.to_str().unwrap(), &patch), &["tiny-gpt2", "tokenizer.json"]);

    assert_eq!(place.names(), before);
    assert_eq!(fs::read_to_string(&text).unwrap(), DOCUMENTS.join("<|endoftext|>\n"));
}
