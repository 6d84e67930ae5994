use std::future::Future;
use std::time::{SystemTime, UNIX_EPOCH};

use fused_lifecycle::Lifecycle;
use fused_proto::engine::v1::engine_server::EngineServer;
use fused_transport::MAX_MESSAGE_BYTES;
use fused_vocabulary::TokenId;

use crate::core::{self, CoreConfig};
use crate::kv::KvCache;
use crate::runner::Runner;
use crate::scheduler::SchedulerConfig;
use crate::service::EngineService;
use crate::throughput;
use crate::{ChunkSize, Config, Error};

/// The model behind an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name clients use.
    pub name: String,
    /// Which vocabulary its token ids are of, in hexadecimal.
    pub vocabulary_fingerprint: String,
    /// Prompt and output tokens of one sequence.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<TokenId>,
    /// `model_type` of config.json.
    pub architecture: String,
    /// Of the weights, as far as config.json says.
    pub dtype: Option<String>,
    /// What it runs on.
    pub device: String,
    /// The most log-probabilities a position.
    pub max_logprobs: u32,
    /// When this process loaded it.
    pub created_unix_s: i64,
}

/// A running engine.
#[derive(Clone, Debug)]
pub struct Engine {
    service: EngineService,
}

impl Engine {
    /// Starts the core on its thread. `config` has been checked; `kv` holds one sequence of `model.max_model_len`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start<R: Runner>(
        config: &Config,
        model: ModelInfo,
        runner: R,
        kv: KvCache<R::Memory>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, Error> {
        let num_slots = kv.size().num_sequences;
        let core_config = core_config(config, runner.attention_parity());
        let door = core::start(core_config, runner, kv, lifecycle).map_err(Error::Thread)?;
        throughput::start_log(&door, lifecycle);
        let service = EngineService::new(door, model, num_slots, config.prompt_timeout, lifecycle.clone());
        Ok(Self { service })
    }

    /// The gRPC service, to be added to a router.
    #[must_use]
    pub fn service(&self) -> EngineServer<EngineService> {
        EngineServer::new(self.service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The model.
    #[must_use]
    pub fn model_info(&self) -> &ModelInfo {
        self.service.model()
    }

    /// Whether requests are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.service.door().check().is_ok() && self.service.is_serving()
    }

    /// Completes with the reason when the engine is lost, because it has failed or makes no progress: every request has been
    /// ended, and the process must be restarted. Never completes otherwise.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let failure = self.service.door().failure().clone();
        async move {
            failure.told().await;
            failure.reason().unwrap_or_default().to_owned()
        }
    }

    /// The way to the core, for tests.
    #[cfg(test)]
    pub(crate) fn door(&self) -> &core::Door {
        self.service.door()
    }
}

/// What the settings mean to the core. `attention_parity`: see [`Runner::attention_parity`].
pub(crate) fn core_config(config: &Config, attention_parity: Option<usize>) -> CoreConfig {
    let chunks = match (config.chunk_schedule, attention_parity) {
        (Some(schedule), _) => ChunkSize::Schedule(schedule),
        (None, Some(parity_tokens)) => ChunkSize::Balanced { parity_tokens },
        (None, None) => ChunkSize::Budget,
    };
    CoreConfig {
        scheduler: SchedulerConfig {
            policy: config.policy,
            token_budget: config.token_budget,
            prefill_order: config.prefill_order,
            chunks,
        },
        order: config.order,
        max_wait: config.target_time_to_first_token,
        max_waiting_requests: config.max_waiting_requests,
        stream_buffer: config.stream_buffer,
        watchdog_timeout: config.watchdog_timeout,
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
