use std::fs;

use crate::{SMALL, bench, mixed_trace};

#[test]
fn what_is_wrong_is_named_and_nothing_is_left() {
    let (trace, folder) = (mixed_trace(), tempfile::tempdir().unwrap());
    let trace = trace.path().display();
    let bad = folder.path().join("bad.csv");
    fs::write(&bad, "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,2\n1,two,3\n").unwrap();
    let machine = folder.path().join("machine.json");
    fs::write(&machine, r#"{"machine": {"flops": 1}}"#).unwrap();
    let (bad, machine) = (bad.display(), machine.display());
    let out = folder.path().join("out.json");
    let out = out.display();
    for (words, message) in [
        (format!("simulate --trace {bad}"), "line 3: `two` is no number of tokens"),
        ("simulate".to_owned(), "--rate must be given"),
        ("simulate --rate 0".to_owned(), "`0` is not a number over 0"),
        (
            "simulate --rate 1 --policy fifo".to_owned(),
            "sarathi, vllm, orca, fastertransformer, simple-chunking",
        ),
        (format!("simulate --rate 1 --machine {machine}"), "unknown field `flops`"),
        (format!("simulate --trace {trace} --token-budget 4 {SMALL}"), "token_budget is 4"),
        (format!("simulate --trace {trace} --max-num-sequences 4 --page-bytes 1"), "--page-bytes 1"),
        (
            format!("simulate --trace {trace} --kv-cache-bytes 1000000 --max-model-len 9000"),
            "no memory for keys and values",
        ),
        (format!("simulate --trace {trace} --chunk-size-low 4"), "--chunk-size-high"),
        (format!("simulate --trace {trace} --json {trace}"), "it would be overwritten"),
        (format!("simulate --trace {trace} --json {out} --html {out}"), "it would be overwritten"),
        ("capacity".to_owned(), "--slo"),
        ("capacity --slo itl:p99".to_owned(), "three parts"),
        ("capacity --slo itl:p99:1s --rate 2".to_owned(), "--rate: it is what is searched"),
        ("capacity --slo itl:p99:1s --arrivals static".to_owned(), "--arrivals static: all come at once"),
        (
            "capacity --slo scheduling-delay:p99:1s --url http://127.0.0.1:1".to_owned(),
            "a server does not tell",
        ),
        (
            "capacity --slo itl:p99:1s --url http://127.0.0.1:1 --policy vllm".to_owned(),
            "cannot be used with",
        ),
        ("--runs 1 simulate --rate 1".to_owned(), "cannot be used with"),
    ] {
        let finished = bench(&words);
        assert_eq!(finished.status.code(), Some(2), "{words}: {}", finished.stderr);
        assert!(finished.stderr.contains(message), "{words}: {}", finished.stderr);
        assert!(finished.stdout.is_empty(), "{words}: {}", finished.stdout);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_server_that_is_not_there_is_no_bad_input() {
    for words in ["--url http://127.0.0.1:1", "replay --rate 1 --url http://127.0.0.1:1"] {
        let finished = bench(words);
        assert_eq!(finished.status.code(), Some(1), "{words}: {}", finished.stderr);
        assert!(finished.stderr.contains("no answer from http://127.0.0.1:1"), "{}", finished.stderr);
    }
}
