use std::time::Duration;

use fused_virtual_memory::LinuxMemory;

use crate::events;
use crate::kv::{KvLayout, KvSize};
use crate::{ChunkSchedule, Error, Order, PolicyName, PrefillOrder};

/// The smallest page that is worth its system calls.
const MIN_DEFAULT_PAGE_BYTES: usize = 64 << 10;
/// Pages of the pool, by default. Each may be a mapping of its own, and `vm.max_map_count` is 65,530 on most machines.
const MAX_DEFAULT_PAGES: usize = 16 << 10;
/// The same where the page size is given.
const MAX_PAGES: usize = 48 << 10;

/// Where an engine's weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightSource {
    /// The model's files.
    #[default]
    Checkpoint,
    /// Random numbers, made on the GPU from config.json alone, for measurements.
    Random,
}

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name clients use.
    pub model_name: String,
    /// Where the weights come from.
    pub weights: WeightSource,
    /// Prompt and output tokens of one sequence; none: what the model was made for, or less where KV memory is short.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once, each in its own slot of KV memory; at most.
    pub max_num_sequences: usize,
    /// Tokens of KV memory that there must be for each of them, or fewer run; 0: as many run in any memory.
    pub min_tokens_a_sequence: usize,
    /// Who gets how much of a step.
    pub policy: PolicyName,
    /// Which of two waiting requests is earlier.
    pub order: Order,
    /// Which prompts share a step, under the policy `sarathi`.
    pub prefill_order: PrefillOrder,
    /// Tokens of one step, decodes and prefill chunks together; at least `max_num_sequences`. Where
    /// `target_inter_token_latency` is given, that decides.
    pub token_budget: usize,
    /// How long a step may take, so that a running sequence has its next token in time: the token budget is set to what
    /// this machine computes in that time, measured at start. `None`: `token_budget` as it is.
    pub target_inter_token_latency: Option<Duration>,
    /// Chunks that shrink as a prompt progresses; `None`: so that a step takes no longer late in a long prompt.
    pub chunk_schedule: Option<ChunkSchedule>,
    /// Whether requests whose prompts begin alike share the memory of that beginning, and compute it once.
    pub prefix_cache: bool,
    /// A request is refused while the prompt tokens that wait before it would take longer than this; `None`: never.
    pub target_time_to_first_token: Option<Duration>,
    /// Physical memory for keys and values; none: all slots full, or half of the available memory if that is less.
    pub kv_cache_bytes: Option<u64>,
    /// The part of a GPU's memory that the process may take, where `kv_cache_bytes` does not say how much keys and values get.
    pub gpu_memory_utilization: f64,
    /// Bytes of one physical page; none: chosen by the size of KV memory.
    pub page_bytes: Option<usize>,
    /// Requests that wait for a slot; one more is refused.
    pub max_waiting_requests: usize,
    /// Tokens a sequence that are buffered for a client that does not read; one more cancels its request.
    pub stream_buffer: usize,
    /// The engine is given up where it makes no progress for so long although there is work, and for ten times as long as its
    /// step should take; `None`: never.
    pub watchdog_timeout: Option<Duration>,
    /// How long a prompt may take to arrive.
    pub prompt_timeout: Duration,
    /// The most log-probabilities a position.
    pub max_logprobs: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_name: "model".to_owned(),
            weights: WeightSource::Checkpoint,
            max_model_len: None,
            max_num_sequences: 64,
            min_tokens_a_sequence: 0,
            policy: PolicyName::default(),
            order: Order::default(),
            prefill_order: PrefillOrder::default(),
            token_budget: 512,
            target_inter_token_latency: None,
            chunk_schedule: None,
            prefix_cache: true,
            target_time_to_first_token: Some(Duration::from_secs(30)),
            kv_cache_bytes: None,
            gpu_memory_utilization: 0.9,
            page_bytes: None,
            max_waiting_requests: 1024,
            stream_buffer: 4096,
            watchdog_timeout: Some(Duration::from_secs(30)),
            prompt_timeout: Duration::from_secs(60),
            max_logprobs: 20,
        }
    }
}

/// What the machine and the model say about KV memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvNeeds {
    pub(crate) layout: KvLayout,
    /// Positions the model was made for.
    pub(crate) model_max_len: usize,
    /// Memory that can be had; `None` if that is unknown.
    pub(crate) available_bytes: Option<u64>,
    pub(crate) pages: PageRules,
}

