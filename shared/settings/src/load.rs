use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use serde::Serialize;

use crate::environment::{Environment, PREFIX, SOURCE, nearest};
use crate::{EngineFlags, Flags, Settings};
use crate::{bounds, scheduling};

/// Settings that cannot be used; says which key and where it came from.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file does not exist.
    #[error("there is no settings file {}", .0.display())]
    NoFile(PathBuf),
    /// A key is unknown or its value has the wrong type.
    #[error("{}", describe(.0))]
    Invalid(Box<figment::Error>),
    /// A value is out of range.
    #[error("setting {key}: {problem}")]
    OutOfRange {
        /// Which setting.
        key: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

/// The effective settings: defaults, the file named by `--config` or `FUSED_CONFIG`, the environment, flags.
///
/// # Errors
/// See [`SettingsError`].
pub fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    merge(Settings::default(), flags.engine_flags.config.as_deref(), flags)
}

/// The same for a tool that runs an engine and has defaults of its own.
///
/// # Errors
/// See [`SettingsError`].
pub fn load_engine(defaults: Settings, flags: &EngineFlags) -> Result<Settings, SettingsError> {
    merge(defaults, flags.config.as_deref(), flags)
}

fn merge(defaults: Settings, file: Option<&Path>, flags: &impl Serialize) -> Result<Settings, SettingsError> {
    let mut figment = Figment::from(Serialized::defaults(defaults));
    if let Some(file) = file {
        if !file.is_file() {
            return Err(SettingsError::NoFile(file.to_owned()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    checked(figment.merge(Environment::of_process()).merge(Serialized::globals(flags)))
}

pub(crate) fn checked(figment: Figment) -> Result<Settings, SettingsError> {
    let mut settings: Settings =
        figment.extract().map_err(|error| SettingsError::Invalid(Box::new(error)))?;
    scheduling::complete(&mut settings);
    check(&settings)?;
    Ok(settings)
}

fn check(settings: &Settings) -> Result<(), SettingsError> {
    bounds::check(settings)?;
    scheduling::check(settings)?;
    // A key that was meant to be set must not leave the door open.
    if settings.api_key.iter().any(String::is_empty) {
        let problem = "is empty: set a key, or leave the setting out to let everybody in".to_owned();
        return Err(SettingsError::OutOfRange { key: "api_key", problem });
    }
    if settings.attention_backend != "fa_vattn" {
        return Err(SettingsError::OutOfRange {
            key: "attention_backend",
            problem: format!(
                "`{}` is not offered: keys and values are contiguous in virtual memory here, which is `fa_vattn`",
                settings.attention_backend
            ),
        });
    }
    // The latter is what is loaded in any case.
    if !matches!(&*settings.load_format, "auto" | "dummy" | "safetensors") {
        return Err(SettingsError::OutOfRange {
            key: "load_format",
            problem: format!("must be auto or dummy, not `{}`", settings.load_format),
        });
    }
    if !(settings.gpu_memory_utilization > 0.0 && settings.gpu_memory_utilization <= 1.0) {
        return Err(SettingsError::OutOfRange {
            key: "gpu_memory_utilization",
            problem: format!("must be over 0 and at most 1, not {}", settings.gpu_memory_utilization),
        });
    }
    Ok(())
}

/// One sentence a figment error: which key, what is wrong, from where.
fn describe(error: &figment::Error) -> String {
    let sentences: Vec<String> = error
        .clone()
        .into_iter()
        .map(|error| {
            let is_environment = error.metadata.as_ref().is_some_and(|metadata| metadata.name == SOURCE);
            let source = error.metadata.as_ref().map_or_else(String::new, |metadata| {
                let place = metadata.source.as_ref().map(|source| format!(" {source}")).unwrap_or_default();
                format!(" (from {}{place})", metadata.name)
            });
            let key = error.path.join(".");
            match &error.kind {
                figment::error::Kind::UnknownField(name, _) => {
                    let source = if is_environment {
                        format!(" ({PREFIX}{} in {SOURCE})", name.to_uppercase())
                    } else {
                        source
                    };
                    let hint = nearest(name).map_or_else(String::new, |key| format!("; is {key} meant?"));
                    format!("there is no setting `{name}`{source}{hint}")
                }
                kind if key.is_empty() => format!("{kind}{source}"),
                kind => format!("setting {key}: {kind}{source}"),
            }
        })
        .collect();
    sentences.join("; ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use std::io::Write;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(arguments: &[&str]) -> Flags {
        Command::parse_from(std::iter::once("fused").chain(arguments.iter().copied())).flags
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_watchdogs_time_is_bounded() {
        for (given, is_right) in
            [("0", true), ("0.5", true), ("86400", true), ("86401", false), ("-1", false), ("nan", false)]
        {
            let loaded = load(&flags(&[&format!("--watchdog-timeout-s={given}")]));
            assert_eq!(loaded.is_ok(), is_right, "{given}");
            if let Err(error) = loaded {
                assert!(error.to_string().starts_with("setting watchdog_timeout_s: must be from 0 to 86400"));
            }
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = file("port = 9000\ntoken_budget = 64\nengine = [\"http://a:1\", \"http://b:1\"]\n");
        let path = file.path().to_str().unwrap();
        let settings = load(&flags(&["--config", path, "--port", "9001"])).unwrap();
        assert_eq!(
            (settings.port, settings.token_budget, settings.max_num_sequences),
            (9001, Some(64), None)
        );
        assert_eq!(settings.engine, ["http://a:1", "http://b:1"]);
    }

    #[test]
    fn a_tools_own_defaults_give_way_like_any() {
        #[derive(Parser)]
        struct Tool {
            #[command(flatten)]
            flags: EngineFlags,
        }
        let file = file("max_num_sequences = 9\ntoken_budget = 99\nport = 1\n");
        let path = file.path().to_str().unwrap();
        let flags = Tool::parse_from(["tool", "--config", path, "--token-budget", "88"]).flags;
        let defaults = Settings { prefix_cache: false, max_num_sequences: Some(7), ..Settings::default() };
        let settings = load_engine(defaults, &flags).unwrap();
        assert_eq!((settings.max_num_sequences, settings.token_budget), (Some(9), Some(88)));
        assert!(!settings.prefix_cache);
    }

    #[test]
    fn the_names_of_the_systems_it_replaces_are_accepted() {
        let settings = load(&flags(&[
            "--model_name",
            "/models/m",
            "--patch_tokenizer_path",
            "p.json",
            "--model_attention_backend",
            "fa_vattn",
            "--model_block_size",
            "2097152",
            "--replica_scheduler_provider",
            "simple_chunking",
            "--sarathi_chunk_size",
            "2048",
            "--sarathi_high_chunk_size",
            "1024",
            "--sarathi_low_chunk_size",
            "64",
            "--sarathi_chunk_schedule_max_tokens",
            "8192",
            "--sarathi_chunk_schedule_stages",
            "4",
        ]))
        .unwrap();
        assert_eq!(settings.model.as_deref(), Some("/models/m"));
        assert_eq!(settings.patch_vocabulary.as_deref(), Some("p.json"));
        assert_eq!(settings.page_bytes, Some(2_097_152));
        assert_eq!((&*settings.scheduling_policy, settings.token_budget), ("simple_chunking", Some(2048)));
        assert_eq!((settings.chunk_size_high, settings.chunk_size_low), (Some(1024), Some(64)));
        assert_eq!(settings.chunk_schedule_max_tokens, Some(8192));
        assert_eq!(settings.chunk_schedule_stages, Some(4));
        let error = load(&flags(&["--model_attention_backend", "fa_paged"])).unwrap_err().to_string();
        assert!(error.contains("attention_backend") && error.contains("fa_paged"), "{error}");
    }

    #[test]
    fn the_names_of_other_servers_for_the_same_thing_are_accepted() {
        let settings = load(&flags(&[
            "--max-num-seqs",
            "7",
            "--max-num-batched-tokens",
            "1024",
            "--gpu-memory-utilization",
            "0.5",
            "--enable-prefix-caching",
            "--context-length",
            "512",
        ]))
        .unwrap();
        assert_eq!((settings.max_num_sequences, settings.token_budget), (Some(7), Some(1024)));
        assert_eq!((settings.max_model_len, settings.prefix_cache), (Some(512), true));
        let named = flags(&["--model-path", "/a"]);
        assert_eq!(load(&named).unwrap().model.as_deref(), Some("/a"));
        assert_eq!(load(&named.with_model(Some("/b".to_owned()))).unwrap().model.as_deref(), Some("/b"));
    }

    #[test]
    fn an_unknown_key_says_where_it_came_from() {
        let file = file("modle = \"x\"\n");
        let path = file.path().to_str().unwrap();
        let error = load(&flags(&["--config", path])).unwrap_err().to_string();
        assert!(error.contains("`modle`") && error.contains(path), "{error}");
        assert!(error.ends_with("; is model meant?"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_key_and_place() {
        let file = file("port = \"many\"\n");
        let path = file.path().to_str().unwrap();
        let error = load(&flags(&["--config", path])).unwrap_err().to_string();
        assert!(error.contains("port") && error.contains(path), "{error}");
    }

    #[test]
    fn a_missing_file_and_a_zero_are_refused() {
        let missing = load(&flags(&["--config", "no/such.toml"])).unwrap_err().to_string();
        assert!(missing.contains("no/such.toml"), "{missing}");
        let empty = load(&flags(&["--api-key", ""])).unwrap_err().to_string();
        assert!(empty.contains("api_key"), "{empty}");
        let keep_alive = load(&flags(&["--http-keep-alive-s", "86401"])).unwrap_err().to_string();
        assert!(keep_alive.contains("http_keep_alive_s"), "{keep_alive}");
        let zero = load(&flags(&["--max-num-sequences", "0"])).unwrap_err().to_string();
        assert!(zero.contains("max_num_sequences"), "{zero}");
    }

    #[test]
    fn shown_settings_can_be_read_back_and_hide_keys() {
        let settings =
            load(&flags(&["--api-key", "secret", "--max-model-len", "77", "--chunk-size-high", "256"]))
                .unwrap();
        let shown = settings.to_toml().unwrap();
        assert!(!shown.contains("secret"));
        assert!(shown.contains("# kv_cache_bytes is not set"), "{shown}");
        let file = file(&shown);
        let again = load(&flags(&["--config", file.path().to_str().unwrap()])).unwrap();
        assert_eq!(again, Settings { api_key: Vec::new(), ..settings });
        assert_eq!(again.max_model_len, Some(77));
    }
}
