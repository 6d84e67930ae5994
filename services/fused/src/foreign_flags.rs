//! Flags of other servers that have no counterpart here. Whoever brings a command line along is told what to do about
//! each, in place of clap's guess at a flag that is spelt alike. Flags that mean the same are aliases
//! (`fused_settings::Flags`).

const PARALLEL: &str = "a model runs on one GPU here: leave it out, or give --device cuda:N to choose which";
const QUANTIZED: &str =
    "quantised weights are not served yet: give a checkpoint in bfloat16, float16 or float32";
const KV_DTYPE: &str = "keys and values are kept in the type of the weights: leave it out";
const ADAPTERS: &str = "LoRA adapters are not served: merge the adapter into the model and serve that";
const TOOL_CALLS: &str = "calls of tools are not parsed yet: what the model writes is the message's content";
const REASONING: &str = "reasoning is not parsed yet: what the model writes is the message's content";
const CONSTRAINTS: &str = "output that follows a grammar or a schema is not served yet: leave it out";
const SPECULATION: &str = "speculative decoding is not served yet: leave it out";
const TLS: &str = "TLS is not served: set a proxy before the gateway that ends it";
const NO_CODE: &str = "code that comes with a model is never run: leave it out";
const GRAPHS: &str = "CUDA graphs are made at start and need no setting: leave it out";
const CHUNKED: &str = "prefill is chunked always, by --token-budget: leave it out";
const SWAP: &str = "nothing is swapped out: a sequence that gives way is computed again; leave it out";
const BLOCKS: &str = "KV memory has pages of bytes, not blocks of tokens: leave it out, or see --page-bytes";
const CACHE_DIR: &str = "downloads go to the cache of every hub client: set HF_HUB_CACHE in the environment";
const REVISION: &str = "a revision stands behind the model's name: --model ORG/NAME@REVISION";
const LOGS: &str = "a line a request is logged without its text: --log-filter warn leaves it out";
const MEMORY_PART: &str =
    "the part of the GPU's memory to take is --gpu-memory-utilization, KV memory's bytes --kv-cache-bytes";
const TOKENIZER: &str =
    "the tokenizer is the one in the model's directory; an adapted vocabulary is --patch-vocabulary";
const SEED: &str = "a seed comes with each request, as `seed`; without one, draws are random: leave it out";
const MULTIMODAL: &str = "only text is served: leave it out";
const OUTPUT: &str =
    "requests bound their output by max_tokens, and --max-model-len bounds prompt and output: leave it out";

/// Flag and sentence. In alphabetical order.
const FLAGS: [(&str, &str); 98] = [
    ("--attention-backend-config", GRAPHS),
    ("--batch-size", "say --token-budget, which bounds the tokens of one step"),
    ("--block-size", BLOCKS),
    ("--calculate-kv-scales", KV_DTYPE),
    (
        "--chat-template-content-format",
        "contents are given in the form that the chat template takes: leave it out",
    ),
    ("--code-revision", NO_CODE),
    ("--compilation-config", GRAPHS),
    ("--context-parallel-size", PARALLEL),
    ("--cpu-offload-gb", SWAP),
    ("--cuda-graph-max-bs", GRAPHS),
    ("--cuda-graphs", GRAPHS),
    (
        "--data-parallel-size",
        "several engines are several processes: `fused engine` on each GPU, and --engine URL for each",
    ),
    ("--disable-cuda-graph", GRAPHS),
    ("--disable-custom-all-reduce", PARALLEL),
    ("--disable-log-requests", LOGS),
    ("--disable-log-stats", LOGS),
    ("--disable-radix-cache", "say --prefix-cache false"),
    ("--disable-uvicorn-access-log", LOGS),
    ("--distributed-executor-backend", PARALLEL),
    ("--download-dir", CACHE_DIR),
    (
        "--dp-size",
        "several engines are several processes: `fused engine` on each GPU, and --engine URL for each",
    ),
    ("--enable-auto-tool-choice", TOOL_CALLS),
    ("--enable-chunked-prefill", CHUNKED),
    ("--enable-expert-parallel", PARALLEL),
    ("--enable-log-requests", LOGS),
    ("--enable-lora", ADAPTERS),
    ("--enable-metrics", "metrics are always served, at /metrics; a port without a key is --metrics-port"),
    ("--enable-prompt-tokens-details", "usage always has them: leave it out"),
    ("--enable-reasoning", REASONING),
    ("--enforce-eager", GRAPHS),
    ("--expert-parallel-size", PARALLEL),
    ("--flash-attn", "the attention kernels are chosen by the device: leave it out"),
    ("--gpu-layers", "a model is on one device as a whole: --device cpu or cuda:N"),
    ("--grammar-backend", CONSTRAINTS),
    ("--guided-decoding-backend", CONSTRAINTS),
    ("--hf-overrides", "config.json is read as it stands: change it in the model's directory"),
    ("--hf-token", "the hub's token is read from HF_TOKEN in the environment"),
    ("--huggingface-hub-cache", CACHE_DIR),
    ("--jinja", "chats are always rendered by the model's chat template: leave it out"),
    ("--json-model-override-args", "config.json is read as it stands: change it in the model's directory"),
    ("--kv-cache-dtype", KV_DTYPE),
    ("--kv-cache-memory-bytes", "say --kv-cache-bytes"),
    ("--limit-mm-per-prompt", MULTIMODAL),
    ("--log-level", "say --log-filter, as in --log-filter warn"),
    ("--lora", ADAPTERS),
    ("--lora-modules", ADAPTERS),
    ("--lora-paths", ADAPTERS),
    ("--max-batch-prefill-tokens", "say --token-budget, which bounds the tokens of one step"),
    ("--max-batch-size", "say --max-num-sequences"),
    ("--max-concurrent-requests", "say --max-requests-in-flight"),
    ("--max-input-length", OUTPUT),
    ("--max-input-tokens", OUTPUT),
    ("--max-log-len", LOGS),
    ("--max-logprobs", "20 log-probabilities a token are the most: leave it out"),
    ("--max-lora-rank", ADAPTERS),
    ("--max-prefill-tokens", "say --token-budget, which bounds the tokens of one step"),
    ("--max-total-tokens", "say --max-model-len"),
    ("--mem-fraction-static", MEMORY_PART),
    ("--mm-processor-kwargs", MULTIMODAL),
    ("--mmproj", MULTIMODAL),
    ("--n-gpu-layers", "a model is on one device as a whole: --device cpu or cuda:N"),
    ("--no-enable-chunked-prefill", CHUNKED),
    ("--no-enable-log-requests", LOGS),
    ("--no-enable-prefix-caching", "say --prefix-cache false"),
    ("--num-gpu-blocks-override", BLOCKS),
    ("--num-lookahead-slots", SPECULATION),
    ("--num-shard", PARALLEL),
    ("--parallel", "say --max-num-sequences"),
    ("--pipeline-parallel-size", PARALLEL),
    ("--quantization", QUANTIZED),
    ("--quantize", QUANTIZED),
    ("--reasoning-parser", REASONING),
    ("--return-tokens-as-token-ids", "a request asks for it, as return_tokens_as_token_ids: leave it out"),
    ("--revision", REVISION),
    ("--root-path", "a path before the API is for a proxy to take away: leave it out"),
    ("--rope-scaling", "rotary scaling is read from config.json: change it in the model's directory"),
    ("--sampling-backend", GRAPHS),
    ("--schedule-policy", "say --scheduling-order, fcfs or priority"),
    ("--seed", SEED),
    ("--sharded", PARALLEL),
    ("--speculative-algorithm", SPECULATION),
    ("--speculative-config", SPECULATION),
    ("--ssl-certfile", TLS),
    ("--ssl-keyfile", TLS),
    ("--structured-outputs-config", CONSTRAINTS),
    ("--swap-space", SWAP),
    ("--task", "generating text is the only task: leave it out"),
    ("--tensor-parallel-size", PARALLEL),
    ("--threads", "as many threads compute as there are cores: leave it out"),
    ("--tokenizer-mode", TOKENIZER),
    ("--tokenizer-path", TOKENIZER),
    ("--tokenizer-revision", REVISION),
    ("--tool-call-parser", TOOL_CALLS),
    ("--tp-size", PARALLEL),
    ("--trust-remote-code", NO_CODE),
    ("--ubatch-size", "say --token-budget, which bounds the tokens of one step"),
    ("--uvicorn-log-level", "say --log-filter, as in --log-filter warn"),
    ("--watchdog-timeout", "say --watchdog-timeout-s"),
];

