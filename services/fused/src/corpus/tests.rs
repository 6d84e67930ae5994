use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Three row groups of a text column, an optional text column that has nulls, and a number.
fn parquet(path: &Path, documents: &[&str]) {
    let schema = "message rows { required binary text (UTF8); optional binary note (UTF8); required int64 number; \
                  repeated binary tags (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    for documents in documents.chunks(documents.len().div_ceil(3).max(1)) {
        let num = documents.len();
        let mut group = writer.next_row_group().unwrap();
        let texts: Vec<_> = documents.iter().map(|text| ByteArray::from(*text)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = (0..num as i16).map(|row| i16::from(row != 1)).collect();
        let notes = vec![ByteArray::from("note"); levels.iter().filter(|level| **level == 1).count()];
        column.typed::<ByteArrayType>().write_batch(&notes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&vec![7; num], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels = vec![0; num];
        column.typed::<ByteArrayType>().write_batch(&[], Some(&levels), Some(&levels)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A folder with one file in it.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(path: &Path, field: Option<&str>) -> anyhow::Result<Vec<String>> {
    Corpus::open(&[path.to_owned()], field)?.into_documents().collect()
}

/// The error's whole message; it must name the file.
fn refused(name: &str, bytes: &[u8], field: Option<&str>) -> String {
    let (_folder, path) = file(name, bytes);
    let message = format!("{:#}", read(&path, field).unwrap_err());
    assert!(message.contains(name), "{message}");
    message
}

const TEXT: &str =
    "one\n<|endoftext|>\n \n<|endoftext|>\ntwo <|endoftext|>\n\u{e9}\r\n<|endoftext|>\r\nthree";
const DOCUMENTS: [&str; 3] = ["one\n", "two <|endoftext|>\n\u{e9}\r\n", "three"];
const JSON_LINES: &str =
    "{\"id\": 1, \"text\": \"one\\n\", \"more\": {\"text\": 3}}\n\n{\"text\": \"two\", \"body\": \"zwei\"}";

#[test]
fn plain_text_is_divided_at_separator_lines() {
    for (name, bytes) in [
        ("a.txt", TEXT.as_bytes().to_vec()),
        ("no-known-name", TEXT.as_bytes().to_vec()),
        ("mark.txt", [UTF8_MARK, TEXT.as_bytes()].concat()),
        ("a.txt.gz", gz(TEXT.as_bytes())),
        ("two-members.gz", [gz(&TEXT.as_bytes()[..7]), gz(&TEXT.as_bytes()[7..])].concat()),
        ("a.txt.zst", zst(TEXT.as_bytes())),
        // What it is counts, not what it is called.
        ("lying.txt", gz(&[UTF8_MARK, TEXT.as_bytes()].concat())),
        ("lying.gz", TEXT.as_bytes().to_vec()),
        ("lying.zst", gz(TEXT.as_bytes())),
    ] {
        let (_folder, path) = file(name, &bytes);
        assert_eq!(read(&path, None).unwrap(), DOCUMENTS, "{name}");
    }
}

const UTF8_MARK: &[u8] = "\u{feff}".as_bytes();

#[test]
fn json_lines_give_the_field_asked_for() {
    for (name, bytes) in
        [("a.jsonl", JSON_LINES.as_bytes().to_vec()), ("a.ndjson.zst", zst(JSON_LINES.as_bytes()))]
    {
        let (_folder, path) = file(name, &bytes);
        assert_eq!(read(&path, None).unwrap(), ["one\n", "two"], "{name}");
    }
    // Without a known name, --field says that it is JSON.
    let (_folder, path) = file("rows", JSON_LINES.as_bytes());
    assert_eq!(read(&path, Some("text")).unwrap(), ["one\n", "two"]);
    let error = refused("a.jsonl", JSON_LINES.as_bytes(), Some("body"));
    assert!(error.contains("line 1: no field `body`") && error.contains("`id`, `text`, `more`"), "{error}");
}

#[test]
fn an_array_gives_its_records_whatever_it_is_called() {
    let array = "\u{feff} [\n {\"id\": 1, \"text\": \"one\\n\"},\n{\"text\":\"two\",\"more\":[{}]} ]\n";
    let packed = gz(array.as_bytes());
    for (name, bytes) in [
        ("a.json", array.as_bytes()),
        ("a.json.gz", &packed),
        ("a.jsonl", array.as_bytes()),
        ("a.txt", array.as_bytes()),
        ("rows", array.as_bytes()),
    ] {
        let (_folder, path) = file(name, bytes);
        assert_eq!(read(&path, None).unwrap(), ["one\n", "two"], "{name}");
    }
    let (_folder, path) = file("a.json", b"[\"one\", {\"text\": \"two\"}, \"three\"]");
    assert_eq!(read(&path, None).unwrap(), ["one", "two", "three"]);
    for empty in ["[]", " [ \n ] "] {
        let (_folder, path) = file("a.json", empty.as_bytes());
        assert!(read(&path, None).unwrap().is_empty());
    }
    let (_folder, path) = file("a.json", JSON_LINES.as_bytes());
    assert_eq!(read(&path, None).unwrap(), ["one\n", "two"], "one record a line");
    for text in ["[a link](b)\n[{\"text\": 1}]", "<|endoftext|>\n[{\"text\": 1}]", "[\"x\"]"] {
        let (_folder, path) = file("a.md", text.as_bytes());
        assert_eq!(read(&path, None).unwrap().concat(), text.trim_start_matches("<|endoftext|>\n"));
    }
}

#[test]
fn parquet_gives_the_column_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..1000).map(|idx| format!("document {idx}\n")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for name in ["rows.parquet", "lying.txt"] {
        let path = folder.path().join(name);
        parquet(&path, &texts);
        assert_eq!(read(&path, None).unwrap(), texts);
        let refused = |field| format!("{:#}", read(&path, Some(field)).unwrap_err());
        let missing = refused("body");
        assert!(
            missing.contains("no column `body`") && missing.contains("`text`, `note`, `number`"),
            "{missing}"
        );
        assert!(refused("number").contains("column `number` is INT64, not text"));
        assert!(refused("note").contains("row 2: column `note` is null"));
        assert!(refused("tags").contains("has lists"));
    }
}

#[test]
fn errors_name_the_file_and_the_place() {
    for (name, bytes, field, parts) in [
        ("a.txt", &b"caf\xc3\xa9\ncaf\xe9 \n"[..], None, &["not UTF-8 at byte 9"][..]),
        ("later.txt", b"x\n<|endoftext|>\n\xff", None, &["not UTF-8 at byte 16"]),
        ("mark.txt", b"\xef\xbb\xbf\xff", None, &["not UTF-8 at byte 3"]),
        ("packed.gz", &gz(b"12345\xff"), None, &["not UTF-8 at byte 5"]),
        ("utf16le.txt", b"\xff\xfea\0", None, &["is UTF-16, convert it"]),
        ("utf16be.txt", b"\xfe\xff\0a", None, &["is UTF-16, convert it"]),
        ("cut.gz", &gz(TEXT.as_bytes())[..20], None, &["cannot be read"]),
        ("cut.zst", &zst(TEXT.as_bytes())[..20], None, &["cannot be read"]),
        ("a.jsonl", b"{\"text\": \"x\"}\n{\"text\": \"y\"", None, &["line 2, column 12", "EOF"]),
        ("number.jsonl", b"\n{\"text\": 1}", None, &["line 2", "integer `1`", "a string in field `text`"]),
        ("null.jsonl", b"{\"text\": null}", None, &["line 1", "null", "a string in field `text`"]),
        ("list.jsonl", b"[1]", None, &["record 1", "byte 1", "a JSON object or a string"]),
        (
            "pretty.json",
            b"{\n \"text\": \"x\"\n}",
            None,
            &["line 1", "a record stands on one line, or in an array"],
        ),
        ("cut.json", b"[{\"text\": \"x\"},", None, &["record 2", "EOF"]),
        ("open.json", b"[{\"text\": \"x\"}", None, &["ends inside its array, behind record 1"]),
        ("comma.json", b"[{\"text\": \"x\"} {", None, &["byte 14: expected `,` or `]` behind record 1"]),
        ("more.json", b"[\"x\"]\n[", None, &["has more behind its array, from byte 6 on"]),
        ("field.json", b"[{\"text\": \"x\"}, {\"body\": 1}]", None, &["record 2: no field `text`", "`body`"]),
        ("text.txt", b"[ {\"name\": 1}, and so on", None, &["record 1: no field `text`"]),
        ("two.jsonl", b"{\"text\": \"x\"} {}", None, &["line 1, column 15", "trailing"]),
        ("latin.jsonl", b"{\"text\": \"\xe9\"}", None, &["not UTF-8 at byte 10"]),
        ("field.jsonl", b"{\"body\": \"x\"}", None, &["line 1: no field `text`", "`body`"]),
        ("deep.jsonl", "[".repeat(100_000).as_bytes(), None, &["record 1"]),
        ("a.parquet", b"PAR1 and then nothing", None, &["no Parquet file"]),
        ("b.parquet", b"no magic", None, &["no Parquet file"]),
    ] {
        let error = refused(name, bytes, field);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let error = format!("{:#}", Corpus::open(&["no/such/file".into()], None).err().unwrap());
    assert!(error.contains("no/such/file"), "{error}");
}

#[test]
fn a_document_that_is_too_long_is_refused_where_it_begins() {
    // Compressed, a small file: it is refused after the limit, whatever follows.
    let start = b"short\n<|endoftext|>\n".to_vec();
    let long = std::io::repeat(b'x').take(MAX_DOCUMENT_BYTES as u64 + 1);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut start.chain(long), &mut encoder).unwrap();
    let error = refused("bomb.gz", &encoder.finish().unwrap(), None);
    let expected = format!("begins at byte 20 is over {MAX_DOCUMENT_BYTES} bytes");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("b/deeper")).unwrap();
    fs::write(path("c.txt"), "c").unwrap();
    fs::write(path("a.md"), "a").unwrap();
    fs::write(path("b/deeper/2.jsonl.gz"), gz(b"{\"text\": \"b2\"}")).unwrap();
    fs::write(path("b/1.txt"), "b1").unwrap();
    fs::write(path("picture.png"), "no").unwrap();
    fs::write(path(".hidden.txt"), "no").unwrap();
    std::os::unix::fs::symlink(folder.path(), path("b/circle")).unwrap();
    let corpus = Corpus::open(&[folder.path().to_owned(), path("a.md")], None).unwrap();
    let skipped = corpus.skipped().unwrap();
    assert!(["picture.png", ".hidden.txt", "circle"].iter().all(|name| skipped.contains(name)), "{skipped}");
    let bytes_read = corpus.bytes_read();
    let documents: Vec<_> = corpus.into_documents().collect::<anyhow::Result<_>>().unwrap();
    assert_eq!(documents, ["a", "b1", "b2", "c", "a"]);
    assert_eq!(Some(bytes_read.so_far()), bytes_read.total);

    let error = format!("{:#}", Corpus::open(&[path("b/nothing")], None).err().unwrap());
    assert!(error.contains("b/nothing"), "{error}");
    fs::create_dir(path("empty")).unwrap();
    let error = format!("{:#}", Corpus::open(&[path("empty")], None).err().unwrap());
    assert!(error.contains("no file with text"), "{error}");
}

#[test]
fn a_pipe_is_read_as_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe.txt");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(path).unwrap();
            gz(TEXT.as_bytes()).chunks(3).for_each(|chunk| pipe.write_all(chunk).unwrap());
        })
    };
    let corpus = Corpus::open(&[path], None).unwrap();
    assert_eq!(corpus.bytes_read().total, None);
    let documents: Vec<_> = corpus.into_documents().collect::<anyhow::Result<_>>().unwrap();
    assert_eq!(documents, DOCUMENTS);
    writer.join().unwrap();
}

