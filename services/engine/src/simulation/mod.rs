//! The whole engine core on a virtual clock: the real scheduler and the real KV memory, above a runner that takes as long
//! as a device would and a driver that charges what its calls cost. Ten thousand requests take seconds.
//!
//! A [`Workload`] says who asks for what and when, a [`CostModel`] how long a step takes, [`simulate`] what came of it.
//! Nothing is drawn and nothing is measured: the same input has the same outcome.

mod clients;
mod clock;
mod cost;
mod error;
mod matrix_products;
mod outcome;
mod runner;
#[cfg(test)]
mod tests;
mod workload;

use fused_virtual_memory::{DriverCosts, SimulatedMemory, VirtualMemory};

use crate::core::{CoreConfig, Progress, assemble};
use crate::engine;
use crate::kv::{KvCache, KvSize};
use crate::{Config, ModelInfo};

use clients::Clients;
use clock::VirtualClock;
use runner::CostModelRunner;

pub use cost::{CostModel, Machine, ModelShape, Part};
pub use error::Error;
pub use outcome::{Outcome, RequestOutcome, StepOutcome};
pub use workload::{Arrival, Prompt, Workload};

/// Arrivals between two steps, each two commands: no more than the core takes in one.
const MAX_ARRIVALS_PER_STEP: usize = 500;
/// Steps of one simulation, which are all kept: about 2.5 GB.
const MAX_STEPS: usize = 16 << 20;
/// Rounds in which no time passes before the engine counts as stuck.
const MAX_IDLE_ROUNDS: usize = 100_000;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimulationConfig {
    /// The engine's settings. Those that are left to the machine on a real one are given: `max_model_len`,
    /// `kv_cache_bytes` and `page_bytes`.
    pub engine: Config,
    /// What a step takes.
    pub cost: CostModel,
    /// What prompts are made from.
    pub seed: u64,
    /// The `max_tokens` that clients send, whose outputs end by themselves; `None`: each sends what it is going to get.
    pub max_tokens: Option<usize>,
}

/// Runs a workload to its end.
///
/// # Errors
/// Settings that the engine refuses, a workload beyond all measure, and faults of the engine. A request that is refused or fails is no error: its
/// outcome says so.
pub fn simulate(config: &SimulationConfig, workload: &Workload) -> Result<Outcome, Error> {
    let kv = kv(config)?;
    let model = model(config)?;
    let clock = VirtualClock::new();
    let (runner, notes) = CostModelRunner::new(config.cost.clone(), clock.clone(), &kv, workload);
    let now = clock.clone();
    let (mut core, door) = assemble(core_config(config, workload), runner, kv, Box::new(move || now.now()));

    let mut clients = Clients::new(workload, &model, config);
    let mut steps = Vec::new();
    let mut num_idle_rounds = 0;
    loop {
        for _ in 0..MAX_ARRIVALS_PER_STEP {
            if clients.next_arrival().is_none_or(|at| at > clock.elapsed()) {
                break;
            }
            clients.arrive(&door, &clock);
        }
        let progress = core.step()?;
        num_idle_rounds += 1;
        if let Some(last) = notes.take() {
            num_idle_rounds = 0;
            if steps.len() == MAX_STEPS {
                return Err(Error::TooLong { max_steps: MAX_STEPS });
            }
            steps.push(StepOutcome { num_waiting: door.load().num_waiting, ..last.step });
            for request in last.drew {
                clients.listen(request, clock.elapsed());
            }
        }
        match (progress, clients.next_arrival()) {
            (Progress::Idle(_), None) => break,
            (Progress::Idle(_), Some(at)) => clock.pass_until(at),
            (Progress::Ran, _) if num_idle_rounds > MAX_IDLE_ROUNDS => {
                return Err(Error::Stuck { at: clock.elapsed() });
            }
            (Progress::Ran, _) => {}
        }
    }
    Ok(Outcome { requests: clients.into_outcomes(clock.elapsed()), steps })
}

fn kv(config: &SimulationConfig) -> Result<KvCache<SimulatedMemory>, Error> {
    let engine = &config.engine;
    engine.check()?;
    let pool_bytes = given("kv_cache_bytes", engine.kv_cache_bytes)?;
    let pool_bytes = usize::try_from(pool_bytes).map_err(|_| {
        crate::Error::setting("kv_cache_bytes", format!("is {pool_bytes}, beyond what can be addressed"))
    })?;
    let max_model_len = given("max_model_len", engine.max_model_len)?;
    let memory = SimulatedMemory::new(given("page_bytes", engine.page_bytes)?, pool_bytes);
    let memory = memory.map_err(crate::Error::from)?.with_costs(DriverCosts::h200());
    let size = KvSize {
        num_sequences: engine.max_num_sequences,
        num_slots: engine.max_num_sequences,
        max_model_len,
        pool_bytes,
        shares_prefixes: engine.prefix_cache,
    };
    let layout = config.cost.model.layout();
    let size = size.with_slots_for(layout, memory.page_bytes());
    Ok(KvCache::new(memory, layout, size).map_err(crate::Error::from)?)
}

fn given<T>(setting: &'static str, value: Option<T>) -> Result<T, Error> {
    Ok(value.ok_or_else(|| crate::Error::setting(setting, "must be given: no machine is there to ask"))?)
}

fn model(config: &SimulationConfig) -> Result<ModelInfo, Error> {
    Ok(ModelInfo {
        name: config.cost.model.name.clone(),
        vocabulary_fingerprint: "simulated".to_owned(),
        max_model_len: given("max_model_len", config.engine.max_model_len)?,
        vocab_size: config.cost.model.vocab_size,
        eos_token_ids: Vec::new(),
        architecture: "simulated".to_owned(),
        dtype: None,
        device: config.cost.machine.name.clone(),
        max_logprobs: config.engine.max_logprobs,
        created_unix_s: 0,
    })
}

/// Every client reads at once, but what it is sent is looked at only after a step.
fn core_config(config: &SimulationConfig, workload: &Workload) -> CoreConfig {
    let longest = workload.arrivals().iter().map(|arrival| arrival.num_output).max().unwrap_or(0);
    let parity = config.cost.model.attention_parity();
    CoreConfig {
        stream_buffer: longest.saturating_add(2),
        ..engine::core_config(&config.engine, Some(parity))
    }
}
