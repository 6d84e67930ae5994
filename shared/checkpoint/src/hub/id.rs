use crate::{Error, Result};

/// `[org/]name[@revision]`, of characters that mean nothing in a path or an address.
pub(super) struct HubId {
    pub(super) repo: String,
    pub(super) revision: String,
}

impl HubId {
    pub(super) fn parse(model: &str) -> Result<Self> {
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        let well_formed = repo.split('/').count() <= 2
            && repo.split('/').all(|part| is_plain(part, 96))
            && revision.len() <= 256
            && revision.split('/').all(|part| is_plain(part, 96));
        if !well_formed {
            return Err(Error::NotAModel { model: model.escape_default().to_string() });
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// The model's folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }
}

/// Whether a word is safe as one component of a path and of an address.
pub(super) fn is_plain(word: &str, max_len: usize) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !word.is_empty() && word.len() <= max_len && !word.starts_with('.') && word.chars().all(known)
}
