use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::LazyLock;

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};
use strsim::damerau_levenshtein;

use crate::Settings;

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "FUSED_";
/// The name of this source in messages.
pub(crate) const SOURCE: &str = "the environment";

/// Settings whose value is text, however much it looks like a number: a key `007` is not `7`.
pub(crate) const TEXTS: [&str; 21] = [
    "model",
    "served_model_name",
    "generation_config",
    "patch_vocabulary",
    "device",
    "load_format",
    "attention_backend",
    "scheduling_policy",
    "scheduling_order",
    "prefill_order",
    "engine",
    "tokenizer",
    "chat_template",
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
const NO_SETTINGS: [&str; 3] = [CONFIG, "test_", "bench_"];
const CONFIG: &str = "config";

/// What Kubernetes writes into `<SERVICE>_PORT` of every pod beside a service, such as a service `fused` into
/// `FUSED_PORT`.
const SERVICE_LINKS: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// The process's environment as a source of settings.
pub(crate) struct Environment {
    variables: Vec<(String, String)>,
    foreign: Vec<String>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        Self::new(std::env::vars_os())
    }

    /// A variable that is nearly a setting is kept, and refused by its name later: a misspelt bound would go unnoticed.
    /// Any other belongs to somebody else: Kubernetes names the services of a namespace in every pod of it.
    fn new(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self { variables: Vec::new(), foreign: Vec::new() };
        for (name, value) in variables {
            let Some(key) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            let (key, value) = (key.to_ascii_lowercase(), value.to_string_lossy().into_owned());
            if key == NO_SETTINGS[0] || NO_SETTINGS[1..].iter().any(|no| key.starts_with(no)) {
                continue;
            }
            let is_link =
                key.ends_with("port") && SERVICE_LINKS.iter().any(|scheme| value.starts_with(scheme));
            if !is_link && (keys().contains(&key) || nearest(&key).is_some()) {
                environment.variables.push((key, value));
            } else {
                environment.foreign.push(format!("{PREFIX}{}", key.to_uppercase()));
            }
        }
        environment.foreign.sort_unstable();
        environment
    }
}

/// The variables that begin as ours do and are no settings; whoever misses one finds it in this list.
#[must_use]
pub fn foreign_variables() -> Vec<String> {
    Environment::of_process().foreign
}

/// The names of all settings.
pub(crate) fn keys() -> &'static BTreeSet<String> {
    static KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let settings = Value::serialize(Settings::default()).ok().and_then(Value::into_dict);
        settings.unwrap_or_default().into_keys().collect()
    });
    &KEYS
}

/// The setting that a name which is none is likely to mean.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    let candidates = keys().iter().map(String::as_str).chain([CONFIG]);
    let (distance, key) = candidates.map(|key| (damerau_levenshtein(name, key), key)).min()?;
    let most = match key.len() {
        ..=5 => 1,
        6..=10 => 2,
        _ => 3,
    };
    (distance <= most).then_some(key)
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
            ("FUSED_SERVED_MODEL_NAME", "007,b"),
            ("FUSED_GENERATION_CONFIG", "none"),
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
        assert_eq!(
            (settings.served_model_name, &*settings.generation_config),
            (vec!["007".to_owned(), "b".to_owned()], "none")
        );
        assert_eq!(settings.api_key, ["0123", "true"]);
        assert_eq!((settings.port, settings.trace_sample_ratio), (9000, 0.5));
        assert_eq!(settings.engine, ["http://a:1", "http://b:2"]);
        assert_eq!((&*settings.scheduling_policy, settings.token_budget), ("simple-chunking", Some(99)));
        assert_eq!((settings.target_time_to_first_token_s, settings.prefix_cache), (5.0, false));
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        let kubernetes = [
            ("FUSED_GATEWAY_SERVICE_HOST", "10.0.0.1"),
            ("FUSED_GATEWAY_SERVICE_PORT_HTTP", "8000"),
            ("FUSED_ENGINE_PORT", "tcp://10.0.0.2:50051"),
            ("FUSED_ENGINE_PORT_50051_TCP_ADDR", "10.0.0.2"),
            // Of services named `fused`, `fused-x` and `fused-metrics`.
            ("FUSED_PORT", "tcp://10.0.0.3:80"),
            ("FUSED_SERVICE_HOST", "10.0.0.3"),
            ("FUSED_SERVICE_PORT", "80"),
            ("FUSED_X_PORT", "udp://10.0.0.4:80"),
            ("FUSED_METRICS_PORT", "tcp://10.0.0.4:80"),
            ("FUSED_CONFIGURATION", "x"),
        ];
        assert_eq!(settings(&kubernetes).unwrap(), Settings::default());
        let variables = kubernetes.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        assert_eq!(Environment::new(variables).foreign.len(), kubernetes.len());
        let ours = [("FUSED_CONFIG", "x"), ("FUSED_TEST_DATA", "x"), ("FUSED_BENCH_API_KEY", "x")];
        assert!(settings(&ours).is_ok());
        let variables = ours.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        assert_eq!(Environment::new(variables).foreign, [""; 0]);
    }

    #[test]
    fn a_misspelt_setting_is_refused() {
        for (name, meant) in [
            ("MODLE", "model"),
            ("HOSTS", "host"),
            ("CONFGI", "config"),
            ("API_KEYS", "api_key"),
            ("MAX_NUM_SEQUENCE", "max_num_sequences"),
            ("KV_CACHE_BYTE", "kv_cache_bytes"),
            ("DRAIN_TIMEOUT", "drain_timeout_s"),
            ("TOKEN_BUGDET", "token_budget"),
        ] {
            assert!(settings(&[(&format!("{PREFIX}{name}"), "1")]).is_err(), "{name}");
            assert_eq!(nearest(&name.to_lowercase()), Some(meant));
        }
    }

    #[test]
    fn every_text_is_a_setting() {
        for key in TEXTS {
            let error = settings(&[(&format!("{PREFIX}{}", key.to_uppercase()), "x")]);
            assert!(error.is_ok(), "{key}");
        }
    }
}
