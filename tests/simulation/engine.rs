use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{bench, bench_well, json};

fn figure(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn the_demo_model_is_measured_on_the_cpu() {
    let report = json(
        "engine --device cpu --case 1x16x8 6x20x4 2x30x1 --runs 3 --max-num-sequences 4 --token-budget 64 \
         --kv-cache-bytes 33554432",
    );
    assert_eq!((&report["command"], &report["model"]["name"]), (&"engine".into(), &"demo-llama-tldr".into()));
    assert_eq!(
        (&report["model"]["architecture"], &report["model"]["dtype"]),
        (&"llama".into(), &"bfloat16".into())
    );
    assert!(
        report["device"]["name"].as_str().unwrap().starts_with("cpu (")
            && report["device"]["driver"].is_null()
    );
    assert!(report["date"].as_str().unwrap().ends_with('Z') && figure(&report, "/ready_s") > 0.0);
    let settings = &report["settings"];
    let numbers = ["max_model_len", "max_num_sequences", "token_budget", "kv_cache_bytes"];
    let numbers = numbers.map(|name| settings[name].as_u64());
    assert_eq!(numbers, [1024, 4, 64, 33_554_432].map(Some));
    assert_eq!(settings["prefix_cache"], false);

    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for (case, (name, num_requests, num_prompt, num_output)) in
        cases.iter().zip([("1x16x8", 1, 16, 8), ("6x20x4", 6, 120, 24), ("2x30x1", 2, 60, 2)])
    {
        assert_eq!((&case["case"], &case["num_requests"]), (&name.into(), &num_requests.into()));
        let tokens = (&case["num_prompt_tokens"], &case["num_output_tokens"]);
        assert_eq!(tokens, (&num_prompt.into(), &num_output.into()));
        let runs = case["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 3);
        for run in runs {
            let (num_requests, num_output) = (f64::from(num_requests), f64::from(num_output));
            assert_eq!(figure(run, "/num_requests"), num_requests);
            assert_eq!((&run["num_failed"], &run["cached_share"]), (&0.into(), &Value::from(0.0)), "{run}");
            let tokens = figure(run, "/output_tokens_per_s") * figure(run, "/duration_s");
            assert!((tokens - num_output).abs() < 1e-6, "{run}");
            assert_eq!(figure(run, "/time_to_first_token/num"), num_requests);
            assert!(figure(run, "/time_to_first_token/max_s") <= figure(run, "/duration_s") * 1.000_001);
            match run["inter_token_latency"].is_null() {
                true => assert_eq!(name, "2x30x1"),
                false => assert_eq!(figure(run, "/inter_token_latency/num"), num_output - num_requests),
            }
        }
        let (least, most) = (figure(case, "/duration_s/min"), figure(case, "/duration_s/max"));
        let median_run = case["median_run"].as_u64().unwrap();
        let median = figure(case, "/duration_s/median");
        assert!(least <= median && median <= most);
        assert_eq!(median, figure(case, &format!("/runs/{median_run}/duration_s")));
    }
}

#[test]
fn the_table_has_a_row_for_each_case() {
    let table = bench_well(&format!(
        "engine --device cpu --case 5x3x2 1x20x9 --runs 1 --temperature 0.8 --seed 7 --max-num-sequences 4 --model {}",
        fused_testkit::model_dir("demo-gpt2").display()
    ));
    assert!(table.starts_with("demo-gpt2 (gpt2 "), "{table}");
    assert!(table.contains("4 sequences run at once (--max-num-sequences)"), "{table}");
    for name in ["5x3x2 ", "1x20x9 "] {
        let row = table.lines().find(|line| line.starts_with(name));
        assert!(row.is_some_and(|row| row.split_whitespace().count() >= 11), "no {name}in {table}");
    }
}

#[test]
fn what_cannot_be_measured_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "max_model_len = 100\n").unwrap();
    let (file, folder) = (file.display(), folder.path().display());
    for (words, message) in [
        ("engine --case 1x1000x25".to_owned(), "--case 1x1000x25: prompt and output have 1025 tokens"),
        (
            format!("engine --config {file} --case 1x90x11"),
            "--case 1x90x11: prompt and output have 101 tokens",
        ),
        ("engine --mixed 3".to_owned(), "--mixed 3: prompt and output have"),
        ("engine --mixed 5000".to_owned(), "`5000` is not a number from 1 to 4096"),
        ("engine --case 1x2".to_owned(), "`1x2` is not requests x prompt x output"),
        ("engine --temperature 3".to_owned(), "`3` is not a temperature from 0 to 2"),
        ("engine --device tpu".to_owned(), "setting device: `tpu`"),
        (
            "engine --device cpu --load-format dummy --patch-vocabulary none".to_owned(),
            "load_format is dummy",
        ),
        ("engine --max-model-len 5000".to_owned(), "max_model_len is 5000"),
        ("engine --model no/such/model".to_owned(), "no/such/model"),
        (format!("engine --json {folder}"), "is no plain file"),
        (format!("engine --config {file} --json {file}"), "it would be overwritten"),
        ("engine --port 1".to_owned(), "--port"),
    ] {
        let finished = bench(&words);
        assert_eq!(finished.status.code(), Some(2), "{words}: {}", finished.stderr);
        assert!(finished.stderr.contains(message), "{words}: {}", finished.stderr);
        assert!(finished.stdout.is_empty(), "{words}: {}", finished.stdout);
    }
}

#[test]
fn it_ends_at_once_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fused"))
        .args(["bench", "engine", "--device", "cpu", "--case", "64x500x500", "--runs", "1000", "--json"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The heading is printed when the engine is ready, and the first case takes seconds.
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next();
    assert!(first.unwrap().unwrap().starts_with("demo-llama-tldr ("));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