/// Short spellings, which clap would take apart.
const SHORT: [(&str, &str); 6] = [
    ("-dp", "--data-parallel-size"),
    ("-ngl", "--n-gpu-layers"),
    ("-pp", "--pipeline-parallel-size"),
    ("-q", "--quantization"),
    ("-tp", "--tensor-parallel-size"),
    ("--tp", "--tensor-parallel-size"),
];

/// The sentence for the first of the arguments that is such a flag.
pub(crate) fn advice<'a>(arguments: impl Iterator<Item = &'a str>) -> Option<String> {
    // Behind `--` are no flags.
    arguments.take_while(|argument| *argument != "--").find_map(|argument| {
        let typed = argument.split('=').next().unwrap_or(argument);
        let spelt = typed.replace('_', "-");
        let name = SHORT.iter().find(|short| short.0 == spelt).map_or(&*spelt, |short| short.1);
        let (_, sentence) = FLAGS.iter().find(|flag| flag.0 == name)?;
        Some(format!("{typed}: {sentence}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn flags_of_other_servers_are_answered_by_what_to_do() {
        let of = |line: &str| advice(line.split(' '));
        assert_eq!(of("serve --quantization awq").unwrap(), format!("--quantization: {QUANTIZED}"));
        assert_eq!(
            of("serve m --tensor_parallel_size=2").unwrap(),
            format!("--tensor_parallel_size: {PARALLEL}")
        );
        assert_eq!(of("serve -tp 2").unwrap(), format!("-tp: {PARALLEL}"));
        assert_eq!(of("serve --max-num-seqs 4 -- --quantization"), None);
    }

    #[test]
    fn none_of_them_is_a_flag_of_ours_and_each_stands_once() {
        let serve = Cli::command();
        let serve = serve.find_subcommand("serve").unwrap();
        let ours = serve
            .get_arguments()
            .flat_map(|argument| argument.get_long_and_visible_aliases().into_iter().flatten());
        let hidden =
            serve.get_arguments().flat_map(|argument| argument.get_all_aliases().into_iter().flatten());
        let ours: Vec<_> = ours.chain(hidden).map(|name| format!("--{name}").replace('_', "-")).collect();
        for (flag, sentence) in FLAGS {
            assert!(!ours.contains(&flag.to_owned()), "{flag} is a flag here");
            assert!(!sentence.is_empty());
        }
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order");
        assert!(SHORT.iter().all(|short| FLAGS.iter().any(|flag| flag.0 == short.1)));
        // What a sentence says to give is there.
        for (flag, sentence) in FLAGS {
            for word in sentence.split([' ', ',', ':', '`', ';']).filter(|word| word.starts_with("--")) {
                assert!(ours.contains(&word.to_owned()), "{flag}: there is no {word}");
            }
        }
    }
}
