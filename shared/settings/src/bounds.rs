//! From where to where every number among the settings may go. Past the upper bounds nothing is gained, and what is
//! allocated, counted or waited for by them would be beyond the machine.

use std::ops::RangeInclusive;

use crate::scheduling::{out_of_range, within};
use crate::{Settings, SettingsError};

/// Many times what any model was trained for.
const MAX_TOKENS: u64 = 1 << 24;
/// Tokens of a step: activations are held for every one of them.
const MAX_STEP_TOKENS: u64 = 1 << 18;
/// Requests, texts or messages that wait somewhere.
const MAX_WAITING: u64 = 1 << 16;

/// With less, a client that is merely not quicker than the engine would lose its request.
const MIN_STREAM_BUFFER: u64 = 64;
/// A body becomes one gRPC message, and those may have 16 MiB.
const MAX_BODY_BYTES: u64 = 15 << 20;
/// Memory for requests: enough for one.
const MIN_BUFFERED_BYTES: u64 = 1 << 20;

/// Checks every number by itself; what numbers must be to one another is for their own rooms.
pub(crate) fn check(settings: &Settings) -> Result<(), SettingsError> {
    let count = |value: usize| Some(value as u64);
    let optional = |value: Option<usize>| value.map(|value| value as u64);
    let counts: [(&'static str, Option<u64>, RangeInclusive<u64>); 18] = [
        ("max_model_len", optional(settings.max_model_len), 1..=MAX_TOKENS),
        ("max_num_sequences", optional(settings.max_num_sequences), 1..=16_384),
        ("token_budget", optional(settings.token_budget), 1..=MAX_STEP_TOKENS),
        ("chunk_size_high", optional(settings.chunk_size_high), 1..=MAX_STEP_TOKENS),
        ("chunk_size_low", optional(settings.chunk_size_low), 1..=MAX_STEP_TOKENS),
        ("chunk_schedule_max_tokens", optional(settings.chunk_schedule_max_tokens), 1..=MAX_TOKENS),
        ("chunk_schedule_stages", optional(settings.chunk_schedule_stages), 1..=4096),
        ("kv_cache_bytes", settings.kv_cache_bytes, 1..=1 << 50),
        ("page_bytes", optional(settings.page_bytes), 1..=1 << 40),
        ("max_waiting_requests", count(settings.max_waiting_requests), 1..=MAX_WAITING),
        ("stream_buffer", count(settings.stream_buffer), MIN_STREAM_BUFFER..=MAX_WAITING),
        ("tokenizer_threads", count(settings.tokenizer_threads), 1..=512),
        ("max_waiting_texts", count(settings.max_waiting_texts), 1..=MAX_WAITING),
        ("max_requests_in_flight", count(settings.max_requests_in_flight), 1..=MAX_WAITING),
        ("max_body_bytes", count(settings.max_body_bytes), 1..=MAX_BODY_BYTES),
        ("max_buffered_bytes", optional(settings.max_buffered_bytes), MIN_BUFFERED_BYTES..=1 << 40),
        ("http_keep_alive_s", Some(settings.http_keep_alive_s), 1..=86_400),
        ("drain_timeout_s", Some(settings.drain_timeout_s), 0..=86_400),
    ];
    for (key, value, range) in counts {
        let Some(value) = value else { continue };
        if value < *range.start() {
            return Err(out_of_range(key, format!("must be at least {}, not {value}", range.start())));
        }
        if value > *range.end() {
            return Err(out_of_range(key, format!("must be at most {}, not {value}", range.end())));
        }
    }
    within("watchdog_timeout_s", settings.watchdog_timeout_s, 0.0..=86_400.0)?;
    within("trace_sample_ratio", settings.trace_sample_ratio, 0.0..=1.0)
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::Serialized;
    use figment::value::Value;

    use super::*;
    use crate::environment::{TEXTS, keys};
    use crate::load::checked;

    /// The settings with one of them changed, as a file would do it.
    fn with(key: &str, value: impl Into<Value>) -> Result<Settings, String> {
        let figment = Figment::from(Serialized::defaults(Settings::default()));
        checked(figment.merge((key, value.into()))).map_err(|error| error.to_string())
    }

    /// All that are neither text, nor yes or no. A new one is among them without being named here.
    fn numbers() -> Vec<&'static str> {
        let numbers: Vec<_> = keys()
            .iter()
            .map(String::as_str)
            .filter(|key| !TEXTS.contains(key) && with(key, true).is_err())
            .collect();
        assert!(numbers.len() >= 24 && numbers.contains(&"kv_cache_bytes") && numbers.contains(&"port"));
        numbers
    }

    #[test]
    fn every_number_has_an_upper_bound_and_its_own_sentence() {
        for key in numbers() {
            for far in [1_u64 << 62, u64::MAX] {
                let error = with(key, far).unwrap_err();
                assert!(error.starts_with(&format!("setting {key}: ")), "{error}");
            }
            for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
                let error = with(key, odd).unwrap_err();
                assert!(error.starts_with(&format!("setting {key}: ")), "{error}");
            }
            let negative = with(key, -1_i64).unwrap_err();
            assert!(negative.starts_with(&format!("setting {key}: ")), "{negative}");
        }
    }

    #[test]
    fn small_and_large_numbers_are_taken_or_refused_by_name() {
        for key in numbers() {
            for value in [0_u64, 1, 64, 1 << 16, 1 << 31] {
                if let Err(error) = with(key, value) {
                    assert!(error.starts_with(&format!("setting {key}: ")), "{error}");
                }
            }
        }
    }
}
