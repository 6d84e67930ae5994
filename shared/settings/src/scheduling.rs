//! What the settings of the engine's scheduler may be, and which of them go together.

use std::ops::RangeInclusive;

use crate::{Settings, SettingsError};

/// The values of `scheduling_policy`, the default first; the last two are sarathi-lean's spelling of those before them.
pub const POLICIES: [&str; 7] = [
    "sarathi",
    "vllm",
    "orca",
    "fastertransformer",
    "simple-chunking",
    "faster_transformer",
    "simple_chunking",
];
/// How many of them are shown: one spelling each.
const NUM_SHOWN_POLICIES: usize = 5;
/// The values of `scheduling_order`, the default first.
pub const ORDERS: [&str; 2] = ["fcfs", "priority"];

/// The values of `prefill_order`, the default first.
pub const PREFILL_ORDERS: [&str; 2] = ["shortest", "arrival"];

/// A shorter ageing would outweigh every priority, and a longer one than a day none.
const AGEING_S: RangeInclusive<f64> = 0.001..=86_400.0;
/// From less than any step takes to more than anybody waits for a token.
const INTER_TOKEN_LATENCY_MS: RangeInclusive<f64> = 0.001..=60_000.0;
/// Zero is off.
const TIME_TO_FIRST_TOKEN_S: RangeInclusive<f64> = 0.0..=86_400.0;

// What sarathi-lean has where its dynamic chunk schedule is switched on.
const CHUNK_SIZE_LOW: usize = 128;
const CHUNK_SCHEDULE_MAX_TOKENS: usize = 4096;
const CHUNK_SCHEDULE_STAGES: usize = 16;

/// Fills in what `chunk_size_high` leaves open, so that the effective settings show it.
pub(crate) fn complete(settings: &mut Settings) {
    if let Some(high) = settings.chunk_size_high {
        settings.chunk_size_low.get_or_insert(CHUNK_SIZE_LOW.min(high));
        settings.chunk_schedule_max_tokens.get_or_insert(CHUNK_SCHEDULE_MAX_TOKENS);
        settings.chunk_schedule_stages.get_or_insert(CHUNK_SCHEDULE_STAGES);
    }
}

pub(crate) fn check(settings: &Settings) -> Result<(), SettingsError> {
    one_of("scheduling_policy", &settings.scheduling_policy, &POLICIES, NUM_SHOWN_POLICIES)?;
    one_of("scheduling_order", &settings.scheduling_order, &ORDERS, ORDERS.len())?;
    one_of("prefill_order", &settings.prefill_order, &PREFILL_ORDERS, PREFILL_ORDERS.len())?;
    within("priority_ageing_s", settings.priority_ageing_s, AGEING_S)?;
    within("target_time_to_first_token_s", settings.target_time_to_first_token_s, TIME_TO_FIRST_TOKEN_S)?;
    if let Some(latency_ms) = settings.target_inter_token_latency_ms {
        within("target_inter_token_latency_ms", latency_ms, INTER_TOKEN_LATENCY_MS)?;
        if settings.token_budget.is_some() {
            let problem =
                "cannot stand beside token_budget, which is measured to meet it: choose one of them";
            return Err(out_of_range("target_inter_token_latency_ms", problem));
        }
    }
    check_chunk_schedule(settings)
}

fn check_chunk_schedule(settings: &Settings) -> Result<(), SettingsError> {
    let Some(high) = settings.chunk_size_high else {
        for (key, value) in [
            ("chunk_size_low", settings.chunk_size_low),
            ("chunk_schedule_max_tokens", settings.chunk_schedule_max_tokens),
            ("chunk_schedule_stages", settings.chunk_schedule_stages),
        ] {
            if value.is_some() {
                return Err(out_of_range(key, "needs chunk_size_high, which switches the chunk schedule on"));
            }
        }
        return Ok(());
    };
    if let Some(low) = settings.chunk_size_low.filter(|low| *low > high) {
        let problem = format!("is {low}, and must be at most chunk_size_high, which is {high}");
        return Err(out_of_range("chunk_size_low", problem));
    }
    if let Some(budget) = settings.token_budget.filter(|budget| *budget < high) {
        let problem = format!(
            "is {high}, and no chunk is larger than token_budget, which is {budget}: raise that, lower this, or leave \
             token_budget out"
        );
        return Err(out_of_range("chunk_size_high", problem));
    }
    Ok(())
}

fn one_of(key: &'static str, value: &str, allowed: &[&str], num_shown: usize) -> Result<(), SettingsError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let shown: Vec<&str> = allowed.iter().take(num_shown).copied().collect();
    Err(out_of_range(key, format!("must be one of {}, not `{value}`", shown.join(", "))))
}

/// NaN is in no range.
pub(crate) fn within(key: &'static str, value: f64, range: RangeInclusive<f64>) -> Result<(), SettingsError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(out_of_range(key, format!("must be from {} to {}, not {value}", range.start(), range.end())))
}

