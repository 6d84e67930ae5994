//! The file format, version 2. JSON, one object:
//!
//! | key | value |
//! |---|---|
//! | `format` | `"fused-patch-vocabulary"` |
//! | `version` | `2` |
//! | `base_tokenizer_sha256` | hash of the base tokenizer's canonical form (see [`crate::fingerprint()`]) |
//! | `base_vocab_size` | largest base id and one |
//! | `vocab_size` | ids of the adapted model |
//! | `mode` | `"replace"` or `"extend"` |
//! | `segmentation` | `"greedy"` or `"optimal"`, see [`Segmentation`] |
//! | `kept` | runs `[base id, model id, count]` of kept base tokens, ascending by base id |
//! | `removed` | `{"id": base id, "parts": [base ids], "text": …}`, ascending by id |
//! | `n_tokens` | `{"id": model id, "base": [base ids], "text": …}`, in rank order; one with a removed or special token never matches |
//! | `fingerprint` | SHA-256 over base tokenizer hash, segmentation, kept, removed and n-tokens; texts are left out of it |

use serde::Deserialize;
use serde_json::Value;

use super::{Mode, NToken, PatchContent, PatchVocabulary, Removed, Segmentation};
use crate::base::MAX_VOCAB_SIZE;
use crate::{Error, Fingerprint, Result, TokenId};

const FORMAT: &str = "fused-patch-vocabulary";
const VERSION: u32 = 2;
const FILE: &str = "patch_vocabulary.json";
/// The largest file that is parsed: a quarter of a million n-tokens fit.
const MAX_BYTES: usize = 64 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    base_tokenizer_sha256: Fingerprint,
    base_vocab_size: u32,
    vocab_size: u32,
    mode: Mode,
    segmentation: Segmentation,
    kept: Vec<Run>,
    removed: Vec<RemovedEntry>,
    n_tokens: Vec<NTokenEntry>,
    fingerprint: Fingerprint,
}

/// First base id, first model id, count.
#[derive(Deserialize)]
struct Run(u32, u32, u32);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovedEntry {
    id: TokenId,
    parts: Vec<TokenId>,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NTokenEntry {
    id: TokenId,
    base: Vec<TokenId>,
    text: String,
}

impl PatchVocabulary {
    /// Reads a `patch_vocabulary.json`.
    ///
    /// # Errors
    /// It is too large, not JSON, has unknown or missing keys, or breaks a rule: then the field is named.
    pub fn parse(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_BYTES {
            return Err(Error::TooLarge { file: FILE, bytes: json.len(), max_bytes: MAX_BYTES });
        }
        let file: File = serde_json::from_slice(json).map_err(|source| Error::Json { file: FILE, source })?;
        expect("format", file.format.as_str(), FORMAT)?;
        expect("version", &file.version, &VERSION)?;
        let model_ids = model_ids(&file.kept, file.base_vocab_size, &file.removed)?;
        let removed = file.removed.into_iter().map(|e| Removed { id: e.id, parts: e.parts, text: e.text });
        let n_tokens = file.n_tokens.into_iter().map(|e| NToken { id: e.id, base: e.base, text: e.text });
        let patch = Self::new(PatchContent {
            base_tokenizer: file.base_tokenizer_sha256,
            mode: file.mode,
            segmentation: file.segmentation,
            model_ids,
            removed: removed.collect(),
            n_tokens: n_tokens.collect(),
        })?;
        expect("vocab_size", &(file.vocab_size as usize), &patch.vocab_size())?;
        expect("fingerprint", &file.fingerprint, &patch.fingerprint())?;
        Ok(patch)
    }

