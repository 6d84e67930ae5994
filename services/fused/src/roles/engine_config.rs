use std::time::Duration;

use anyhow::{Context, bail};
use fused_engine::{ChunkSchedule, Config, Order, WeightSource};
use fused_settings::Settings;

use super::device::Device;

/// What the settings mean to the engine.
pub(crate) fn engine_config(
    settings: &Settings,
    model_name: String,
    device: Device,
) -> anyhow::Result<Config> {
    let default = Config::default();
    let chunk_schedule = chunk_schedule(settings);
    Ok(Config {
        model_name,
        weights: match &*settings.load_format {
            "dummy" => WeightSource::Random,
            _ => WeightSource::Checkpoint,
        },
        max_model_len: settings.max_model_len,
        max_num_sequences: settings.max_num_sequences,
        policy: settings.scheduling_policy.parse()?,
        order: order(settings)?,
        prefill_order: settings.prefill_order.parse()?,
        token_budget: token_budget(settings, chunk_schedule, device.token_budget()),
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

/// A budget below the largest chunk would silently undo the schedule.
fn token_budget(settings: &Settings, schedule: Option<ChunkSchedule>, default: usize) -> usize {
    settings.token_budget.unwrap_or(schedule.map_or(default, |schedule| schedule.high.max(default)))
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
