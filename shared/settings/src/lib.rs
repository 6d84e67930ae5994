//! Settings: defaults, TOML file, environment, flags.