    /// Writes a `patch_vocabulary.json`, one entry a line, so that two versions can be compared by eye.
    #[must_use]
    pub fn to_json(&self) -> String {
        let content = &self.content;
        let kept = runs(&content.model_ids);
        let kept = kept.iter().map(|run| format!("[{}, {}, {}]", run.0, run.1, run.2));
        let entry = |id: TokenId, key, ids: &[TokenId], text: &str| {
            format!(r#"{{"id": {id}, "{key}": {}, "text": {}}}"#, numbers(ids), Value::from(text))
        };
        let removed = content.removed.iter().map(|r| entry(r.id, "parts", &r.parts, &r.text));
        let n_tokens = content.n_tokens.iter().map(|n| entry(n.id, "base", &n.base, &n.text));
        let fields = [
            ("format", Value::from(FORMAT).to_string()),
            ("version", VERSION.to_string()),
            ("base_tokenizer_sha256", format!("\"{}\"", content.base_tokenizer)),
            ("base_vocab_size", self.base_vocab_size().to_string()),
            ("vocab_size", self.vocab_size().to_string()),
            ("mode", Value::from(content.mode.name()).to_string()),
            ("segmentation", Value::from(content.segmentation.name()).to_string()),
            ("kept", lines(kept)),
            ("removed", lines(removed)),
            ("n_tokens", lines(n_tokens)),
            ("fingerprint", format!("\"{}\"", self.fingerprint)),
        ];
        let fields = fields.map(|(name, value)| format!("  \"{name}\": {value}"));
        format!("{{\n{}\n}}\n", fields.join(",\n"))
    }
}

fn numbers(ids: &[TokenId]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| id.to_string()).collect();
    format!("[{}]", ids.join(", "))
}

fn lines(entries: impl Iterator<Item = String>) -> String {
    let entries: Vec<_> = entries.map(|entry| format!("\n    {entry}")).collect();
    if entries.is_empty() { "[]".to_owned() } else { format!("[{}\n  ]", entries.join(",")) }
}

fn expect<T: PartialEq + std::fmt::Debug + ?Sized>(field: &str, found: &T, expected: &T) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::field(field, format!("expected {expected:?}, found {found:?}")))
    }
}

/// The runs spread out. A base id in no run must be a removed one, which bounds the memory by what the file holds.
fn model_ids(kept: &[Run], base_vocab_size: u32, removed: &[RemovedEntry]) -> Result<Vec<Option<TokenId>>> {
    let num_kept: u64 = kept.iter().map(|run| u64::from(run.2)).sum();
    if num_kept + removed.len() as u64 != u64::from(base_vocab_size)
        || base_vocab_size as usize > MAX_VOCAB_SIZE
    {
        let problem =
            format!("{base_vocab_size} is not {num_kept} kept and {} removed tokens", removed.len());
        return Err(Error::field("base_vocab_size", problem));
    }
    let mut model_ids = Vec::with_capacity(base_vocab_size as usize);
    for (idx, &Run(base, model, count)) in kept.iter().enumerate() {
        let (Some(base_end), Some(_)) = (base.checked_add(count), model.checked_add(count)) else {
            return Err(Error::field(format!("kept[{idx}]"), "the run's ids overflow"));
        };
        if (base as usize) < model_ids.len() || base_end > base_vocab_size || count == 0 {
            let problem = "runs must ascend, not overlap, not be empty and stay under base_vocab_size";
            return Err(Error::field(format!("kept[{idx}]"), problem));
        }
        model_ids.resize(base as usize, None);
        model_ids.extend((0..count).map(|i| Some(TokenId(model + i))));
    }
    model_ids.resize(base_vocab_size as usize, None);
    Ok(model_ids)
}

