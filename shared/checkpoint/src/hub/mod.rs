//! Models from a hub, and the local cache of what it gave. What a hub says becomes names of files and addresses that
//! are asked, so none of it is believed: `cache` and `client` take only words that cannot lead elsewhere.

mod cache;
mod client;
mod error;
mod id;
mod transfer;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::cache::ModelCache;
use self::client::Client;
pub use self::error::HubError;
use self::id::HubId;
use crate::files::Wanted;
use crate::files::{MAX_FOLDER_FILES, TEMPLATE_FOLDER, plain_name};
use crate::weights::{INDEX_FILE, ShardIndex, WEIGHTS_FILE};
use crate::{Error, ModelFiles, Result, foreign};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// How long another process that downloads the same file may bring nothing.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);

/// What is downloaded beside the weights, where a model has it.
const FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "patch_vocabulary.json",
];

/// A hub of models and the local cache of what it gave, laid out as every Hugging Face client does.
pub(crate) struct Hub {
    endpoint: String,
    cache_dir: PathBuf,
    token: Option<String>,
    offline: bool,
    lock_patience: Duration,
}

impl Hub {
    /// Reads the variables that Hugging Face's own clients read: HF_ENDPOINT; HF_HUB_CACHE, else HF_HOME, else the home
    /// directory's cache; HF_TOKEN, else HF_TOKEN_PATH, else the token file in HF_HOME; HF_HUB_OFFLINE.
    pub(crate) fn from_env() -> Result<Self> {
        Self::from_variables(&|key| env::var(key).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(set: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from);
            let caches = caches.or_else(|| env::home_dir().map(|home| home.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let cache_dir = set("HF_HUB_CACHE").map(PathBuf::from);
        let cache_dir = cache_dir.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(Error::NoCacheDir)?;
        let token_path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(token_path?).ok());
        let offline = set("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        Ok(Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            cache_dir,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|value| matches!(value.as_str(), "1" | "on" | "yes" | "true")),
            lock_patience: LOCK_PATIENCE,
        })
    }

    /// Brings what is missing of the model `[org/]name[@revision]` into the cache and opens it there. All files come
    /// from one commit, whatever is pushed meanwhile. A hub that fails is no obstacle where the cache has the model.
    pub(crate) fn download(&self, model: &str, wanted: Wanted) -> Result<ModelFiles> {
        let id = HubId::parse(model)?;
        let cache = ModelCache::new(&self.cache_dir, &id);
        let cached = cache.find(&id.revision);
        if self.offline {
            let dir = cached.ok_or_else(|| Error::Offline { model: model.to_owned() })?;
            return ModelFiles::named(model.to_owned(), dir);
        }
        let error = |what: &str, source| Error::Download {
            model: model.to_owned(),
            what: what.to_owned(),
            endpoint: self.endpoint.clone(),
            source: Box::new(source),
        };
        let client = Client::new(&self.endpoint, self.token.clone());
        let listing = match (client.listing(&id), cached) {
            (Ok(listing), _) => listing,
            (Err(cause), None) => return Err(error("its list of files", cause)),
            (Err(cause), Some(dir)) => {
                tracing::warn!(model, endpoint = self.endpoint, %cause, "the hub failed; the cached model is served");
                return ModelFiles::named(model.to_owned(), dir);
            }
        };
        let dir = cache.snapshot(&listing.commit);
        let fetch = |file: &str| {
            plain_name(
                model,
                file.strip_prefix(TEMPLATE_FOLDER).map_or(file, |rest| rest.trim_start_matches('/')),
            )?;
            if dir.join(file).exists() {
                return Ok(());
            }
            let url = client.file_url(&id, &listing.commit, file);
            self.fetch(&client, &cache, &url, &listing.commit, file).map_err(|cause| error(file, cause))
        };
        for file in FILES.into_iter().chain(foreign::marks()).filter(|file| listing.has(file)) {
            fetch(file)?;
        }
        for file in listing.in_folder(TEMPLATE_FOLDER, ".jinja").take(MAX_FOLDER_FILES) {
            fetch(file)?;
        }
        if wanted == Wanted::NoWeights {
            tracing::debug!(model, "the weights are left where they are");
        } else if listing.has(WEIGHTS_FILE) {
            fetch(WEIGHTS_FILE)?;
        } else if listing.has(INDEX_FILE) {
            fetch(INDEX_FILE)?;
            let index = ModelFiles::named(model.to_owned(), dir.clone())?.require(INDEX_FILE)?;
            // One that the index names and the hub lacks may be needed by nobody.
            for shard in ShardIndex::parse(model, &index)?.shards(model)? {
                plain_name(model, shard)?;
                if listing.has(shard) {
                    fetch(shard)?;
                }
            }
        } else {
            return Err(foreign::no_weights(model, &listing.names()));
        }
        // Last, so that only a whole model is found by its revision's name when the hub cannot be asked.
        if let Err(cause) = cache.note(&id.revision, &listing.commit) {
            tracing::warn!(model, %cause, "the cache cannot note the revision; the model is not found in it offline");
        }
        ModelFiles::named(model.to_owned(), dir)
    }

    /// Brings one file into the cache, by this process or by whichever does it already.
    fn fetch(
        &self,
        client: &Client,
        cache: &ModelCache,
        url: &str,
        commit: &str,
        file: &str,
    ) -> std::result::Result<(), HubError> {
        let metadata = client.metadata(url)?;
        let (blob, incomplete) = (cache.blob(&metadata.etag), cache.incomplete(&metadata.etag));
        let parent = blob.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|source| HubError::Cache { path: parent.to_owned(), source })?;
        let _lock = cache.lock(&metadata.etag, self.lock_patience)?;
        if !blob.exists() {
            transfer::transfer(client, url, &metadata, &incomplete, file)?;
            transfer::complete(&incomplete, &blob)?;
        }
        cache.link(&metadata.etag, commit, file)
    }
}

#[cfg(test)]
mod tests;
