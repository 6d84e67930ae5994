use std::time::Duration;

use anyhow::{Context, ensure};
use fused_engine::simulation::{CostModel, Part, SimulationConfig, Workload, simulate};
use fused_engine::{ChunkSchedule, Config, PolicyName};

use super::arguments::EngineArgs;
use super::machine;
use super::run::Run;
use super::workload::Plan;

/// Sequences that run at once; sarathi-lean's default.
const DEFAULT_NUM_SEQUENCES: usize = 128;
/// The CUDA driver's granularity.
const DEFAULT_PAGE_BYTES: usize = 2 << 20;
/// Token budgets that are tried against a target are multiples of this, up to the greatest.
const BUDGET_STEP: usize = 32;
const MAX_MEASURED_BUDGET: usize = 16_384;
/// Steps of all runs are kept, and requests wait in a queue of the operating system's size: the most that may wait.
const MAX_WAITING: usize = 1 << 24;

/// Engines to be simulated: one for each policy.
pub(super) struct Engines {
    config: Config,
    pub(super) cost: CostModel,
    pub(super) policies: Vec<PolicyName>,
    seed: u64,
    max_tokens: Option<usize>,
}

impl Engines {
    /// # Errors
    /// A flag or file at fault, by its name.
    pub(super) fn new(args: &EngineArgs, plan: &Plan, seed: u64) -> anyhow::Result<Self> {
        let cost = machine::cost_model(args.machine.as_deref())?;
        let default = Config::default();
        let max_model_len = args.max_model_len.unwrap_or(cost.model.max_model_len);
        let max_num_sequences = args.max_num_sequences.unwrap_or(DEFAULT_NUM_SEQUENCES);
        ensure!(
            max_num_sequences <= 1 << 16,
            "--max-num-sequences {max_num_sequences}: at most {} can be simulated",
            1 << 16
        );
        let kv_cache_bytes = args.kv_cache_bytes.unwrap_or_else(|| cost.kv_cache_bytes());
        let page_bytes = args.page_bytes.unwrap_or(DEFAULT_PAGE_BYTES);
        ensure!(
            kv_cache_bytes / page_bytes as u64 <= 1 << 22,
            "--page-bytes {page_bytes}: makes more than {} pages of KV memory; raise it",
            1 << 22
        );
        let config = Config {
            model_name: cost.model.name.clone(),
            max_model_len: Some(max_model_len),
            max_num_sequences,
            token_budget: token_budget(args, &cost, max_num_sequences, max_model_len),
            prefill_order: args.prefill_order.unwrap_or_default(),
            chunk_schedule: chunk_schedule(args)?,
            prefix_cache: args.prefix_cache.unwrap_or(default.prefix_cache),
            target_time_to_first_token: args
                .target_time_to_first_token_s
                .map(Duration::try_from_secs_f64)
                .transpose()
                .context("--target-time-to-first-token-s")?,
            kv_cache_bytes: Some(kv_cache_bytes),
            page_bytes: Some(page_bytes),
            max_waiting_requests: args.max_waiting_requests.unwrap_or(plan.len()).min(MAX_WAITING),
            ..default
        };
        let mut policies: Vec<PolicyName> = Vec::new();
        for policy in &args.policy {
            if !policies.contains(policy) {
                policies.push(*policy);
            }
        }
        if policies.is_empty() {
            policies.push(PolicyName::default());
        }
        Ok(Self { config, cost, policies, seed, max_tokens: args.client_max_tokens })
    }

    /// Runs a workload under one policy.
    ///
    /// # Errors
    /// A setting that cannot hold, or a fault of the engine.
    pub(super) fn run(&self, policy: PolicyName, workload: &Workload) -> anyhow::Result<Run> {
        let config = SimulationConfig {
            engine: Config { policy, ..self.config.clone() },
            cost: self.cost.clone(),
            seed: self.seed,
            max_tokens: self.max_tokens,
        };
        let outcome = simulate(&config, workload).with_context(|| format!("--policy {policy}"))?;
        Ok(Run::of_simulation(policy.name(), outcome))
    }

    /// Its settings, for reports.
    pub(super) fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "token_budget": self.config.token_budget,
            "chunk_schedule": self.config.chunk_schedule.map(|schedule| format!("{schedule:?}")),
            "prefill_order": self.config.prefill_order.name(),
            "client_max_tokens": self.max_tokens,
            "prefix_cache": self.config.prefix_cache,
            "target_time_to_first_token_s":
                self.config.target_time_to_first_token.map(|target| target.as_secs_f64()),
            "max_num_sequences": self.config.max_num_sequences,
            "max_model_len": self.config.max_model_len,
            "max_waiting_requests": self.config.max_waiting_requests,
            "kv_cache_bytes": self.config.kv_cache_bytes,
            "page_bytes": self.config.page_bytes,
        })
    }
}

/// The largest that a step may have. Every running sequence takes a token of each step.
fn token_budget(
    args: &EngineArgs,
    cost: &CostModel,
    max_num_sequences: usize,
    max_model_len: usize,
) -> usize {
    let Some(target_ms) = args.target_inter_token_latency_ms else {
        let least = max_num_sequences.max(args.chunk_size_high.unwrap_or(0));
        return args.token_budget.unwrap_or(Config::default().token_budget.max(least));
    };
    // As the engine measures it at start: a chunk of a prompt at the end of the longest context.
    let is_in_time = |num_tokens: &usize| {
        let num_tokens = (*num_tokens).min(max_model_len);
        let part = Part { context_len: max_model_len - num_tokens, num_tokens, is_sampled: false };
        cost.step_time([part]).as_secs_f64() * 1e3 <= target_ms
    };
    let budgets = (1..=MAX_MEASURED_BUDGET / BUDGET_STEP).map(|nth| nth * BUDGET_STEP);
    let budget = budgets.take_while(is_in_time).last().unwrap_or(BUDGET_STEP);
    budget.max(max_num_sequences.next_multiple_of(BUDGET_STEP))
}

fn chunk_schedule(args: &EngineArgs) -> anyhow::Result<Option<ChunkSchedule>> {
    let Some(high) = args.chunk_size_high else { return Ok(None) };
    ensure!(
        args.chunk_size_low <= high,
        "--chunk-size-low {}: must be at most --chunk-size-high, which is {high}",
        args.chunk_size_low
    );
    Ok(Some(ChunkSchedule {
        high,
        low: args.chunk_size_low,
        max_tokens: args.chunk_schedule_max_tokens,
        stages: args.chunk_schedule_stages,
    }))
}
