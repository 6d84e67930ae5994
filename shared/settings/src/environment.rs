use std::ffi::OsString;

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "FUSED_";
/// The name of this source in messages.
pub(crate) const SOURCE: &str = "the environment";

/// Settings whose value is text, however much it looks like a number: a key `007` is not `7`.
const TEXTS: [&str; 19] = [
    "model",
    "served_model_name",
    "patch_vocabulary",
    "device",
    "load_format",
    "attention_backend",
    "scheduling_policy",
    "scheduling_order",
    "prefill_order",
    "engine",
    "tokenizer",
    "api_key",
    "api_key_file",
    "tenants_file",
    "allowed_origins",
    "host",
    "log_filter",
    "log_format",
    "otlp_endpoint",
];

/// Variables that are read by others: `FUSED_CONFIG` names the settings file; the rest belongs to tests and to
/// `fused bench`.
const NO_SETTINGS: [&str; 3] = ["config", "test_", "bench_"];

/// The process's environment as a source of settings.
pub(crate) struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        Self::new(std::env::vars_os())
    }

    fn new(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let variables = variables.filter_map(|(name, value)| {
            let key = name.to_str()?.strip_prefix(PREFIX)?.to_ascii_lowercase();
            let is_setting = key != NO_SETTINGS[0] && !NO_SETTINGS[1..].iter().any(|no| key.starts_with(no));
            is_setting.then(|| (key, value.to_string_lossy().into_owned()))
        });
        Self { variables: variables.collect() }
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named(SOURCE)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let value = |key: &str, text: &str| -> Value {
            if TEXTS.contains(&key) {
                return Value::from(text);
            }
            // Reading a value as what it looks like does not fail: what looks like nothing else is text.
            text.parse().unwrap_or_else(|_| Value::from(text))
        };
        let values = self.variables.iter().map(|(key, text)| (key.clone(), value(key, text)));
        Ok(Profile::Default.collect(values.collect()))
    }
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::Serialized;

    use super::*;
    use crate::Settings;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, Box<Error>> {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Figment::from(Serialized::defaults(Settings::default()))
            .merge(Environment::new(variables))
            .extract()
            .map_err(Box::new)
    }

    #[test]
    fn texts_stay_texts_and_numbers_become_numbers() {
        let settings = settings(&[
            ("FUSED_SERVED_MODEL_NAME", "007"),
            ("FUSED_API_KEY", "0123,true"),
            ("FUSED_PORT", "9000"),
            ("FUSED_TRACE_SAMPLE_RATIO", "0.5"),
            ("FUSED_ENGINE", "http://a:1, http://b:2"),
            ("FUSED_SCHEDULING_POLICY", "simple-chunking"),
            ("FUSED_TOKEN_BUDGET", "99"),
            ("FUSED_TARGET_TIME_TO_FIRST_TOKEN_S", "5"),
            ("FUSED_PREFIX_CACHE", "false"),
        ])
        .unwrap();
        assert_eq!(settings.served_model_name.as_deref(), Some("007"));
        assert_eq!(settings.api_key, ["0123", "true"]);
        assert_eq!((settings.port, settings.trace_sample_ratio), (9000, 0.5));
        assert_eq!(settings.engine, ["http://a:1", "http://b:2"]);
        assert_eq!((&*settings.scheduling_policy, settings.token_budget), ("simple-chunking", Some(99)));
        assert_eq!((settings.target_time_to_first_token_s, settings.prefix_cache), (5.0, false));
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        assert!(
            settings(&[("FUSED_CONFIG", "x"), ("FUSED_TEST_DATA", "x"), ("FUSED_BENCH_API_KEY", "x")])
                .is_ok()
        );
        assert!(settings(&[("FUSED_CONFIGURATION", "x")]).is_err());
    }

    #[test]
    fn every_text_is_a_setting() {
        for key in TEXTS {
            let error = settings(&[(&format!("{PREFIX}{}", key.to_uppercase()), "x")]);
            assert!(error.is_ok(), "{key}");
        }
    }
}