pub(crate) fn out_of_range(key: &'static str, problem: impl Into<String>) -> SettingsError {
    SettingsError::OutOfRange { key, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut Settings)) -> Result<Settings, String> {
        let mut settings = Settings::default();
        change(&mut settings);
        complete(&mut settings);
        let checked = crate::bounds::check(&settings).and_then(|()| check(&settings));
        checked.map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn the_highest_chunk_size_alone_switches_the_schedule_on() {
        let schedule = |high| {
            let settings = checked(|settings| settings.chunk_size_high = Some(high)).unwrap();
            (settings.chunk_size_low, settings.chunk_schedule_max_tokens, settings.chunk_schedule_stages)
        };
        assert_eq!(schedule(2048), (Some(128), Some(4096), Some(16)));
        assert_eq!(schedule(64), (Some(64), Some(4096), Some(16)));
        let off = checked(|_| ()).unwrap();
        assert_eq!((off.chunk_size_low, off.chunk_schedule_stages), (None, None));
    }

    #[test]
    fn what_was_given_is_kept() {
        let settings = checked(|settings| {
            settings.chunk_size_high = Some(512);
            settings.chunk_size_low = Some(32);
            settings.chunk_schedule_stages = Some(3);
            settings.token_budget = Some(512);
        });
        let settings = settings.unwrap();
        assert_eq!((settings.chunk_size_low, settings.chunk_schedule_stages), (Some(32), Some(3)));
    }

    #[test]
    fn every_name_is_taken_and_others_are_told_the_names() {
        for name in POLICIES {
            assert!(checked(|settings| settings.scheduling_policy = name.to_owned()).is_ok(), "{name}");
        }
        for name in ORDERS {
            assert!(checked(|settings| settings.scheduling_order = name.to_owned()).is_ok(), "{name}");
        }
        let error = checked(|settings| settings.scheduling_policy = "sglang".to_owned()).unwrap_err();
        assert_eq!(
            error,
            "setting scheduling_policy: must be one of sarathi, vllm, orca, fastertransformer, simple-chunking, not \
             `sglang`"
        );
        let error = checked(|settings| settings.scheduling_order = "lifo".to_owned()).unwrap_err();
        assert_eq!(error, "setting scheduling_order: must be one of fcfs, priority, not `lifo`");
    }

    #[test]
    fn what_cannot_hold_is_named() {
        type Change = fn(&mut Settings);
        let cases: [(&str, &str, Change); 15] = [
            ("priority_ageing_s", "from 0.001", |settings| settings.priority_ageing_s = 0.0),
            ("priority_ageing_s", "not NaN", |settings| settings.priority_ageing_s = f64::NAN),
            ("priority_ageing_s", "not inf", |settings| settings.priority_ageing_s = f64::INFINITY),
            ("target_time_to_first_token_s", "not -1", |settings| {
                settings.target_time_to_first_token_s = -1.0
            }),
            ("target_inter_token_latency_ms", "not 0", |settings| {
                settings.target_inter_token_latency_ms = Some(0.0);
            }),
            ("target_inter_token_latency_ms", "choose one", |settings| {
                settings.target_inter_token_latency_ms = Some(50.0);
                settings.token_budget = Some(512);
            }),
            ("token_budget", "at least 1", |settings| settings.token_budget = Some(0)),
            ("chunk_size_high", "at least 1", |settings| settings.chunk_size_high = Some(0)),
            ("chunk_size_low", "needs chunk_size_high", |settings| settings.chunk_size_low = Some(128)),
            ("chunk_schedule_max_tokens", "needs chunk_size_high", |settings| {
                settings.chunk_schedule_max_tokens = Some(128);
            }),
            ("chunk_schedule_stages", "needs chunk_size_high", |settings| {
                settings.chunk_schedule_stages = Some(2);
            }),
            ("chunk_size_low", "at least 1", |settings| {
                (settings.chunk_size_high, settings.chunk_size_low) = (Some(256), Some(0));
            }),
            ("chunk_size_low", "at most chunk_size_high, which is 64", |settings| {
                (settings.chunk_size_high, settings.chunk_size_low) = (Some(64), Some(65));
            }),
            ("chunk_schedule_stages", "at least 1", |settings| {
                (settings.chunk_size_high, settings.chunk_schedule_stages) = (Some(64), Some(0));
            }),
            ("chunk_size_high", "token_budget, which is 512", |settings| {
                (settings.chunk_size_high, settings.token_budget) = (Some(2048), Some(512));
            }),
        ];
        for (key, part, change) in cases {
            let error = checked(change).unwrap_err();
            assert!(error.starts_with(&format!("setting {key}: ")) && error.contains(part), "{error}");
        }
        assert!(checked(|settings| settings.target_time_to_first_token_s = 0.0).is_ok());
        assert!(checked(|settings| settings.target_inter_token_latency_ms = Some(0.5)).is_ok());
    }
}
