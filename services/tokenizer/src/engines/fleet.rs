use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::ModelInfo;
use fused_status::{Code, Error, Result};
use fused_vocabulary::Fingerprint;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::client::{Client, EngineRequest, EngineStream, PromptAnswer};
use super::routing::{Candidate, choose};
use super::{EngineEndpoint, Readiness};
use crate::error::EngineFault;
use crate::events;

/// The engines, each with what is known about it.
pub(crate) struct Fleet {
    engines: Vec<Engine>,
    vocabulary: Fingerprint,
    /// The name to serve under; none: the engine's.
    model_name: Option<String>,
    readiness: watch::Sender<Readiness>,
    turn: AtomicUsize,
}

struct Engine {
    name: String,
    client: Client,
    state: Mutex<State>,
    requests_in_flight: Arc<AtomicUsize>,
}

type State = std::result::Result<Arc<Model>, EngineFault>;

/// The model that a usable engine serves.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    /// The name it is served under.
    pub(crate) name: String,
    /// Prompt and output tokens together.
    pub(crate) max_model_len: usize,
    /// What the engine says of it, passed on unread.
    pub(crate) info: ModelInfo,
}

/// One request in flight at an engine; lives in its response stream.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Load {
    fn begin(requests_in_flight: &Arc<AtomicUsize>) -> Self {
        requests_in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(requests_in_flight))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fleet {
    /// Takes the engines and starts a task for each that asks it for its model, now and again and again.
    pub(crate) fn start(
        endpoints: Vec<EngineEndpoint>,
        vocabulary: Fingerprint,
        model_name: Option<String>,
        check_interval: Duration,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let engine = |endpoint: EngineEndpoint| Engine {
            name: endpoint.name,
            client: Client::new(endpoint.channel),
            state: Mutex::new(Err(EngineFault::Unknown)),
            requests_in_flight: Arc::default(),
        };
        let engines: Vec<Engine> = endpoints.into_iter().map(engine).collect();
        let (readiness, _) = watch::channel(not_ready(&engines));
        let fleet = Arc::new(Self { engines, vocabulary, model_name, readiness, turn: AtomicUsize::new(0) });
        for idx in 0..fleet.engines.len() {
            let stopped = lifecycle.stopped();
            let checks = Arc::clone(&fleet).check_forever(idx, check_interval);
            lifecycle.spawn("engine-check", async move {
                tokio::select! {
                    () = stopped => {}
                    () = checks => {}
                }
            });
        }
        fleet
    }

    /// Whether any engine is usable; changes as that changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Engines that requests can go to.
    pub(crate) fn num_usable(&self) -> usize {
        self.engines.iter().filter(|engine| engine.state().is_ok()).count()
    }

    /// The model of the first usable engine.
    ///
    /// # Errors
    /// `Unavailable` where none is.
    pub(crate) fn model(&self) -> Result<Arc<Model>> {
        self.engines.iter().find_map(|engine| engine.state().ok()).ok_or_else(|| self.unavailable())
    }

    /// Sends a request to the least loaded engine and waits for its first answer. An engine that is lost before that is
    /// set aside, and the request goes to another one, once.
    pub(crate) async fn generate(&self, request: &EngineRequest) -> Result<(EngineStream, PromptAnswer)> {
        let first = self.choose(None).ok_or_else(|| self.unavailable())?;
        let error = match self.generate_on(first, request).await {
            Err(error) if matches!(error.code(), Code::Unavailable | Code::ShuttingDown) => error,
            answer => return answer,
        };
        self.set_state(first, Err(EngineFault::Unreachable(error.to_string())));
        let Some(second) = self.choose(Some(first)) else { return Err(error) };
        events::retried(&self.engines[first].name, &error);
        self.generate_on(second, request).await
    }

    async fn generate_on(&self, idx: usize, request: &EngineRequest) -> Result<(EngineStream, PromptAnswer)> {
        let engine = &self.engines[idx];
        engine.client.generate(request, Load::begin(&engine.requests_in_flight)).await
    }

    fn choose(&self, except: Option<usize>) -> Option<usize> {
        let usable = self
            .engines
            .iter()
            .enumerate()
            .filter(|(idx, engine)| Some(*idx) != except && engine.state().is_ok());
        let candidates: Vec<_> = usable
            .map(|(idx, engine)| Candidate {
                idx,
                requests_in_flight: engine.requests_in_flight.load(Ordering::Relaxed),
            })
            .collect();
        choose(&candidates, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    async fn check_forever(self: Arc<Self>, idx: usize, interval: Duration) {
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let state = match self.engines[idx].client.model().await {
                Ok(info) => self.usable(info),
                Err(error) => {
                    Err(EngineFault::Unreachable(error.detail().unwrap_or(error.message()).to_owned()))
                }
            };
            self.set_state(idx, state);
        }
    }

    fn usable(&self, info: ModelInfo) -> State {
        let fingerprint = info.vocabulary_fingerprint();
        if fingerprint != self.vocabulary.to_string() {
            let engine = fingerprint.to_owned();
            return Err(EngineFault::OtherVocabulary { engine, tokenizer: self.vocabulary });
        }
        let name = self.model_name.clone().unwrap_or_else(|| info.id().to_owned());
        Ok(Arc::new(Model { name, max_model_len: info.max_model_len() as usize, info }))
    }

    fn set_state(&self, idx: usize, state: State) {
        let engine = &self.engines[idx];
        let before = std::mem::replace(
            &mut *engine.state.lock().unwrap_or_else(PoisonError::into_inner),
            state.clone(),
        );
        if before.as_ref().err() != state.as_ref().err() {
            events::engine_changed(&engine.name, state.as_ref().err());
        }
        let num_usable = self.num_usable();
        events::engines_usable(num_usable);
        let readiness = if num_usable > 0 { Readiness::Ready } else { not_ready(&self.engines) };
        self.readiness.send_if_modified(|current| {
            let changed = *current != readiness;
            if changed {
                events::readiness_changed(&readiness);
                *current = readiness;
            }
            changed
        });
    }

    fn unavailable(&self) -> Error {
        Error::new(Code::Unavailable, "no engine is ready; try again")
    }
}

impl Engine {
    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn not_ready(engines: &[Engine]) -> Readiness {
    let fault = |engine: &Engine| Some(format!("engine {} {}", engine.name, engine.state().err()?));
    Readiness::NotReady(engines.iter().filter_map(fault).collect::<Vec<_>>().join("; "))
}