/// What a kind of memory says about pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRules {
    /// Pages are multiples of it.
    pub(crate) granularity: usize,
    /// By default; `None`: chosen by the size of KV memory.
    pub(crate) default_bytes: Option<usize>,
    /// The most pages of the pool.
    pub(crate) max_pages: usize,
    /// Which part of the available memory the pool takes by default: one half, one whole.
    pub(crate) divisor: u64,
}

impl PageRules {
    /// Of the host, which has more to do with its memory.
    pub(crate) fn host() -> Self {
        let granularity = LinuxMemory::granularity();
        Self { granularity, default_bytes: None, max_pages: MAX_PAGES, divisor: 2 }
    }
}

/// KV memory as it is going to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvPlan {
    pub(crate) size: KvSize,
    pub(crate) page_bytes: usize,
}

impl Config {
    /// Checks what needs no model.
    ///
    /// # Errors
    /// The first setting that cannot hold.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (setting, value) in [
            ("max_num_sequences", self.max_num_sequences),
            ("max_waiting_requests", self.max_waiting_requests),
            ("stream_buffer", self.stream_buffer),
        ] {
            if value == 0 {
                return Err(Error::setting(setting, "must be at least 1"));
            }
        }
        if !(self.gpu_memory_utilization > 0.0 && self.gpu_memory_utilization <= 1.0) {
            return Err(Error::setting("gpu_memory_utilization", "must be over 0 and at most 1"));
        }
        if self.token_budget < self.max_num_sequences {
            let problem = format!(
                "is {}, and must be at least max_num_sequences, which is {}: every running sequence takes a token",
                self.token_budget, self.max_num_sequences
            );
            return Err(Error::setting("token_budget", problem));
        }
        if self.watchdog_timeout == Some(Duration::ZERO) {
            return Err(Error::setting(
                "watchdog_timeout_s",
                "must be over 0; leave it out to switch it off",
            ));
        }
        if self.order == (Order::Priority { ageing: Duration::ZERO }) {
            return Err(Error::setting("priority_ageing_s", "must be over 0"));
        }
        self.chunk_schedule.map_or(Ok(()), check_chunk_schedule)
    }

    /// Sizes KV memory so that one sequence of the greatest length always fits.
    ///
    /// # Errors
    /// A setting that the model or the machine cannot meet.
    pub(crate) fn kv_plan(&self, needs: KvNeeds) -> Result<KvPlan, Error> {
        let max_model_len = self.wanted_model_len(needs.model_max_len)?;
        let wanted_bytes = max_model_len
            .checked_mul(needs.layout.token_bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(MIN_DEFAULT_PAGE_BYTES))
            .and_then(|bytes| bytes.checked_mul(self.max_num_sequences));
        let pool_bytes = self.pool_bytes(wanted_bytes, needs)?;
        let page_bytes = self.page_bytes(pool_bytes, needs.pages)?;
        let pool_bytes = pool_bytes - pool_bytes % page_bytes;
        let fitting_len = pool_bytes / needs.layout.token_bytes();
        let num_fitting = fitting_len.checked_div(self.min_tokens_a_sequence.min(max_model_len));
        let num_sequences = self.max_num_sequences.min(num_fitting.unwrap_or(usize::MAX)).max(1);
        let size = KvSize {
            num_sequences,
            num_slots: num_sequences,
            max_model_len,
            pool_bytes,
            shares_prefixes: self.prefix_cache,
        };
        if fitting_len >= max_model_len {
            return Ok(KvPlan { size: size.with_slots_for(needs.layout, page_bytes), page_bytes });
        }
        if self.max_model_len.is_some() || fitting_len < 2 {
            let problem = format!(
                "is {max_model_len}, and KV memory of {pool_bytes} bytes holds {fitting_len} tokens; lower it or raise \
                 kv_cache_bytes"
            );
            return Err(Error::setting("max_model_len", problem));
        }
        events::context_shortened(max_model_len, fitting_len);
        let size = KvSize { max_model_len: fitting_len, ..size };
        Ok(KvPlan { size: size.with_slots_for(needs.layout, page_bytes), page_bytes })
    }

    fn wanted_model_len(&self, model_max_len: usize) -> Result<usize, Error> {
        match self.max_model_len {
            None => Ok(model_max_len),
            Some(len) if (2..=model_max_len).contains(&len) => Ok(len),
            Some(len) => {
                let problem = format!("is {len}, and must be between 2 and the model's {model_max_len}");
                Err(Error::setting("max_model_len", problem))
            }
        }
    }

    /// `wanted_bytes`: all slots full; `None` where that is beyond counting.
    fn pool_bytes(&self, wanted_bytes: Option<usize>, needs: KvNeeds) -> Result<usize, Error> {
        let error = |problem| Err(Error::setting("kv_cache_bytes", problem));
        let bytes = match (self.kv_cache_bytes, needs.available_bytes) {
            (None, None) => {
                return error("must be given: how much memory is available is unknown".to_owned());
            }
            (None, Some(available)) => {
                wanted_bytes.map_or(u64::MAX, |bytes| bytes as u64).min(available / needs.pages.divisor)
            }
            // Linux would promise it and kill the process later.
            (Some(given), Some(available)) if given > available => {
                return error(format!("is {given}, and {available} bytes of memory are available; lower it"));
            }
            (Some(given), _) => given,
        };
        usize::try_from(bytes).or_else(|_| error(format!("is {bytes}, beyond what can be addressed")))
    }

    fn page_bytes(&self, pool_bytes: usize, rules: PageRules) -> Result<usize, Error> {
        let Some(page_bytes) = self.page_bytes else {
            let by_size = pool_bytes.div_ceil(MAX_DEFAULT_PAGES).next_power_of_two();
            return Ok(rules.default_bytes.unwrap_or_else(|| by_size.max(MIN_DEFAULT_PAGE_BYTES)));
        };
        let PageRules { granularity, max_pages, .. } = rules;
        if page_bytes == 0 || !page_bytes.is_multiple_of(granularity) {
            let problem = format!("is {page_bytes}, and must be a multiple of {granularity}");
            return Err(Error::setting("page_bytes", problem));
        }
        let num_pages = pool_bytes / page_bytes;
        if num_pages == 0 {
            let problem =
                format!("is {page_bytes}, more than all KV memory, which is {pool_bytes} bytes; lower it");
            return Err(Error::setting("page_bytes", problem));
        }
        if num_pages > max_pages {
            let problem = format!(
                "is {page_bytes}, which makes {num_pages} pages of KV memory; {max_pages} can be mapped, so raise it"
            );
            return Err(Error::setting("page_bytes", problem));
        }
        Ok(page_bytes)
    }
}

