use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

fn view<'a>(dtype: FileDtype, shape: &[usize], bytes: &'a [u8]) -> TensorView<'a> {
    TensorView::new(dtype, shape.to_vec(), bytes).unwrap()
}

/// A file of one tensor per name, each of two F32 elements.
fn shard(names: &[&str]) -> Vec<u8> {
    let bytes = [0, 0, 128, 63, 0, 0, 0, 64];
    let tensors = names.iter().map(|name| (*name, view(FileDtype::F32, &[2], &bytes)));
    safetensors::serialize(tensors, None).unwrap()
}

fn index(dir: &Path, weight_map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = weight_map.iter().copied().collect();
    let json = serde_json::json!({ "metadata": { "total_size": 16 }, "weight_map": map });
    fs::write(dir.join(INDEX_FILE), json.to_string()).unwrap();
}

fn open(dir: &TempDir) -> Result<Checkpoint> {
    Checkpoint::open(&ModelFiles::open(dir.path()).unwrap())
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(WEIGHTS_FILE), bytes).unwrap();
    open(&dir)
}

/// A header of this text before `data_bytes` bytes of data.
fn with_header(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

#[test]
fn one_file_gives_its_tensors() {
    let checkpoint = open_bytes(&shard(&["wte.weight", "wpe.weight"])).unwrap();
    let tensor = checkpoint.tensor_with_shape("wte.weight", &[2]).unwrap();
    assert_eq!(tensor.to_f32(), [1.0, 2.0]);
    assert_eq!(checkpoint.num_bytes(), 16);
    assert!(checkpoint.contains("wpe.weight"));
    assert_eq!(checkpoint.prefix("transformer."), "");
}

#[test]
fn a_prefix_stands_where_names_have_one() {
    let checkpoint = open_bytes(&shard(&["transformer.wte.weight"])).unwrap();
    assert_eq!(checkpoint.prefix("transformer."), "transformer.");
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = TempDir::new().unwrap();
    index(dir.path(), &[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "1.safetensors")]);
    fs::write(dir.path().join("1.safetensors"), shard(&["a", "c"])).unwrap();
    fs::write(dir.path().join("2.safetensors"), shard(&["b"])).unwrap();
    let checkpoint = open(&dir).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(checkpoint.tensor(name).unwrap().to_f32(), [1.0, 2.0]);
    }
    assert_eq!(checkpoint.num_bytes(), 24);
}

#[test]
fn a_tensor_that_cannot_be_used_is_named() {
    let bytes = [0; 8];
    let tensors =
        [("mask", view(FileDtype::BOOL, &[8], &bytes)), ("norm", view(FileDtype::BF16, &[4], &bytes))];
    let checkpoint = open_bytes(&safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert!(checkpoint.contains("mask"));
    let error = checkpoint.tensor("mask").unwrap_err().to_string();
    assert!(error.contains("`mask`") && error.contains("BOOL"), "{error}");
    let error = checkpoint.tensor("lm_head.weight").unwrap_err().to_string();
    assert!(error.ends_with("tensor `lm_head.weight` is missing"), "{error}");
    let error = checkpoint.tensor_with_shape("norm", &[2, 2]).unwrap_err().to_string();
    assert!(error.contains("[4]") && error.contains("[2, 2]"), "{error}");
}

#[test]
fn what_the_index_gets_wrong_is_named() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("a", "../../x")], "`../../x` is not a plain file name"),
        (&[("a", "/etc/passwd")], "`/etc/passwd` is not a plain file name"),
        (&[], "names 0 shards"),
        (&[("a", "1.safetensors"), ("b", "2.safetensors")], "`a` is in an earlier shard too"),
    ];
    for (weight_map, expected) in cases {
        let dir = TempDir::new().unwrap();
        index(dir.path(), weight_map);
        fs::write(dir.path().join("1.safetensors"), shard(&["a"])).unwrap();
        fs::write(dir.path().join("2.safetensors"), shard(&["a", "b"])).unwrap();
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_conversions_leave_in_an_index_does_no_harm() {
    let dir = TempDir::new().unwrap();
    let stale = [
        ("a", "1.safetensors"),
        ("model.rotary_emb.inv_freq", "1.safetensors"),
        ("c", "2.safetensors"),
        ("gone", "3.safetensors"),
    ];
    let map: BTreeMap<_, _> = stale.into_iter().collect();
    let json = serde_json::json!({ "metadata": { "total_size": "unknown" }, "weight_map": map });
    fs::write(dir.path().join(INDEX_FILE), json.to_string()).unwrap();
    fs::write(dir.path().join("1.safetensors"), shard(&["a", "c"])).unwrap();
    fs::write(dir.path().join("2.safetensors"), shard(&["b"])).unwrap();
    let checkpoint = open(&dir).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(checkpoint.tensor(name).unwrap().to_f32(), [1.0, 2.0]);
    }
    assert!(!checkpoint.contains("gone"));
    let missing = |name| checkpoint.tensor(name).unwrap_err().to_string();
    assert!(missing("gone").ends_with("3.safetensors is missing"), "{}", missing("gone"));
    assert!(missing("model.rotary_emb.inv_freq").contains("tensor `model.rotary_emb.inv_freq` is missing"));
}

