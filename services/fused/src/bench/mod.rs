//! `fused bench`: what a server does, what the engine does on this device and would do on one that is not here, and how
//! much of it can be asked.
//!
//! Alone it prints a few figures of a server (`figures`). `engine` measures the engine in this process, `simulate` runs a
//! workload on the engine's core above a cost model, `replay` the same workload against a server, `capacity` searches the
//! highest rate that meets bounds on either. A `workload` becomes a `run`, a run a `summary`, a summary a `report`.
//!
//! `simulate` and `capacity` are the counterpart of sarathi-lean's benchmark runner and capacity search. Where its knobs
//! (`benchmark/config/default.yml`, `--name_with_underscores`) went:
//!
//! | there | here |
//! |---|---|
//! | `request_generator.provider` synthetic, trace | `--trace` or not |
//! | `…length_provider` trace, zipf, uniform, fixed | `--lengths` |
//! | `…interval_provider` poisson, gamma, static, trace | `--arrivals` |
//! | `…num_requests`, `seed` | `--num-requests`, `--seed` |
//! | `poisson…qps`, `gamma…qps`, `gamma…cv` | `--rate`, `--cv`; gaps are not cut at 3/qps, which raised the rate |
//! | `fixed…prefill_tokens`, `decode_tokens` | `--prompt-tokens`, `--output-tokens` |
//! | `uniform…`, `zipf…min_tokens`, `max_tokens` | `--min-tokens`, `--max-tokens` |
//! | `uniform…`, `zipf…prefill_to_decode_ratio` | `--prompt-to-output` |
//! | `zipf…theta`, `scramble` | `--zipf-theta`, `--zipf-scramble` |
//! | `trace…trace_file` | `--trace` |
//! | `trace…start_time`, `end_time`, `date` | `--from`, `--until`, in seconds from the first request |
//! | `trace…prefill_scale_factor`, `decode_scale_factor` | `--prompt-scale`, `--output-scale` |
//! | `trace…time_scale_factor` | `--time-scale` |
//! | `trace…max_tokens` | `--max-tokens-per-request` |
//! | `replica_scheduler.provider` | `--policy`, several side by side |
//! | `replica_scheduler.max_batch_size` | `--max-num-sequences` |
//! | `sarathi…enable_dynamic_chunking_schedule`, `high_chunk_size` | `--chunk-size-high` |
//! | `sarathi…low_chunk_size` | `--chunk-size-low` |
//! | `sarathi…chunk_schedule_max_tokens`, `…stages` | `--chunk-schedule-max-tokens`, `…-stages` |
//! | `sarathi…`, `simple_chunking…chunk_size`, `vllm…max_tokens_in_batch` | `--token-budget` |
//! | `model.max_model_len`, `model.block_size` | `--max-model-len`, `--page-bytes` |
//! | `gpu_memory_utilization` | `--kv-cache-bytes` |
//! | `model.name`, `cluster` hardware | `--machine` |
//! | capacity search: `scheduling_delay_slo_…`, `tbt_slo_…` | `--slo`, also on TTFT, TPOT and whole requests |
//! | capacity search: `start_qps`, `max_iterations` | `--start-rate`, `--max-rate`, `--precision` |
//! | `output_dir`, `write_metrics`, `write_json_trace`, `keep_individual_batch_metrics` | `--json`, `--html` |
//!
//! Left out: `num_replicas` and pipeline parallelism (one engine is one replica here), `time_limit` (a workload ends),
//! `attention_backend` and `load_format` (no kernel runs), `write_chrome_trace` and the metrics of single operations
//! (profilers show those on the device itself), `wandb_…` (JSON goes anywhere).

mod arguments;
mod capacity;
mod client;
mod engine;
mod figures;
mod machine;
mod replay;
mod report;
mod run;
mod simulate;
mod simulated;
mod slo;
mod summary;
mod workload;

pub(crate) use arguments::Bench;
use arguments::BenchCommand;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    match &bench.command {
        None => figures::run(&bench.figures),
        Some(BenchCommand::Engine(arguments)) => engine::run(arguments),
        Some(BenchCommand::Simulate(arguments)) => simulate::run(arguments),
        Some(BenchCommand::Capacity(arguments)) => capacity::run(arguments),
        Some(BenchCommand::Replay(arguments)) => replay::run(arguments),
    }
}
