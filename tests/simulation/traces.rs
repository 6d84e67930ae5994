//! Real traces, where they are there.

use fused_testkit::test_data;
use serde_json::Value;

use crate::json;

fn simulate(trace: &str, flags: &str) -> Option<Value> {
    let trace = test_data(&format!("traces/{trace}"))?;
    Some(json(&format!("simulate --trace {} {flags}", trace.display())))
}

#[test]
fn every_trace_can_be_read() {
    for trace in [
        "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
        "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
        "splitwise-vidur/splitwise_conv.csv",
        "mooncake/conversation_trace.jsonl",
        "mooncake/synthetic_trace.jsonl",
        "sharegpt-lengths-aibrix/5s.csv",
    ] {
        let flags =
            "--num-requests 8 --arrivals static --prompt-scale 0.1 --output-scale 0.01 --max-num-sequences 8";
        let Some(report) = simulate(trace, flags) else { continue };
        let summary = &report["runs"][0]["summary"];
        assert_eq!((&summary["num_requests"], &summary["num_failed"]), (&8.into(), &0.into()), "{trace}");
    }
}

#[test]
fn prompts_of_the_arxiv_trace_stall_decodes_under_vllm_and_not_under_sarathi() {
    let flags =
        "--num-requests 40 --rate 4 --output-scale 0.2 --max-num-sequences 16 --policy sarathi --policy vllm";
    let arxiv = "arxiv-summarization/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv";
    let Some(report) = simulate(arxiv, flags) else { return };
    let p99 = |run: usize| report["runs"][run]["summary"]["inter_token_latency"]["p99_s"].as_f64().unwrap();
    assert!(p99(0) * 3.0 <= p99(1), "{} against {}", p99(0), p99(1));
}

#[test]
fn prompts_of_the_mooncake_trace_share_their_beginnings() {
    let flags = "--num-requests 12 --rate 2 --prompt-scale 0.2 --output-scale 0.01 --max-num-sequences 8";
    let Some(report) = simulate("mooncake/conversation_trace.jsonl", flags) else { return };
    // The first block of all conversations is the same; the first of them have nobody to share it with.
    let cached = report["runs"][0]["summary"]["cached_share"].as_f64().unwrap();
    assert!(cached > 0.1, "{cached}");
}