#[test]
fn reading_ends_at_the_first_error() {
    let (_folder, good) = file("good.txt", b"good");
    let (_other, bad) = file("bad.txt", b"\xff");
    let corpus = Corpus::open(&[good.clone(), bad, good], None).unwrap();
    let documents: Vec<_> = corpus.into_documents().collect();
    assert_eq!(documents.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
}

/// Gives so many bytes at a time, again and again.
struct Pieces {
    bytes: Vec<u8>,
    lens: Vec<usize>,
    next: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.lens[self.next % self.lens.len()].min(buffer.len()).min(self.bytes.len());
        self.next += 1;
        buffer[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes.drain(..len);
        Ok(len)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn documents_read_are_documents_written(
        documents in prop::collection::vec("[a-z<|>\\\\\"\u{e9}\u{1f600} \n]{0,40}x\n", 0..12),
        lens in prop::collection::vec(1_usize..9, 1..9),
    ) {
        let pieces = |text: String| Pieces { bytes: text.into_bytes(), lens: lens.clone(), next: 0 };
        let text = documents.join("<|endoftext|>\n");
        let read: Vec<_> =
            text::Documents::new(bytes::lines(pieces(text)).unwrap()).collect::<anyhow::Result<_>>().unwrap();
        prop_assert_eq!(&read, &documents);

        let line = |document: &String| serde_json::json!({"n": 1, "text": document}).to_string() + "\n";
        let json_lines = bytes::lines(pieces(documents.iter().map(line).collect())).unwrap();
        let read: Vec<_> = jsonl::Documents::new(json_lines, "text").collect::<anyhow::Result<_>>().unwrap();
        prop_assert_eq!(&read, &documents);

        let array = serde_json::to_string_pretty(&documents).unwrap();
        let array = bytes::lines(pieces(array)).unwrap();
        let read: Vec<_> = array::Documents::new(array, "text").collect::<anyhow::Result<_>>().unwrap();
        prop_assert_eq!(&read, &documents);
    }

    #[test]
    fn a_damaged_table_is_read_or_refused(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let (_folder, path) = file("table.parquet", b"");
            parquet(&path, &["one", "two", "three", "four"]);
            fs::read(path).unwrap()
        });
        let mut bytes = TABLE.clone();
        for (place, byte) in damage {
            let idx = place.index(bytes.len());
            bytes[idx] = byte;
        }
        let (_folder, path) = file("table.parquet", &bytes);
        let _ = read(&path, None);
        let _ = read(&path, Some("note"));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_usize..4) {
        let name = ["x.txt", "x.jsonl", "x.parquet", "x.json"][kind];
        let magic = [&b""[..], b"[{\"text\":", &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd], b"PAR1"];
        for magic in magic {
            let (_folder, path) = file(name, &[magic, &bytes].concat());
            // That it ends, and without a panic, is all that is asked.
            let _ = read(&path, None);
        }
    }
}
