use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::limits::{Bucket, Limits};

/// SHA-256 of a key: comparing hashes takes the same time whatever is sent, and a key's length does not show.
pub(super) type KeyHash = [u8; 32];

/// The tenants of keys that have no name.
const UNNAMED: &str = "unnamed";

/// The keys that are let in, each with its tenant.
#[derive(Clone, Default)]
pub struct ApiKeys {
    hashes: Vec<KeyHash>,
    /// The place of each key's tenant.
    owners: Vec<u32>,
    tenants: Vec<Arc<Tenant>>,
}

/// Whoever has a key, or several.
pub(crate) struct Tenant {
    /// For metrics; of the operator's choosing.
    pub(super) label: Arc<str>,
    /// What makes it another one than the rest, and shows no key.
    pub(super) identity: [u8; 32],
    pub(super) limits: Limits,
    /// Outlives a reload of the keys.
    usage: Arc<Mutex<Usage>>,
}

/// What a tenant has taken.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) requests: Bucket,
    pub(super) tokens: Bucket,
    pub(super) num_in_flight: u32,
}

impl Tenant {
    pub(super) fn new(name: Option<&str>, first_key: &KeyHash, limits: Limits) -> Self {
        let mut identity = Sha256::new_with_prefix(b"fused tenant\0");
        match name {
            Some(name) => identity.update(name),
            None => identity.update(first_key),
        }
        let bucket = Bucket::new(Instant::now());
        Self {
            label: name.unwrap_or(UNNAMED).into(),
            identity: identity.finalize().into(),
            limits,
            usage: Arc::new(Mutex::new(Usage { requests: bucket, tokens: bucket, num_in_flight: 0 })),
        }
    }

    pub(super) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl ApiKeys {
    /// These keys, each a tenant of its own without limits. An empty one is kept too and matches nobody: a key that was
    /// meant to be set must not open the door.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut all = Self::default();
        for key in keys {
            let hash = Sha256::digest(key.as_ref()).into();
            all.add(Tenant::new(None, &hash, Limits::default()), &[hash]);
        }
        all
    }

    /// Lets a tenant in by each of its keys.
    pub(super) fn add(&mut self, tenant: Tenant, keys: &[KeyHash]) {
        let owner = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        self.tenants.push(Arc::new(tenant));
        self.hashes.extend_from_slice(keys);
        self.owners.resize(self.hashes.len(), owner);
    }

    /// Whether no key was given: everybody is let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    pub(super) fn has(&self, key: &KeyHash) -> bool {
        self.hashes.contains(key)
    }

    pub(super) fn num_keys(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn num_tenants(&self) -> usize {
        self.tenants.len()
    }

    /// Looks at every key whatever is found.
    pub(super) fn tenant_of(&self, token: &str) -> Option<Arc<Tenant>> {
        let hash: KeyHash = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (key, owner) in self.hashes.iter().zip(&self.owners) {
            found.conditional_assign(owner, key.ct_eq(&hash));
        }
        self.tenants.get(found as usize).filter(|_| !token.is_empty()).cloned()
    }

    /// Goes on counting where the keys before have counted.
    fn continuing(mut self, before: &Self) -> Self {
        for tenant in &mut self.tenants {
            let known = before.tenants.iter().find(|known| known.identity == tenant.identity);
            if let (Some(known), Some(tenant)) = (known, Arc::get_mut(tenant)) {
                tenant.usage = Arc::clone(&known.usage);
            }
        }
        self
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.hashes.len())
    }
}

/// The keys of this moment.
#[derive(Debug)]
pub(crate) struct KeyRing(RwLock<Arc<ApiKeys>>);

impl KeyRing {
    pub(crate) fn new(keys: ApiKeys) -> Self {
        Self(RwLock::new(Arc::new(keys)))
    }

    pub(super) fn current(&self) -> Arc<ApiKeys> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, keys: ApiKeys) {
        let keys = Arc::new(keys.continuing(&self.current()));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_is_admitted() {
        let keys = ApiKeys::new(["sk-One", "sk-two"]);
        let identity = |token: &str| keys.tenant_of(token).map(|tenant| tenant.identity);
        assert!(identity("sk-One").is_some() && identity("sk-two").is_some());
        assert_ne!(identity("sk-One"), identity("sk-two"));
        for token in ["", "sk-one", "sk-", "sk-One ", "sk-two1", "sk-Onesk-two"] {
            assert!(identity(token).is_none(), "{token}");
        }
    }

    #[test]
    fn an_empty_key_opens_nothing() {
        let keys = ApiKeys::new([""]);
        assert!(!keys.is_empty());
        assert!(keys.tenant_of("").is_none());
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", ApiKeys::new(["sk-secret"])), "1 keys");
    }

    #[test]
    fn new_keys_go_on_counting_for_tenants_that_stay() {
        let ring = KeyRing::new(ApiKeys::new(["a", "b"]));
        let before = ring.current().tenant_of("a").unwrap();
        before.usage().num_in_flight = 7;
        ring.replace(ApiKeys::new(["c", "a"]));
        let current = ring.current();
        assert!(current.tenant_of("b").is_none());
        assert_eq!(current.tenant_of("c").unwrap().usage().num_in_flight, 0);
        // Both ways: a request that was let in by the old keys ends with the new ones.
        assert_eq!(current.tenant_of("a").unwrap().usage().num_in_flight, 7);
        before.usage().num_in_flight = 6;
        assert_eq!(current.tenant_of("a").unwrap().usage().num_in_flight, 6);
    }
}
