//! How much memory requests may take where nobody has said it.

use fused_settings::Settings;

const DEFAULT_BYTES: usize = 256 << 20;
/// The part of a container's memory that is for requests: what the process takes itself, connections, and what the
/// allocator keeps come to the rest.
const PART: usize = 4;

/// The memory that requests may take in a gateway, and their texts in a tokenizer.
pub(super) fn max_bytes(settings: &Settings) -> usize {
    let container = || fused_engine::container_limit_bytes().and_then(|limit| usize::try_from(limit).ok());
    let default = || container().map_or(DEFAULT_BYTES, |limit| DEFAULT_BYTES.min(limit / PART));
    settings.max_buffered_bytes.unwrap_or_else(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_counts_and_the_default_is_within_bounds() {
        let set = Settings { max_buffered_bytes: Some(7 << 20), ..Settings::default() };
        assert_eq!(max_bytes(&set), 7 << 20);
        let default = max_bytes(&Settings::default());
        assert!(default > 0 && default <= DEFAULT_BYTES);
    }
}