#[test]
fn a_model_without_weights_and_a_broken_index_are_named() {
    let dir = TempDir::new().unwrap();
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("model.safetensors (or model.safetensors.index.json) is missing"), "{error}");
    fs::write(dir.path().join(INDEX_FILE), "{\"weight_map\": 3}").unwrap();
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("model.safetensors.index.json is not valid"), "{error}");
}

#[test]
fn lying_headers_are_found() {
    let huge = u64::MAX / 8;
    let overflowing: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * huge, (i + 1) * huge);
            format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{huge}],\"data_offsets\":[{start},{end}]}}")
        })
        .collect();
    let tensor = |shape: &str, offsets: &str| {
        format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    let cases = [
        (vec![], "too few"),
        (vec![1, 2, 3], "too few"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        (1000_u64.to_le_bytes().to_vec(), "claims 1000 bytes"),
        (with_header("{", 0), "header is invalid"),
        (with_header("[]", 0), "header is invalid"),
        (with_header(&tensor("[2]", "[0,8]"), 7), "take 8 bytes and the file holds 7"),
        (with_header(&tensor("[2]", "[0,8]"), 9), "take 8 bytes and the file holds 9"),
        (with_header(&tensor("[3]", "[0,8]"), 8), "header is invalid"),
        (with_header(&tensor("[2]", "[8,0]"), 8), "header is invalid"),
        (with_header(&tensor("[2]", "[4,12]"), 12), "header is invalid"),
        (with_header(&tensor("[4294967296,4294967296,4]", "[0,8]"), 8), "header is invalid"),
        (with_header(&format!("{{{}}}", overflowing.join(",")), 8), "and the file holds 8"),
    ];
    for (file, expected) in cases {
        let error = open_bytes(&file).unwrap_err().to_string();
        assert!(error.contains("model.safetensors is corrupt") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = shard(&["a", "b"]);
    for length in 0..file.len() {
        let error = open_bytes(&file[..length]).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { file, .. } if file == WEIGHTS_FILE), "{length}: {error}");
    }
}

proptest::proptest! {
    /// Whatever the header says, opening refuses it or every tensor lies inside the file.
    #[test]
    fn any_header_is_refused_or_proved(
        offsets in proptest::collection::vec((0_u64..24, 0_u64..24), 0..4),
        dims in proptest::collection::vec(0_usize..4, 0..3),
        data_bytes in 0_usize..32,
        flipped in proptest::option::of((0_usize..200, 1_u8..)),
    ) {
        let tensors: Vec<String> = offsets
            .iter()
            .enumerate()
            .map(|(i, (start, end))| {
                format!("\"t{i}\":{{\"dtype\":\"F16\",\"shape\":{dims:?},\"data_offsets\":[{start},{end}]}}")
            })
            .collect();
        let mut file = with_header(&format!("{{{}}}", tensors.join(",")), data_bytes);
        if let Some((position, mask)) = flipped
            && let Some(byte) = file.get_mut(position)
        {
            *byte ^= mask;
        }
        if let Ok(header) = Header::parse(&file) {
            for (_, info) in header.metadata.tensors() {
                let (start, end) = info.data_offsets;
                let bytes = file.get(header.data_start + start..header.data_start + end);
                let num_elements: usize = info.shape.iter().product();
                proptest::prop_assert_eq!(bytes.map(|b| b.len() * 8), Some(num_elements * info.dtype.bitsize()));
            }
        }
    }
}
