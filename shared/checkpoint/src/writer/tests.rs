use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{Checkpoint, Dtype, ModelFiles};

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> NewTensor {
    NewTensor { name: name.to_owned(), dtype: dtype.into(), shape: shape.to_vec() }
}

/// Every byte of a tensor is its name's length.
fn fill(tensor: &NewTensor, sink: &mut TensorSink<'_>) -> Result<()> {
    let byte = tensor.name.len() as u8;
    (0..num_bytes(tensor).unwrap()).try_for_each(|_| sink.push(&[byte]))
}

fn three() -> Vec<NewTensor> {
    vec![
        tensor("a", Dtype::Bf16, &[3, 5]),
        tensor("be\"ta", Dtype::F32, &[2]),
        tensor("empty", Dtype::F16, &[0, 4]),
    ]
}

#[test]
fn what_is_written_is_read_from_one_file_and_from_shards() {
    for (max_shard_bytes, files) in [
        (u64::MAX, vec!["model.safetensors"]),
        (
            30,
            vec![
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
        (
            1,
            vec![
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let shards = Shards::plan(three(), max_shard_bytes).unwrap();
        shards.write(dir.path(), fill).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        // An empty tensor never begins a shard of its own.
        assert_eq!(names, files, "{max_shard_bytes}");
        let checkpoint = Checkpoint::open(&ModelFiles::open(dir.path()).unwrap()).unwrap();
        assert_eq!(checkpoint.tensor_with_shape("a", &[3, 5]).unwrap().bytes, [1; 30]);
        assert_eq!(checkpoint.tensor_with_shape("be\"ta", &[2]).unwrap().bytes, [5; 8]);
        assert_eq!(checkpoint.tensor_with_shape("empty", &[0, 4]).unwrap().dtype, Dtype::F16);
        assert_eq!(checkpoint.num_bytes() as u64, shards.num_bytes());
        for stored in checkpoint.stored() {
            assert_eq!(stored.bytes, vec![stored.name.len() as u8; stored.bytes.len()]);
            checkpoint.release(stored.name);
            assert_eq!(stored.bytes, vec![stored.name.len() as u8; stored.bytes.len()]);
        }
    }
}

#[test]
fn wide_elements_come_first_so_that_all_are_aligned() {
    let dir = TempDir::new().unwrap();
    Shards::plan(three(), u64::MAX).unwrap().write(dir.path(), fill).unwrap();
    let checkpoint = Checkpoint::open(&ModelFiles::open(dir.path()).unwrap()).unwrap();
    let names: Vec<_> = checkpoint.stored().iter().map(|stored| stored.name.to_owned()).collect();
    assert_eq!(names, ["be\"ta", "a", "empty"]);
    let first = checkpoint.stored()[0].bytes.as_ptr();
    assert!(first.cast::<u64>().is_aligned(), "the header is filled up");
}

#[test]
fn too_few_and_too_many_bytes_are_errors() {
    for (pushed, said) in [(7_usize, "more bytes"), (9, "fewer bytes")] {
        let dir = TempDir::new().unwrap();
        let shards = Shards::plan(vec![tensor("t", Dtype::F32, &[2])], u64::MAX).unwrap();
        let error = shards.write(dir.path(), |_, sink| sink.push(&vec![0; pushed])).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let twice = vec![tensor("t", Dtype::F32, &[2]), tensor("t", Dtype::F16, &[2])];
    let huge = vec![tensor("t", Dtype::F32, &[usize::MAX, 2])];
    for (tensors, said) in [(twice, "two of this name"), (huge, "no number of bytes")] {
        let error = Shards::plan(tensors, u64::MAX).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let many = (0..=MAX_SHARDS).map(|idx| tensor(&idx.to_string(), Dtype::F32, &[1])).collect();
    assert!(matches!(Shards::plan(many, 1), Err(Error::TooManyShards { .. })));
}

#[test]
fn a_file_that_is_there_is_not_overwritten() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(WEIGHTS_FILE), "precious").unwrap();
    let error = Shards::plan(three(), u64::MAX).unwrap().write(dir.path(), fill).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert_eq!(fs::read(dir.path().join(WEIGHTS_FILE)).unwrap(), b"precious");
}