fn runs(model_ids: &[Option<TokenId>]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (base, id) in (0..).zip(model_ids) {
        let Some(TokenId(model)) = *id else { continue };
        match runs.last_mut() {
            Some(run) if run.0 + run.2 == base && run.1 + run.2 == model => run.2 += 1,
            _ => runs.push(Run(base, model, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Row;

    fn content() -> PatchContent {
        let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
        PatchContent {
            base_tokenizer: crate::fingerprint(b"{}", None).unwrap(),
            mode: Mode::Replace,
            segmentation: Segmentation::Greedy,
            model_ids: [Some(0), None, Some(2), Some(4), None].map(|id| id.map(TokenId)).to_vec(),
            removed: vec![
                Removed { id: TokenId(1), parts: ids(&[0, 2]), text: "ac".into() },
                Removed { id: TokenId(4), parts: ids(&[0, 3]), text: "ad".into() },
            ],
            n_tokens: vec![
                NToken { id: TokenId(1), base: ids(&[2, 2, 3]), text: "ccd".into() },
                NToken { id: TokenId(3), base: ids(&[0, 0]), text: "aa".into() },
            ],
        }
    }

    fn value() -> Value {
        serde_json::from_str(&PatchVocabulary::new(content()).unwrap().to_json()).unwrap()
    }

    #[test]
    fn a_written_file_reads_back_equal() {
        let patch = PatchVocabulary::new(content()).unwrap();
        let read = PatchVocabulary::parse(patch.to_json().as_bytes()).unwrap();
        assert_eq!(read, patch);
        assert_eq!(read.model_id(TokenId(3)), Some(TokenId(4)));
        assert_eq!(read.model_id(TokenId(1)), None);
        assert_eq!(read.model_id(TokenId(9)), None);
    }

    #[test]
    fn rows_stand_in_the_order_of_model_ids() {
        let patch = PatchVocabulary::new(content()).unwrap();
        let rows: Vec<_> = patch.rows().collect();
        let [first, second] = [&content().n_tokens[0].base, &content().n_tokens[1].base].map(Clone::clone);
        assert_eq!(
            rows,
            [
                Row::Base(TokenId(0)),
                Row::NToken(&first),
                Row::Base(TokenId(2)),
                Row::NToken(&second),
                Row::Base(TokenId(3)),
            ]
        );
    }

    /// Every rule that a file can break, with the field that the message must name.
    #[test]
    fn a_broken_rule_is_refused_by_the_fields_name() {
        let cases: &[(&str, Value, &str)] = &[
            ("/format", json!("other"), "format"),
            ("/version", json!(1), "version"),
            ("/segmentation", json!("optimal"), "fingerprint"),
            ("/base_vocab_size", json!(6), "base_vocab_size"),
            ("/base_vocab_size", json!(4_000_000_000_u32), "base_vocab_size"),
            ("/vocab_size", json!(6), "vocab_size"),
            ("/mode", json!("extend"), "mode"),
            ("/kept/0", json!([0, 0, 0]), "base_vocab_size"),
            ("/kept/1", json!([0, 2, 1]), "kept[1]"),
            ("/kept/1", json!([2, 0, 1]), "kept"),
            ("/kept/1", json!([2, 4_294_967_295_u32, 1]), "kept[1]"),
            ("/removed/0/id", json!(4), "removed[1].id"),
            ("/removed/1/id", json!(9), "removed[1].id"),
            ("/removed/1/id", json!(3), "removed[1].id"),
            ("/removed/0/parts", json!([0]), "removed[0].parts"),
            ("/removed/0/parts", json!([0, 4]), "removed[0].parts"),
            ("/n_tokens/0/id", json!(0), "n_tokens[0].id"),
            ("/n_tokens/0/id", json!(5), "n_tokens[0].id"),
            ("/n_tokens/0/base", json!([0]), "n_tokens[0].base"),
            ("/n_tokens/0/base", json!([0, 77]), "n_tokens[0].base"),
            ("/n_tokens/1/base", json!([2, 2, 3]), "n_tokens[1].base"),
            ("/n_tokens/1/base", json!(vec![0; 65]), "n_tokens[1].base"),
            ("/n_tokens/1/base", json!([0, 2]), "fingerprint"),
            ("/fingerprint", json!("0".repeat(64)), "fingerprint"),
        ];
        for (pointer, broken, named) in cases {
            let mut file = value();
            *file.pointer_mut(pointer).unwrap() = broken.clone();
            match PatchVocabulary::parse(file.to_string().as_bytes()) {
                Err(Error::Field { field, .. }) => assert_eq!(field, *named, "{pointer} = {broken}"),
                other => panic!("{pointer} = {broken}: {other:?}"),
            }
        }
    }

    #[test]
    fn unknown_missing_and_repeated_keys_are_refused() {
        let parse = |text: &str| PatchVocabulary::parse(text.as_bytes());
        let mut unknown = value();
        unknown["vocabsize"] = json!(5);
        assert!(matches!(parse(&unknown.to_string()), Err(Error::Json { .. })));
        let mut missing = value();
        missing.as_object_mut().unwrap().remove("mode");
        assert!(matches!(parse(&missing.to_string()), Err(Error::Json { .. })));
        let repeated = value().to_string().replacen('{', r#"{"version": 1, "#, 1);
        assert!(matches!(parse(&repeated), Err(Error::Json { .. })));
        assert!(matches!(parse("[]"), Err(Error::Json { .. })));
    }

    #[test]
    fn a_huge_file_is_refused_unread() {
        let json = vec![b' '; MAX_BYTES + 1];
        assert!(matches!(PatchVocabulary::parse(&json), Err(Error::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(cut in 0_usize..2000, byte: u8) {
            let mut json = value().to_string().into_bytes();
            let cut = cut % json.len();
            json[cut] = byte;
            let _ = PatchVocabulary::parse(&json);
            json.truncate(cut);
            prop_assert!(PatchVocabulary::parse(&json).is_err());
        }
    }
}
