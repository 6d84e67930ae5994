use std::env;
use std::path::PathBuf;

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::files::{Wanted, plain_name};
use crate::weights::{INDEX_FILE, ShardIndex, WEIGHTS_FILE};
use crate::{Error, ModelFiles, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// A broken transfer goes on where it stopped this many times.
const MAX_RETRIES: usize = 5;

/// What is downloaded beside the weights, where a model has it.
const FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "patch_vocabulary.json",
];

/// A hub of models and the local cache of what it gave, laid out as every Hugging Face client does.
pub(crate) struct Hub {
    endpoint: String,
    cache_dir: PathBuf,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// Reads HF_ENDPOINT, HF_HOME (else the home directory's cache), HF_TOKEN (else the token file beside the cache)
    /// and HF_HUB_OFFLINE.
    pub(crate) fn from_env() -> Result<Self> {
        let set = |key| env::var(key).ok().filter(|value| !value.is_empty());
        // Found here and not by the client, which panics where there is no home.
        let home = match set("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => env::home_dir().ok_or(Error::NoCacheDir)?.join(".cache").join("huggingface"),
        };
        let offline = set("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        Ok(Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            cache_dir: home.join("hub"),
            token: set("HF_TOKEN"),
            offline: offline.is_some_and(|value| matches!(value.as_str(), "1" | "on" | "yes" | "true")),
        })
    }

    /// Brings what is missing of the model `org/name[@revision]` into the cache and opens it there. All files come from
    /// one commit, whatever is pushed meanwhile. A hub that fails is no obstacle where the cache has the model.
    pub(crate) fn download(&self, model: &str, wanted: Wanted) -> Result<ModelFiles> {
        let id = HubId::parse(model)?;
        let cache = Cache::new(self.cache_dir.clone()).repo(id.at(&id.revision));
        if self.offline {
            let dir = cached(&cache, &id).ok_or_else(|| Error::Offline { model: model.to_owned() })?;
            return ModelFiles::named(model.to_owned(), dir);
        }
        let error = |what: &str, source| Error::Download {
            model: model.to_owned(),
            what: what.to_owned(),
            endpoint: self.endpoint.clone(),
            source: Box::new(source),
        };
        let found = self.api().and_then(|api| Ok((api.repo(id.at(&id.revision)).info()?, api)));
        let (info, api) = match (found, cached(&cache, &id)) {
            (Ok(found), _) => found,
            (Err(cause), None) => return Err(error("its list of files", cause)),
            (Err(cause), Some(dir)) => {
                tracing::warn!(model, endpoint = self.endpoint, %cause, "the hub failed; the cached model is served");
                return ModelFiles::named(model.to_owned(), dir);
            }
        };
        plain_name(model, &info.sha)?;
        let dir = cache.pointer_path(&info.sha);
        let repo = api.repo(id.at(&info.sha));
        let fetch = |file: &str| {
            if dir.join(file).exists() {
                Ok(())
            } else {
                fetch(&repo, file).map_err(|cause| error(file, cause))
            }
        };
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        for file in FILES.into_iter().filter(|file| has(file)) {
            fetch(file)?;
        }
        if wanted == Wanted::NoWeights {
            tracing::debug!(model, "the weights are left where they are");
        } else if has(WEIGHTS_FILE) {
            fetch(WEIGHTS_FILE)?;
        } else if has(INDEX_FILE) {
            fetch(INDEX_FILE)?;
            let index = ModelFiles::named(model.to_owned(), dir.clone())?.require(INDEX_FILE)?;
            for shard in ShardIndex::parse(model, &index)?.shards(model)? {
                fetch(shard)?;
            }
        } else {
            return Err(Error::MissingFile {
                model: model.to_owned(),
                file: format!("{WEIGHTS_FILE} (or {INDEX_FILE})"),
            });
        }
        // Last, so that only a whole model is found by its revision's name when the hub cannot be asked.
        if let Err(cause) = cache.create_ref(&info.sha) {
            tracing::warn!(model, %cause, "the cache cannot note the revision; the model is not found in it offline");
        }
        ModelFiles::named(model.to_owned(), dir)
    }

    fn api(&self) -> std::result::Result<hf_hub::api::sync::Api, ApiError> {
        let mut builder = ApiBuilder::from_cache(Cache::new(self.cache_dir.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_retries(MAX_RETRIES)
            .with_progress(false);
        if let Some(token) = &self.token {
            builder = builder.with_token(Some(token.clone()));
        }
        builder.build()
    }
}

fn fetch(repo: &ApiRepo, file: &str) -> std::result::Result<(), ApiError> {
    let progress = LogProgress { file: file.to_owned(), total_bytes: 0, done_bytes: 0, logged_tenths: 0 };
    repo.download_with_progress(file, progress).map(|_| ())
}

/// The cached model, by its branch or tag, or by the commit itself.
fn cached(cache: &CacheRepo, id: &HubId) -> Option<PathBuf> {
    let config = "config.json";
    let by_commit = || Some(cache.pointer_path(&id.revision).join(config)).filter(|path| path.exists());
    let mut path = cache.get(config).or_else(by_commit)?;
    path.pop();
    Some(path)
}

/// `org/name[@revision]`, of characters that mean nothing in a path or an address.
struct HubId {
    repo: String,
    revision: String,
}

impl HubId {
    fn parse(model: &str) -> Result<Self> {
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        let plain = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && part.chars().all(known)
        };
        let well_formed = repo.split('/').count() == 2
            && repo.split('/').all(plain)
            && revision.len() <= 256
            && revision.split('/').all(plain);
        if !well_formed {
            return Err(Error::NotAModel { model: model.escape_default().to_string() });
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }
}

/// Logs a download at its start and at every tenth: a server's log is not a terminal to draw a bar on.
struct LogProgress {
    file: String,
    total_bytes: usize,
    done_bytes: usize,
    logged_tenths: usize,
}

impl Progress for LogProgress {
    /// Called again when a broken transfer goes on.
    fn init(&mut self, total_bytes: usize, _file: &str) {
        if self.total_bytes == 0 {
            tracing::info!(file = self.file, total_bytes, "downloading");
        }
        self.total_bytes = total_bytes;
        self.done_bytes = 0;
    }

    fn update(&mut self, num_bytes: usize) {
        self.done_bytes = self.done_bytes.saturating_add(num_bytes);
        let tenths = self.done_bytes.saturating_mul(10) / self.total_bytes.max(1);
        if tenths > self.logged_tenths && tenths < 10 {
            self.logged_tenths = tenths;
            tracing::info!(file = self.file, percent = tenths * 10, "downloading");
        }
    }

    fn finish(&mut self) {
        tracing::info!(file = self.file, total_bytes = self.total_bytes, "downloaded");
    }
}

#[cfg(test)]
mod tests;
