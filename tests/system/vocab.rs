//! The tools for vocabularies, as a user runs them: what they write, and that bad input gets a message that says what to
//! change, exit code 2 and no file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fused_testkit::{Finished, model_dir, run_to_end};
use fused_vocabulary::{PatchVocabulary, SpecialTokens, Vocabulary};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_fused");

/// Files to build from.
struct Rig {
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { folder: tempfile::tempdir().unwrap() };
        rig.write("corpus.txt", documents().join("<|endoftext|>\n").as_bytes());
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs `fused vocab`; words that begin with `@` are files of the rig.
    fn vocab(&self, line: &str) -> Finished {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        };
        let words: Vec<String> = ["vocab"].into_iter().chain(line.split(' ')).map(word).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run_to_end(Path::new(BINARY), &words, &[]).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Documents of words in an order that repeats pairs often and whole lines never.
fn documents() -> Vec<String> {
    const WORDS: [&str; 8] = ["list", "files", "in", "the", "current", "directory", "show", "all"];
    let mut state = 1_usize;
    let mut word = || {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        WORDS[(state >> 16) % WORDS.len()]
    };
    (0..40).map(|idx| format!("# command {idx}\n\n{}\n", [(); 30].map(|()| word()).join(" "))).collect()
}

fn succeeded(finished: Finished) -> String {
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn a_vocabulary_is_built_from_every_kind_of_corpus_alike() {
    let rig = Rig::new();
    let json = |text: String| serde_json::json!({"id": 1, "body": text}).to_string() + "\n";
    rig.write("corpus.jsonl", documents().into_iter().map(json).collect::<String>().as_bytes());
    let report = succeeded(rig.vocab("build --corpus @corpus.txt --add 8 --out @text.json"));
    assert!(
        report.contains("40 documents") && report.contains("% fewer") && report.contains("MB/s"),
        "{report}"
    );
    succeeded(rig.vocab("build --corpus @corpus.jsonl --field body --add 8 --threads 1 --out @jsonl.json"));
    let built = fs::read(rig.path("text.json")).unwrap();
    assert_eq!(fs::read(rig.path("jsonl.json")).unwrap(), built);

    let mut child = Command::new(BINARY)
        .args(["vocab", "build", "--corpus", "-", "--add", "8", "--out"])
        .arg(rig.path("stdin.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = fs::read(rig.path("corpus.txt")).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(rig.path("stdin.json")).unwrap(), built);
    assert_eq!(rig.files(), ["corpus.jsonl", "corpus.txt", "jsonl.json", "stdin.json", "text.json"]);

    let patch = PatchVocabulary::parse(&built).unwrap();
    assert_eq!((patch.n_tokens().len(), patch.removed().len(), patch.vocab_size()), (8, 8, 8192));
    succeeded(rig.vocab("build --corpus @corpus.txt --add 8 --mode extend --max-n 3 --out @text.json"));
    let patch = PatchVocabulary::parse(&fs::read(rig.path("text.json")).unwrap()).unwrap();
    assert_eq!((patch.n_tokens().len(), patch.removed().len(), patch.vocab_size()), (8, 0, 8200));
    assert!(patch.n_tokens().iter().all(|n_token| n_token.base.len() <= 3));
}

#[test]
fn the_choice_of_the_reference_is_built_too() {
    let rig = Rig::new();
    rig.write(
        "long.txt",
        documents().chunks(2).map(<[_]>::concat).collect::<Vec<_>>().join("<|endoftext|>\n").as_bytes(),
    );
    let build = "build --corpus @long.txt --selection reference --add 40 --out @patch.json";
    let report = succeeded(rig.vocab(build));
    let built = fs::read(rig.path("patch.json")).unwrap();
    let patch = PatchVocabulary::parse(&built).unwrap();
    assert_eq!(patch.n_tokens().len(), patch.removed().len());
    assert!(patch.n_tokens().iter().all(|n_token| n_token.base.len() <= 3));
    let says_fewer = report.contains(&format!("{} n-tokens, not 40", patch.n_tokens().len()));
    assert_eq!(says_fewer, patch.n_tokens().len() < 40, "{report}");
    succeeded(rig.vocab(&format!("{build} --threads 1")));
    assert_eq!(fs::read(rig.path("patch.json")).unwrap(), built);
}

#[test]
fn encoded_ids_are_those_of_the_vocabulary() {
    let rig = Rig::new();
    succeeded(rig.vocab("build --corpus @corpus.txt --add 8 --out @patch.json"));
    let report = succeeded(
        rig.vocab("encode --corpus @corpus.txt --patch-vocabulary @patch.json --to npy --out @ids.npy"),
    );
    assert!(report.contains("40 documents") && report.contains("a byte"), "{report}");
    let tokenizer = fs::read(model_dir("demo-llama").join("tokenizer.json")).unwrap();
    let patch = PatchVocabulary::parse(&fs::read(rig.path("patch.json")).unwrap()).unwrap();
    let vocabulary = Vocabulary::load(&tokenizer, Some(patch)).unwrap();
    let encode = |text: &String| vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids;
    let end_of_text = vocabulary.token_id("<|endoftext|>").unwrap();
    let expected: Vec<_> = documents().iter().map(encode).collect();
    let expected: Vec<u32> = expected.join(&[end_of_text][..]).iter().map(|id| id.0).collect();
    let bytes = fs::read(rig.path("ids.npy")).unwrap();
    let ids: Vec<u32> = bytes[128..].chunks(4).map(|id| u32::from_le_bytes(id.try_into().unwrap())).collect();
    assert_eq!(ids, expected);

    succeeded(
        rig.vocab("encode --corpus @corpus.txt --patch-vocabulary none --to parquet --out @ids.parquet"),
    );
    assert_eq!(rig.files(), ["corpus.txt", "ids.npy", "ids.parquet", "patch.json"]);
}

#[test]
fn bad_input_is_named_with_exit_code_2_and_leaves_no_file() {
    let rig = Rig::new();
    rig.write("empty.txt", b"");
    rig.write("blank.txt", b" \n<|endoftext|>\n\n");
    rig.write("latin.txt", b"caf\xe9 au lait\n");
    rig.write("utf16.txt", b"\xff\xfec\0a\0");
    rig.write("rows.jsonl", b"{\"body\": \"x\"}\n");
    rig.write("broken.jsonl", b"{\"text\": \"x\"}\n{\"text\": \n");
    rig.write("broken.gz", b"\x1f\x8bthis is no gzip");
    rig.write("table.parquet", b"PAR1 broken");
    rig.write("no.json", b"{");
    for kind in ["Unigram", "WordPiece", "WordLevel"] {
        let json = format!(r#"{{"model": {{"type": "{kind}", "vocab": {{}}}}}}"#);
        rig.write(&format!("{kind}.json"), json.as_bytes());
    }
    fs::create_dir(rig.path("folder")).unwrap();
    fs::create_dir(rig.path("model")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model_dir("demo-llama").join(name), rig.path("model").join(name)).unwrap();
    }
    let before = rig.files();

    let build = "build --out @out.json --add 4 --corpus";
    let encode = "encode --to npy --out @out.npy --model @model --corpus";
    let text = format!("{build} @corpus.txt");
    let table: Vec<(String, &[&str])> = vec![
        (format!("{build} @empty.txt"), &["corpus is empty"]),
        (format!("{build} @blank.txt"), &["corpus is empty"]),
        (format!("{build} @latin.txt"), &["latin.txt", "not UTF-8 at byte 3"]),
        (format!("{build} @utf16.txt"), &["utf16.txt", "UTF-16"]),
        (format!("{build} @rows.jsonl"), &["rows.jsonl", "line 1", "no field `text`", "`body`"]),
        (format!("{build} @broken.jsonl"), &["broken.jsonl", "line 2, column"]),
        (format!("{build} @broken.gz"), &["broken.gz"]),
        (format!("{build} @table.parquet"), &["table.parquet", "Parquet"]),
        (format!("{build} @no-such-file"), &["--corpus", "no-such-file"]),
        (format!("{build} @folder"), &["folder", "no file with text"]),
        ("build --corpus @corpus.txt --out @out.json --add 100000".into(), &["100000", "only", "--remove"]),
        (
            "build --corpus @corpus.txt --out @out.json --add 100000 --remove 0".into(),
            &["100000 n-tokens", "only", "--add"],
        ),
        ("build --corpus @corpus.txt --out @out.json --add 0".into(), &["--add", "`0`"]),
        (format!("{text} --max-n 1"), &["--max-n", "2 to 64"]),
        (format!("{text} --mode extend --remove 4"), &["--remove", "extend"]),
        (format!("{text} --mode shrink"), &["--mode", "shrink", "replace"]),
        (format!("{text} --cross-words perhaps"), &["--cross-words"]),
        (format!("{text} --cross-lines perhaps"), &["--cross-lines"]),
        (format!("{text} --selection reference --cross-lines false"), &["--cross-lines", "the reference"]),
        (format!("{text} --selection reference"), &["--selection", "fewer than 50 words", "all 40"]),
        (format!("{text} --selection reference --remove 3"), &["--remove", "3 is not 4"]),
        (format!("{text} --selection reference --cross-words false"), &["--cross-words", "its own rule"]),
        (format!("{text} --keep nosuchtoken"), &["--keep", "nosuchtoken"]),
        (format!("{text} --tokenizer @Unigram.json"), &["Unigram", "BPE"]),
        (format!("{text} --tokenizer @WordPiece.json"), &["WordPiece", "BPE"]),
        (format!("{text} --tokenizer @WordLevel.json"), &["WordLevel", "BPE"]),
        (format!("{text} --tokenizer @no.json"), &["tokenizer.json cannot be parsed"]),
        (format!("{text} --tokenizer @folder"), &["folder", "tokenizer.json"]),
        (format!("{text} --tokenizer @no.json --model @folder"), &["--tokenizer", "--model"]),
        ("build --corpus @corpus.txt --add 4 --out @no/folder/out.json".into(), &["--out", "no/folder"]),
        ("build --corpus @corpus.txt --add 4 --out @folder".into(), &["--out", "folder"]),
        ("build --add 4 --out @out.json".into(), &["--corpus"]),
        (format!("{encode} @empty.txt"), &["corpus is empty"]),
        (format!("{encode} @latin.txt"), &["latin.txt", "not UTF-8 at byte 3"]),
        (format!("{encode} @corpus.txt --separator 9999999"), &["--separator", "9999999"]),
        (format!("{encode} @corpus.txt --separator x"), &["--separator", "`x`"]),
        (
            "encode --to npy --out @out.npy --model @folder --corpus @corpus.txt".into(),
            &["folder", "tokenizer.json"],
        ),
        (format!("{encode} @corpus.txt --patch-vocabulary @no.json"), &["no.json"]),
        (format!("{encode} @corpus.txt --patch-vocabulary @no-such-file"), &["no-such-file"]),
        ("encode --corpus @corpus.txt --to csv --out @out.csv".into(), &["--to", "csv"]),
        (
            "encode --model @model --corpus @corpus.txt --to parquet --separator 1 --out @out".into(),
            &["--separator"],
        ),
    ];
    let mut wrong = Vec::new();
    for (line, parts) in table {
        let finished = rig.vocab(&line);
        let is_named = parts.iter().all(|part| finished.stderr.contains(part));
        if finished.status.code() != Some(2) || !is_named || rig.files() != before {
            wrong.push(format!("{line}: wanted {parts:?}, got {} {}", finished.status, finished.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_interrupted_tool_ends_soon_and_leaves_nothing() {
    let rig = Rig::new();
    // A pipe that is never closed: the tool waits for more of the corpus.
    let mut child = Command::new(BINARY)
        .args(["vocab", "encode", "--corpus", "-", "--patch-vocabulary", "none", "--to", "npy", "--out"])
        .arg(rig.path("ids.npy"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Once it takes more than a pipe holds, it reads.
    stdin.write_all(&vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(rig.files().len(), 2);
    let interrupt = |child: &std::process::Child| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    };
    interrupt(&child);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert!(log.contains("SIGINT"), "{log}");
    assert_eq!(rig.files(), ["corpus.txt"]);
    drop(stdin);
}
