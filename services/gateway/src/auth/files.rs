use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use super::KeyRing;
use super::keys::{ApiKeys, KeyHash, Tenant};
use super::limits::Limits;
use crate::events;

/// How often the files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_TENANTS: usize = 1024;
/// Every request is compared with every key.
const MAX_KEYS: usize = 8192;
const MAX_NAME_BYTES: usize = 64;

/// Where keys come from.
#[derive(Clone, Debug, Default)]
pub struct KeySources {
    /// As given.
    pub keys: Vec<String>,
    /// A file with one key a line; lines that begin with `#` are comments.
    pub key_file: Option<PathBuf>,
    /// A TOML file of tenants: names, keys or their hashes, limits.
    pub tenants_file: Option<PathBuf>,
}

/// A file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{} cannot be read", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}: {problem}", .path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to change.
        problem: String,
    },
}

/// What stands in the files.
#[derive(PartialEq, Eq)]
struct Texts {
    keys: Option<String>,
    tenants: Option<String>,
}

impl KeySources {
    /// Reads them.
    ///
    /// # Errors
    /// A file cannot be read, has no key, or has something wrong in it.
    pub fn load(&self) -> Result<ApiKeys, KeyFileError> {
        self.parse(&self.read()?)
    }

    /// Reads the files again every few seconds until the process stops, and takes what is new; of a file that cannot be
    /// used the keys from before stay.
    pub(crate) fn follow(self, ring: Arc<KeyRing>, lifecycle: &Lifecycle) {
        if self.key_file.is_none() && self.tenants_file.is_none() {
            return;
        }
        let stopped = lifecycle.stopped();
        let following = async move {
            let sources = Arc::new(self);
            // The first look takes what has changed since the start.
            let mut seen = None;
            let mut ticks = interval(CHECK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let now = sources.seen().await;
                if seen.as_ref() == Some(&now) {
                    continue;
                }
                let keys = match &now {
                    Ok(texts) => sources.parse(texts).map_err(|error| described(&error)),
                    Err(problem) => Err(problem.clone()),
                };
                match keys {
                    Ok(keys) => {
                        if seen.is_some() {
                            events::keys_reloaded(keys.num_keys());
                        }
                        ring.replace(keys);
                    }
                    Err(problem) => events::keys_refused(&problem),
                }
                seen = Some(now);
            }
        };
        lifecycle.spawn("gateway.keys", async move {
            tokio::select! {
                () = following => {}
                () = stopped => {}
            }
        });
    }

    /// What stands in the files, or why that cannot be said; off the threads that serve, because a file system may hang.
    async fn seen(self: &Arc<Self>) -> Result<Texts, String> {
        let sources = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || sources.read().map_err(|error| described(&error)));
        read.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn read(&self) -> Result<Texts, KeyFileError> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Texts { keys: text(&self.key_file)?, tenants: text(&self.tenants_file)? })
    }

    fn parse(&self, texts: &Texts) -> Result<ApiKeys, KeyFileError> {
        let mut keys = self.keys.clone();
        if let (Some(path), Some(text)) = (&self.key_file, &texts.keys) {
            keys.extend(lines(path, text)?);
        }
        let mut all = ApiKeys::new(keys);
        if let (Some(path), Some(text)) = (&self.tenants_file, &texts.tenants) {
            let invalid = |problem| KeyFileError::Invalid { path: path.clone(), problem };
            add_tenants(text, &mut all).map_err(invalid)?;
        }
        Ok(all)
    }
}

fn described(error: &KeyFileError) -> String {
    match error {
        KeyFileError::Unreadable { source, .. } => format!("{error}: {source}"),
        KeyFileError::Invalid { .. } => error.to_string(),
    }
}

