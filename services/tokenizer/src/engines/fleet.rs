use std::sync::Arc;
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::ModelInfo;
use fused_proto::engine::v1::engine_server::SERVICE_NAME;
use fused_status::{Code, Error, Result};
use fused_transport::{Channel, Fault, Fleet, Kind, Readiness, Replica, Timing};
use fused_vocabulary::Fingerprint;
use tokio::sync::watch;

use super::client::{self, EngineRequest, EngineStream, PromptAnswer};
use crate::events;

/// The engines, each with what is known about it. They come and go.
pub(crate) struct Engines(Arc<Fleet<Engine>>);

/// The model that a usable engine serves.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    /// The name that answers tell.
    pub(crate) name: String,
    /// Other names under which it is served.
    pub(crate) aliases: Vec<String>,
    /// Prompt and output tokens together.
    pub(crate) max_model_len: usize,
    /// Rows of its embedding; some have more than there are tokens.
    pub(crate) vocab_size: usize,
    /// What the engine says of it, passed on unread.
    pub(crate) info: ModelInfo,
}

/// What makes an engine usable: the tokenizer's vocabulary.
struct Engine {
    vocabulary: Fingerprint,
    /// The names to serve under; none: the engine's.
    model_names: Vec<String>,
}

impl Engines {
    /// Follows the list of engines and the health of each.
    pub(crate) fn start(
        replicas: watch::Receiver<Vec<Replica>>,
        vocabulary: Fingerprint,
        model_names: Vec<String>,
        check_interval: Duration,
        lifecycle: &Lifecycle,
    ) -> Self {
        let timing = Timing { retry: check_interval.max(Duration::from_millis(1)), ..Timing::default() };
        Self(Fleet::start(Engine { vocabulary, model_names }, replicas, timing, lifecycle))
    }

    /// Whether any engine is usable; changes as that changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.0.readiness()
    }

    /// Engines that requests can go to, for tests.
    #[cfg(test)]
    pub(crate) fn num_usable(&self) -> usize {
        self.0.num_usable()
    }

    /// The engines there are, usable or not, for tests.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.names()
    }

    /// The model of the first usable engine.
    ///
    /// # Errors
    /// `Unavailable` where none is.
    pub(crate) fn model(&self) -> Result<Arc<Model>> {
        self.0.facts().ok_or_else(|| Error::new(Code::Unavailable, "no engine is ready; try again"))
    }

    /// Sends a request to the least loaded engine and waits for its first answer. Where that engine cannot answer, the
    /// request goes to another one, once.
    pub(crate) async fn generate(&self, request: &EngineRequest) -> Result<(EngineStream, PromptAnswer)> {
        self.0.send(|lease| client::generate(request, lease)).await
    }
}

impl Kind for Engine {
    const SERVICE: &'static str = SERVICE_NAME;
    const NAME: &'static str = "engine";
    type Facts = Model;

    async fn ask(&self, channel: Channel) -> std::result::Result<Model, Fault> {
        let info = client::model(channel)
            .await
            .map_err(|error| Fault::Unreachable(error.detail().unwrap_or(error.message()).to_owned()))?;
        let fingerprint = info.vocabulary_fingerprint();
        if fingerprint != self.vocabulary.to_string() {
            let ours = self.vocabulary;
            return Err(Fault::Misplaced(format!(
                "has the vocabulary {fingerprint}, but the tokenizer has {ours}"
            )));
        }
        let mut names = self.model_names.iter().cloned();
        let name = names.next().unwrap_or_else(|| info.id().to_owned());
        let (max_model_len, vocab_size) = (info.max_model_len() as usize, info.vocab_size() as usize);
        Ok(Model { name, aliases: names.collect(), max_model_len, vocab_size, info })
    }

    fn replica_changed(&self, name: &str, fault: Option<&Fault>) {
        events::engine_changed(name, fault);
    }

    fn usable_changed(&self, num_usable: usize) {
        events::engines_usable(num_usable);
    }

    fn readiness_changed(&self, readiness: &Readiness) {
        events::readiness_changed(readiness);
    }

    fn retried(&self, name: &str, error: &Error) {
        events::retried(name, error);
    }
}