fn check_chunk_schedule(schedule: ChunkSchedule) -> Result<(), Error> {
    let ChunkSchedule { high, low, max_tokens, stages } = schedule;
    for (setting, value) in [
        ("chunk_size_low", low),
        ("chunk_schedule_max_tokens", max_tokens),
        ("chunk_schedule_stages", stages),
    ] {
        if value == 0 {
            return Err(Error::setting(setting, "must be at least 1"));
        }
    }
    if low > high {
        let problem = format!("is {low}, and must be at most chunk_size_high, which is {high}");
        return Err(Error::setting("chunk_size_low", problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 128 KiB a token, as Llama-8B has it.
    const NEEDS: KvNeeds = KvNeeds {
        layout: KvLayout { num_layers: 32, num_kv_heads: 8, head_dim: 128, bytes_per_element: 2 },
        model_max_len: 8192,
        available_bytes: Some(64 << 30),
        pages: PageRules { granularity: 4096, default_bytes: None, max_pages: MAX_PAGES, divisor: 2 },
    };

    fn refused(config: &Config, needs: KvNeeds) -> String {
        config.kv_plan(needs).unwrap_err().to_string()
    }

    #[test]
    fn by_default_half_of_the_memory_is_used_and_few_mappings() {
        let plan = Config::default().kv_plan(NEEDS).unwrap();
        assert_eq!((plan.size.pool_bytes, plan.page_bytes), (32 << 30, 2 << 20));
        assert_eq!((plan.size.max_model_len, plan.size.num_slots), (8192, 64 + (16 << 10)));
    }

    #[test]
    fn a_small_model_gets_no_more_than_it_can_fill() {
        let layout = KvLayout { num_layers: 4, num_kv_heads: 2, head_dim: 32, bytes_per_element: 4 };
        let plan = Config::default().kv_plan(KvNeeds { layout, model_max_len: 512, ..NEEDS }).unwrap();
        assert_eq!((plan.size.pool_bytes, plan.page_bytes), (64 << 20, 64 << 10));
    }

    #[test]
    fn no_more_sequences_run_than_memory_has_room_for() {
        let config = Config { max_num_sequences: 256, min_tokens_a_sequence: 512, ..Config::default() };
        let num = |gib: u64, config: &Config| {
            let needs = KvNeeds { available_bytes: Some(gib << 30), ..NEEDS };
            config.kv_plan(needs).unwrap().size.num_sequences
        };
        assert_eq!([1, 8, 16, 64].map(|gib| num(gib, &config)), [8, 64, 128, 256]);
        let given = Config { min_tokens_a_sequence: 0, ..config.clone() };
        assert_eq!(num(1, &given), 256);
        let short = Config { max_model_len: Some(16), ..config };
        assert_eq!(num(1, &short), 256, "sequences that are never so long");
    }

    #[test]
    fn a_context_that_does_not_fit_is_shortened_unless_it_was_asked_for() {
        let needs = KvNeeds { available_bytes: Some(1 << 30), ..NEEDS };
        assert_eq!(Config::default().kv_plan(needs).unwrap().size.max_model_len, 4096);
        let asked = Config { max_model_len: Some(8192), ..Config::default() };
        assert!(refused(&asked, needs).starts_with("max_model_len is 8192"));
    }

    #[test]
    fn settings_that_cannot_hold_are_named() {
        let config = Config::default;
        let schedule = ChunkSchedule { high: 2048, low: 128, max_tokens: 4096, stages: 16 };
        let scheduled = |schedule| Config { chunk_schedule: Some(schedule), ..Config::default() };
        assert!(scheduled(schedule).check().is_ok());
        let hasty = Order::Priority { ageing: Duration::ZERO };
        for (name, config) in [
            ("max_num_sequences", Config { max_num_sequences: 0, ..config() }),
            ("stream_buffer", Config { stream_buffer: 0, ..config() }),
            ("max_waiting_requests", Config { max_waiting_requests: 0, ..config() }),
            ("token_budget", Config { token_budget: 63, ..config() }),
            ("priority_ageing_s", Config { order: hasty, ..config() }),
            ("chunk_size_low", scheduled(ChunkSchedule { low: 0, ..schedule })),
            ("chunk_size_low", scheduled(ChunkSchedule { low: 2049, ..schedule })),
            ("chunk_schedule_max_tokens", scheduled(ChunkSchedule { max_tokens: 0, ..schedule })),
            ("chunk_schedule_stages", scheduled(ChunkSchedule { stages: 0, ..schedule })),
        ] {
            assert!(config.check().unwrap_err().to_string().starts_with(name));
        }
        for (name, config) in [
            ("max_model_len", Config { max_model_len: Some(8193), ..config() }),
            ("max_model_len", Config { max_model_len: Some(1), ..config() }),
            ("kv_cache_bytes", Config { kv_cache_bytes: Some(65 << 30), ..config() }),
            ("page_bytes", Config { page_bytes: Some(0), ..config() }),
            ("page_bytes", Config { page_bytes: Some(1000), ..config() }),
            ("page_bytes", Config { page_bytes: Some(4096), ..config() }),
        ] {
            assert!(refused(&config, NEEDS).starts_with(name), "{}", refused(&config, NEEDS));
        }
        let unknown = KvNeeds { available_bytes: None, ..NEEDS };
        assert!(refused(&config(), unknown).starts_with("kv_cache_bytes"));
    }

    #[test]
    fn every_plan_holds_one_sequence() {
        for available_gib in 1..40 {
            for page_bytes in [None, Some(2 << 20), Some(3 << 20)] {
                let needs = KvNeeds { available_bytes: Some(available_gib << 30), ..NEEDS };
                let plan = Config { page_bytes, ..Config::default() }.kv_plan(needs).unwrap();
                let slot = (plan.size.max_model_len * needs.layout.token_bytes()).div_ceil(plan.page_bytes);
                assert!(slot <= plan.size.pool_bytes / plan.page_bytes);
            }
        }
    }
}