/// The text of a file, without a byte order mark.
fn read(path: &Path) -> Result<String, KeyFileError> {
    let unreadable = |source| KeyFileError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("is larger than {MAX_FILE_BYTES} bytes");
        return Err(KeyFileError::Invalid { path: path.to_owned(), problem });
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// One key a line; what follows a `#` at the beginning of a line, or after a blank, is a comment.
fn lines(path: &Path, text: &str) -> Result<Vec<String>, KeyFileError> {
    let invalid = |problem| KeyFileError::Invalid { path: path.to_owned(), problem };
    let mut keys = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let mut words = line.split_whitespace();
        let Some(key) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        if words.next().is_some_and(|word| !word.starts_with('#')) {
            return Err(invalid(format!("line {number} has a blank in its key: put one key a line")));
        }
        keys.push(key.to_owned());
    }
    match keys.len() {
        0 => Err(invalid("has no key: put one a line".to_owned())),
        1..=MAX_KEYS => Ok(keys),
        num => Err(invalid(format!("has {num} keys, over {MAX_KEYS}"))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantsFile {
    #[serde(default)]
    tenant: Vec<TenantEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantEntry {
    name: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    key_sha256: Vec<String>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    max_requests_in_flight: Option<u32>,
}

fn add_tenants(text: &str, all: &mut ApiKeys) -> Result<(), String> {
    let file: TenantsFile = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    if file.tenant.is_empty() {
        return Err("has no tenant: write one [[tenant]] with a name and keys for each".to_owned());
    }
    if file.tenant.len() > MAX_TENANTS {
        return Err(format!("has {} tenants, over {MAX_TENANTS}", file.tenant.len()));
    }
    let mut names = BTreeSet::new();
    for entry in &file.tenant {
        let name = &entry.name;
        if !is_fit(name) {
            return Err(format!(
                "the tenant's name {name:?} must be 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 - _ ."
            ));
        }
        if !names.insert(name) {
            return Err(format!("the tenant {name} stands there twice"));
        }
        let keys = entry.hashes()?;
        for key in &keys {
            if all.has(key) {
                return Err(format!("a key of tenant {name} is another tenant's too"));
            }
        }
        let Some(first) = keys.first() else {
            return Err(format!("tenant {name} has no key: give keys or key_sha256"));
        };
        all.add(Tenant::new(Some(name), first, entry.limits()?), &keys);
    }
    match all.num_keys() {
        0..=MAX_KEYS => Ok(()),
        num => Err(format!("has {num} keys, over {MAX_KEYS}")),
    }
}

impl TenantEntry {
    fn hashes(&self) -> Result<Vec<KeyHash>, String> {
        let name = &self.name;
        let mut hashes = Vec::new();
        for key in &self.keys {
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(format!("a key of tenant {name} is empty or has a blank in it"));
            }
            hashes.push(Sha256::digest(key).into());
        }
        for hash in &self.key_sha256 {
            let hash = parse_hash(hash).ok_or_else(|| {
                format!("a key_sha256 of tenant {name} is no SHA-256: give 64 hexadecimal digits")
            })?;
            hashes.push(hash);
        }
        Ok(hashes)
    }

    fn limits(&self) -> Result<Limits, String> {
        for (field, limit) in [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
            ("max_requests_in_flight", self.max_requests_in_flight),
        ] {
            if limit == Some(0) {
                let name = &self.name;
                return Err(format!(
                    "{field} of tenant {name} must be at least 1; leave it out for no limit"
                ));
            }
        }
        Ok(Limits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            max_requests_in_flight: self.max_requests_in_flight,
        })
    }
}

fn is_fit(name: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_fit)
}

fn parse_hash(text: &str) -> Option<KeyHash> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Result<Vec<String>, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        lines(Path::new("keys"), text).map_err(|error| described(&error))
    }

    fn tenants(text: &str) -> Result<ApiKeys, String> {
        let mut all = ApiKeys::new(["plain"]);
        add_tenants(text, &mut all).map(|()| all)
    }

    #[test]
    fn comments_blank_lines_and_marks_are_no_keys() {
        let text = "\u{feff}sk-first\r\n# sk-old\n\n  #\n\tsk-second  # of somebody\nsk#third\n";
        assert_eq!(plain(text).unwrap(), ["sk-first", "sk-second", "sk#third"]);
        assert_eq!(plain("# none\n").unwrap_err(), "keys: has no key: put one a line");
        let blank = plain("sk-1\nsk 2\n").unwrap_err();
        assert!(blank.starts_with("keys: line 2 ") && !blank.contains("sk"), "{blank}");
    }

    #[test]
    fn tenants_have_names_keys_hashes_and_limits() {
        let hash: String = Sha256::digest("sk-c").iter().map(|byte| format!("{byte:02X}")).collect();
        let keys = tenants(&format!(
            "# Who calls.\n[[tenant]]\nname = \"search\"\nkeys = [\"sk-a\", \"sk-b\"]\nrequests_per_minute = 60\n\
             tokens_per_minute = 1000\nmax_requests_in_flight = 4\n\n[[tenant]]\nname = \"batch.1\"\n\
             key_sha256 = [\"{hash}\"]\n"
        ))
        .unwrap();
        let of = |key: &str| keys.tenant_of(key).unwrap();
        assert_eq!((keys.num_tenants(), keys.num_keys()), (3, 4));
        assert_eq!(of("sk-a").identity, of("sk-b").identity);
        let all = Limits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(1000),
            max_requests_in_flight: Some(4),
        };
        assert_eq!((&*of("sk-b").label, of("sk-b").limits), ("search", all));
        assert_eq!((&*of("sk-c").label, of("sk-c").limits), ("batch.1", Limits::default()));
        assert_eq!(&*of("plain").label, "unnamed");
        assert!(keys.tenant_of(&hash).is_none());
    }

    #[test]
    fn what_is_wrong_with_a_tenant_is_named() {
        for (text, part) in [
            ("", "has no tenant"),
            ("[[tenant]]\nname = \"a\"\n", "tenant a has no key"),
            ("[[tenant]]\nkeys = [\"x\"]\n", "name"),
            ("[[tenant]]\nname = \"a b\"\nkeys = [\"x\"]\n", "\"a b\""),
            ("[[tenant]]\nname = \"a\"\nkeys = [\"\"]\n", "empty"),
            ("[[tenant]]\nname = \"a\"\nkeys = [\"plain\"]\n", "another tenant's"),
            ("[[tenant]]\nname = \"a\"\nkey_sha256 = [\"abc\"]\n", "64 hexadecimal"),
            ("[[tenant]]\nname = \"a\"\nkeys = [\"x\"]\nrpm = 3\n", "rpm"),
            ("[[tenant]]\nname = \"a\"\nkeys = [\"x\"]\nrequests_per_minute = 0\n", "at least 1"),
            ("[[tenant]]\nname = \"a\"\nkeys = [\"x\"]\ntokens_per_minute = -1\n", "tokens_per_minute"),
            (
                "[[tenant]]\nname = \"a\"\nkeys = [\"x\"]\n[[tenant]]\nname = \"a\"\nkeys = [\"y\"]\n",
                "stands there twice",
            ),
        ] {
            let problem = tenants(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
