use std::time::Duration;

use anyhow::{Context, bail};
use fused_engine::{ChunkSchedule, Config, Order, WeightSource};
use fused_settings::Settings;

use super::device::Device;

/// Fills in what follows the device, where it is not set: so many sequences, and tokens of one step.
pub(crate) fn complete(settings: &mut Settings, device: Device) {
    let max_num_sequences = settings.max_num_sequences.unwrap_or_else(|| {
        // Each takes a token of a step.
        settings.token_budget.unwrap_or(usize::MAX).min(device.max_num_sequences())
    });
    settings.max_num_sequences = Some(max_num_sequences);
    if settings.target_inter_token_latency_ms.is_none() {
        // A budget below the largest chunk would silently undo the schedule.
        let largest_chunk = settings.chunk_size_high.unwrap_or(0);
        let budget = device.token_budget().max(largest_chunk).max(max_num_sequences);
        settings.token_budget.get_or_insert(budget);
    }
}

/// What the settings mean to the engine.
pub(crate) fn engine_config(
    settings: &Settings,
    model_name: String,
    device: Device,
) -> anyhow::Result<Config> {
    let default = Config::default();
    let is_given = settings.max_num_sequences.is_some();
    let mut settings = settings.clone();
    complete(&mut settings, device);
    let settings = &settings;
    let max_num_sequences = settings.max_num_sequences.unwrap_or(default.max_num_sequences);
    let chunk_schedule = chunk_schedule(settings);
    Ok(Config {
        model_name,
        weights: match &*settings.load_format {
            "dummy" => WeightSource::Random,
            _ => WeightSource::Checkpoint,
        },
        max_model_len: settings.max_model_len,
        max_num_sequences,
        min_tokens_a_sequence: if is_given { 0 } else { device.min_tokens_a_sequence() },
        policy: settings.scheduling_policy.parse()?,
        order: order(settings)?,
        prefill_order: settings.prefill_order.parse()?,
        // Where it is measured, the one that it begins with.
        token_budget: settings.token_budget.unwrap_or(device.token_budget().max(max_num_sequences)),
        target_inter_token_latency: settings
            .target_inter_token_latency_ms
            .map(|ms| seconds("target_inter_token_latency_ms", ms / 1000.0))
            .transpose()?,
        chunk_schedule,
        prefix_cache: settings.prefix_cache,
        target_time_to_first_token: Some(settings.target_time_to_first_token_s)
            .filter(|target| *target > 0.0)
            .map(|target| seconds("target_time_to_first_token_s", target))
            .transpose()?,
        kv_cache_bytes: settings.kv_cache_bytes,
        gpu_memory_utilization: settings.gpu_memory_utilization,
        page_bytes: settings.page_bytes,
        max_waiting_requests: settings.max_waiting_requests,
        stream_buffer: settings.stream_buffer,
        watchdog_timeout: Some(settings.watchdog_timeout_s)
            .filter(|timeout| *timeout > 0.0)
            .map(|timeout| seconds("watchdog_timeout_s", timeout))
            .transpose()?,
        ..default
    })
}

fn order(settings: &Settings) -> anyhow::Result<Order> {
    match &*settings.scheduling_order {
        "fcfs" => Ok(Order::Fcfs),
        "priority" => {
            Ok(Order::Priority { ageing: seconds("priority_ageing_s", settings.priority_ageing_s)? })
        }
        other => bail!("setting scheduling_order: `{other}` is not known"),
    }
}

/// `load` sets either all four or none.
fn chunk_schedule(settings: &Settings) -> Option<ChunkSchedule> {
    Some(ChunkSchedule {
        high: settings.chunk_size_high?,
        low: settings.chunk_size_low?,
        max_tokens: settings.chunk_schedule_max_tokens?,
        stages: settings.chunk_schedule_stages?,
    })
}

fn seconds(key: &str, seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).with_context(|| format!("setting {key}"))
}

#[cfg(test)]
mod tests {
    use fused_engine::{PolicyName, PrefillOrder};
    use fused_settings::{ORDERS, POLICIES, PREFILL_ORDERS};

