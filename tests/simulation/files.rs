use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::{SMALL, bench_well, json, mixed_trace};

/// Walks the tags: every one that opens is closed in order.
fn assert_balanced(html: &str) -> BTreeMap<&str, usize> {
    let (mut open, mut counts) = (Vec::new(), BTreeMap::new());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let tag = &rest[at + 1..];
        let (tag, after) = tag.split_once('>').unwrap();
        rest = after;
        assert_eq!(tag.matches('"').count() % 2, 0, "an open quote in <{tag}>");
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another tag");
            continue;
        }
        *counts.entry(name).or_insert(0) += 1;
        if !(tag.starts_with('!') || tag.ends_with('/') || name == "meta") {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
    counts
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let (trace, folder) = (mixed_trace(), tempfile::tempdir().unwrap());
    let (json, html) = (folder.path().join("report.json"), folder.path().join("report.html"));
    let table = bench_well(&format!(
        "simulate --trace {} --policy sarathi --policy vllm --json {} --html {} {SMALL}",
        trace.path().display(),
        json.display(),
        html.display()
    ));
    assert!(table.contains("24 / 0") && table.contains("between tokens (ITL, TBT)"), "{table}");
    let page = fs::read_to_string(&html).unwrap();
    let counts = assert_balanced(&page);
    // Four distributions, and four plots over time for each policy.
    assert_eq!(counts["svg"], 12);
    assert!(!page.contains("NaN") && !page.contains("://") && !counts.contains_key("script"));
    for line in table.lines().filter(|line| line.contains(" / ") && !line.contains("p50")) {
        let last = line.rsplit("  ").next().unwrap().trim();
        assert!(page.contains(&last.replace('/', "&#x2f;")) || page.contains(last), "{last}");
    }

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["details"]["engine"]["page_bytes"], 2 << 20);
    for run in report["runs"].as_array().unwrap() {
        assert_eq!(run["requests"].as_array().unwrap().len(), 24);
        let points = run["distributions"]["inter_token_latency"].as_array().unwrap();
        assert!(points.is_sorted_by_key(|point| point[1].as_f64().unwrap().to_bits()));
        let series = run["series"].as_object().unwrap();
        let lens: Vec<_> = series.values().map(|values| values.as_array().unwrap().len()).collect();
        assert!(lens.iter().all(|len| *len == lens[0] && *len <= 301));
        let memory = |name: &str| run["series"][name][0].as_f64().unwrap();
        assert_eq!(memory("mapped_bytes") + memory("parked_bytes") + memory("free_bytes"), 4_294_967_296.0);
    }
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn the_same_seed_has_the_same_outcome() {
    let run = |seed: u64| {
        json(&format!(
            "simulate --num-requests 12 --rate 20 --arrivals gamma --cv 2 --lengths zipf --max-tokens 2048 --seed {seed} \
             {SMALL}"
        ))
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first["runs"], run(2)["runs"]);
}

#[test]
fn another_machine_is_a_file_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine.json");
    let printed: Value = serde_json::from_str(&bench_well("simulate --print-machine")).unwrap();
    let mut slower = printed.clone();
    slower["machine"]["bytes_per_s"] = (printed["machine"]["bytes_per_s"].as_f64().unwrap() / 4.0).into();
    fs::write(&file, slower.to_string()).unwrap();
    let workload =
        format!("simulate --num-requests 2 --rate 1 --prompt-tokens 100 --output-tokens 20 {SMALL}");
    let itl_s =
        |report: Value| report["runs"][0]["summary"]["inter_token_latency"]["p50_s"].as_f64().unwrap();
    let (fast, slow) =
        (itl_s(json(&workload)), itl_s(json(&format!("{workload} --machine {}", file.display()))));
    assert!(slow > 2.5 * fast, "{slow} against {fast}");
}
