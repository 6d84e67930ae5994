use serde_json::Value;

use crate::{SMALL, json, mixed_trace};

fn by_policy(report: &Value, policy: &str) -> Value {
    let mut runs = report["runs"].as_array().unwrap().iter();
    runs.find(|run| run["summary"]["name"] == policy).unwrap()["summary"].clone()
}

fn p99(summary: &Value, metric: &str) -> f64 {
    summary[metric]["p99_s"].as_f64().unwrap()
}

#[test]
fn long_prompts_stall_decodes_under_all_policies_but_sarathi() {
    let trace = mixed_trace();
    let trace = trace.path().display();
    let policies = ["sarathi", "vllm", "orca", "fastertransformer", "simple-chunking"];
    let flags = policies.map(|policy| format!("--policy {policy}")).join(" ");
    let report = json(&format!("simulate --trace {trace} --prefix-cache false {flags} {SMALL}"));
    let [sarathi, vllm, orca, faster, chunking] = policies.map(|policy| by_policy(&report, policy));
    for summary in [&sarathi, &vllm, &orca, &faster, &chunking] {
        assert_eq!((&summary["num_requests"], &summary["num_failed"]), (&24.into(), &0.into()), "{summary}");
    }
    for stalling in [&vllm, &orca, &chunking] {
        let (own, other) = (p99(&sarathi, "inter_token_latency"), p99(stalling, "inter_token_latency"));
        assert!(own * 3.0 <= other, "{own} against {other}: {stalling}");
    }
    // Nobody joins a batch that runs: tokens come steadily, and whoever comes later waits for all of it.
    assert!(p99(&faster, "scheduling_delay") > 3.0 * p99(&sarathi, "scheduling_delay"), "{faster}");
    // Prompts come first there, one after the other; here short ones pass long ones.
    assert!(p99(&sarathi, "scheduling_delay") < p99(&vllm, "scheduling_delay"), "{vllm}");
}

#[test]
fn a_step_is_as_long_as_the_target_lets_it_be() {
    let trace = mixed_trace();
    let trace = trace.path().display();
    let max_step_s = |flags: &str| {
        let report = json(&format!("simulate --trace {trace} {flags} {SMALL}"));
        report["runs"][0]["summary"]["engine"]["step_time"]["p99_s"].as_f64().unwrap()
    };
    let (short, long) =
        (max_step_s("--target-inter-token-latency-ms 9"), max_step_s("--target-inter-token-latency-ms 30"));
    assert!(short < 0.012 && long > 2.0 * short && long < 0.036, "{short}, {long}");
    let shrinking = max_step_s("--chunk-size-high 2048 --chunk-size-low 256");
    assert!(shrinking > 0.036, "{shrinking}");
}
