use fused_testkit::Server;
use serde_json::Value;

use crate::{SMALL, bench, json, mixed_trace};

fn capacities(report: &Value) -> Vec<Option<f64>> {
    report["capacities"].as_array().unwrap().iter().map(|found| found["requests_per_s"].as_f64()).collect()
}

#[test]
fn sarathi_serves_more_within_a_bound_on_token_latency() {
    let trace = mixed_trace();
    let trace = trace.path().display();
    let report = json(&format!(
        "capacity --trace {trace} --slo itl:p99:40ms --slo scheduling-delay:p50:2s --start-rate 4 --max-rate 64 \
         --precision 0.3 --policy sarathi --policy vllm --prefix-cache false {SMALL}"
    ));
    let [Some(sarathi), vllm] = capacities(&report)[..] else { panic!("{report}") };
    assert!(vllm.is_none_or(|vllm| sarathi > 1.5 * vllm), "{report}");
    let probes = report["capacities"][0]["probes"].as_array().unwrap();
    for probe in probes {
        let is_met = probe["requests_per_s"].as_f64().unwrap() <= sarathi;
        assert_eq!(probe["is_met"], is_met, "{probe}");
        assert_eq!(probe["measured_s"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn bounds_that_nothing_meets_are_no_error() {
    let finished = bench(&format!(
        "capacity --num-requests 2 --prompt-tokens 64 --output-tokens 2 --slo ttft:p50:1us {SMALL}"
    ));
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(finished.stdout.contains("no rate that was tried meets the bounds"), "{}", finished.stdout);
}

#[test]
fn a_servers_capacity_is_searched_like_the_simulators() {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_fused"));
    let server = Server::start(binary, &["serve", "--port", "0"], &[]).unwrap();
    let workload = "--num-requests 8 --prompt-tokens 12 --output-tokens 3";
    let url = &server.urls[0];
    let report = json(&format!(
        "capacity --url {url} {workload} --slo e2e:max:30s --start-rate 20 --max-rate 40 --precision 0.5"
    ));
    assert_eq!(capacities(&report), [Some(40.0)], "{report}");

    let report = json(&format!("replay --url {url} {workload} --rate 40"));
    let summary = &report["runs"][0]["summary"];
    assert_eq!((&summary["num_requests"], &summary["num_failed"]), (&8.into(), &0.into()), "{report}");
    assert_eq!(summary["inter_token_latency"]["num"], 16, "two gaps each: {report}");
    assert!(summary["engine"].is_null() && report["runs"][0]["series"].is_null());
    let requests = report["runs"][0]["requests"].as_array().unwrap();
    assert!(requests.iter().all(|request| request["num_output"] == 3 && request["num_prompt"] == 12));
}
