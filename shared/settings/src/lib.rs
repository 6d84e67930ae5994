//! Settings: defaults, then a TOML file, then the environment (`FUSED_…`), then flags; the later wins.
//!
//! One flat list of keys for all subcommands, so that one file and one set of variables can serve all three services.
//! A key has one name everywhere: `max_model_len` in the file, `FUSED_MAX_MODEL_LEN` in the environment,
//! `--max-model-len` as a flag. An unknown key is an error that says where it came from; an unknown variable is one only
//! where it looks like a misspelt key, for others have variables of such names, too.

mod bounds;
mod environment;
mod flags;
mod load;
mod scheduling;
mod service_flags;
mod settings;
mod spelling;

pub use environment::foreign_variables;
pub use flags::EngineFlags;
pub use load::{SettingsError, load, load_engine};
pub use scheduling::{ORDERS, POLICIES, PREFILL_ORDERS};
pub use service_flags::Flags;
pub use settings::Settings;