    use super::*;

    fn config(settings: &Settings) -> Config {
        engine_config(settings, "m".to_owned(), Device::Cpu).unwrap()
    }

    /// The two crates do not know one another; a default that only one of them changes would go unnoticed.
    #[test]
    fn the_default_settings_are_the_engines_defaults() {
        let default = Config { model_name: "m".to_owned(), ..Config::default() };
        assert_eq!(format!("{:?}", config(&Settings::default())), format!("{default:?}"));
    }

    /// Whatever is left out, what is chosen for it goes with the rest.
    #[test]
    fn sequences_and_budget_follow_the_device_and_each_other() {
        let chosen = |device, max_num_sequences, token_budget| {
            let settings = Settings { max_num_sequences, token_budget, ..Settings::default() };
            let config = engine_config(&settings, "m".to_owned(), device).unwrap();
            let mut shown = settings;
            complete(&mut shown, device);
            assert_eq!(shown.max_num_sequences, Some(config.max_num_sequences), "what is printed");
            assert_eq!(shown.token_budget, Some(config.token_budget), "what is printed");
            (config.max_num_sequences, config.token_budget)
        };
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(0));
        assert_eq!((chosen(cpu, None, None), chosen(gpu, None, None)), ((64, 512), (256, 2048)));
        assert_eq!((chosen(cpu, None, Some(32)), chosen(gpu, None, Some(128))), ((32, 32), (128, 128)));
        assert_eq!((chosen(cpu, Some(700), None), chosen(gpu, Some(4096), None)), ((700, 700), (4096, 4096)));
        // What was given stays, for the engine to refuse.
        assert_eq!(chosen(gpu, Some(100), Some(50)), (100, 50));
        let settings = |max_num_sequences| Settings { max_num_sequences, ..Settings::default() };
        let least = |max| engine_config(&settings(max), "m".to_owned(), gpu).unwrap().min_tokens_a_sequence;
        assert_eq!((least(None), least(Some(256))), (512, 0));
        let target = Settings { target_inter_token_latency_ms: Some(5.0), ..settings(Some(3000)) };
        assert_eq!(engine_config(&target, "m".to_owned(), gpu).unwrap().token_budget, 3000);
    }

    #[test]
    fn both_sides_know_the_same_names() {
        let policies = POLICIES.map(|name| {
            config(&Settings { scheduling_policy: name.to_owned(), ..Settings::default() }).policy
        });
        assert!(PolicyName::ALL.iter().all(|policy| policies.contains(policy)));
        let orders = PREFILL_ORDERS.map(|name| {
            config(&Settings { prefill_order: name.to_owned(), ..Settings::default() }).prefill_order
        });
        assert_eq!(orders, PrefillOrder::ALL);
        for name in ORDERS {
            config(&Settings { scheduling_order: name.to_owned(), ..Settings::default() });
        }
    }

    #[test]
    fn numbers_keep_their_units() {
        let settings = Settings {
            scheduling_order: "priority".to_owned(),
            priority_ageing_s: 2.5,
            target_inter_token_latency_ms: Some(0.5),
            target_time_to_first_token_s: 0.0,
            prefix_cache: false,
            ..Settings::default()
        };
        let config = config(&settings);
        assert_eq!(config.order, Order::Priority { ageing: Duration::from_millis(2500) });
        assert_eq!(config.target_inter_token_latency, Some(Duration::from_micros(500)));
        assert_eq!((config.target_time_to_first_token, config.prefix_cache), (None, false));
    }

    #[test]
    fn the_budget_holds_the_largest_chunk() {
        let budget = |high, token_budget| {
            let settings = Settings {
                chunk_size_high: Some(high),
                chunk_size_low: Some(64),
                chunk_schedule_max_tokens: Some(4096),
                chunk_schedule_stages: Some(16),
                token_budget,
                ..Settings::default()
            };
            config(&settings).token_budget
        };
        assert_eq!((budget(2048, None), budget(256, None), budget(256, Some(300))), (2048, 512, 300));
    }
}
