use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::ModelInfo;
use fused_status::{Code, Error, Result};
use fused_vocabulary::Fingerprint;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::client::{Client, EngineRequest, EngineStream, NotTaken, PromptAnswer};
use super::routing::{Candidate, choose};
use super::{EngineEndpoint, Readiness};
use crate::error::EngineFault;
use crate::events;

/// The engines, each with what is known about it. They come and go.
pub(crate) struct Fleet {
    engines: Mutex<Vec<Arc<Engine>>>,
    vocabulary: Fingerprint,
    /// The name to serve under; none: the engine's.
    model_name: Option<String>,
    check_interval: Duration,
    readiness: watch::Sender<Readiness>,
    turn: AtomicUsize,
    lifecycle: Lifecycle,
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
    /// Follows the list of engines, and asks each of them for its model, now and again and again.
    pub(crate) fn start(
        mut endpoints: watch::Receiver<Vec<EngineEndpoint>>,
        vocabulary: Fingerprint,
        model_name: Option<String>,
        check_interval: Duration,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let fleet = Arc::new(Self {
            engines: Mutex::default(),
            vocabulary,
            model_name,
            check_interval,
            readiness: watch::Sender::new(not_ready(&[])),
            turn: AtomicUsize::new(0),
            lifecycle: lifecycle.clone(),
        });
        fleet.set_engines(&endpoints.borrow_and_update());
        let followed = Arc::clone(&fleet);
        fleet.until_stopped("engine list", async move {
            // An error: nobody changes the list any more.
            while endpoints.changed().await.is_ok() {
                followed.set_engines(&endpoints.borrow_and_update());
            }
        });
        fleet
    }

    /// Whether any engine is usable; changes as that changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Engines that requests can go to.
    pub(crate) fn num_usable(&self) -> usize {
        self.engines().iter().filter(|engine| engine.state().is_ok()).count()
    }

    /// The engines there are, usable or not, for tests.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.engines().iter().map(|engine| engine.name.clone()).collect()
    }

    /// The model of the first usable engine.
    ///
    /// # Errors
    /// `Unavailable` where none is.
    pub(crate) fn model(&self) -> Result<Arc<Model>> {
        self.engines().iter().find_map(|engine| engine.state().ok()).ok_or_else(unavailable)
    }

    /// Sends a request to the least loaded engine and waits for its first answer. Where that engine cannot answer, the
    /// request goes to another one, once. Only an engine that is lost is set aside: one that cannot serve this request
    /// may well serve the next.
    pub(crate) async fn generate(&self, request: &EngineRequest) -> Result<(EngineStream, PromptAnswer)> {
        let first = self.choose(None).ok_or_else(unavailable)?;
        let error = match first.generate(request).await {
            Ok(answer) => return Ok(answer),
            Err(NotTaken::Lost(error)) => {
                self.set_state(&first, Err(EngineFault::Unreachable(error.to_string())));
                error
            }
            Err(NotTaken::Refused(error)) if error.code() == Code::Unavailable => error,
            Err(NotTaken::Refused(error)) => return Err(error),
        };
        let Some(second) = self.choose(Some(&first)) else { return Err(error) };
        events::retried(&first.name, &error);
        second.generate(request).await.map_err(|(NotTaken::Lost(error) | NotTaken::Refused(error))| error)
    }

    fn choose(&self, except: Option<&Arc<Engine>>) -> Option<Arc<Engine>> {
        let engines = self.engines();
        let is_excepted = |engine| except.is_some_and(|except| Arc::ptr_eq(except, engine));
        let usable =
            engines.iter().enumerate().filter(|(_, engine)| !is_excepted(engine) && engine.state().is_ok());
        let candidates: Vec<_> = usable
            .map(|(idx, engine)| Candidate {
                idx,
                requests_in_flight: engine.requests_in_flight.load(Ordering::Relaxed),
            })
            .collect();
        let chosen = choose(&candidates, self.turn.fetch_add(1, Ordering::Relaxed))?;
        engines.get(chosen).cloned()
    }

    /// Keeps the engines that stay, with what is known about them. Requests at one that goes run on to their end.
    fn set_engines(self: &Arc<Self>, endpoints: &[EngineEndpoint]) {
        let mut engines = self.engines();
        engines.retain(|engine| endpoints.iter().any(|endpoint| endpoint.name == engine.name));
        for endpoint in endpoints {
            if engines.iter().any(|engine| engine.name == endpoint.name) {
                continue;
            }
            let engine = Arc::new(Engine {
                name: endpoint.name.clone(),
                client: Client::new(endpoint.channel.clone()),
                state: Mutex::new(Err(EngineFault::Unknown)),
                requests_in_flight: Arc::default(),
            });
            let checks = Arc::clone(self).check_while_listed(Arc::downgrade(&engine));
            self.until_stopped("engine check", checks);
            engines.push(engine);
        }
        drop(engines);
        self.update_readiness();
    }

    fn until_stopped(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.lifecycle.stopped();
        self.lifecycle.spawn(name, async move {
            tokio::select! {
                () = stopped => {}
                () = task => {}
            }
        });
    }

    async fn check_while_listed(self: Arc<Self>, engine: Weak<Engine>) {
        let mut ticks = tokio::time::interval(self.check_interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(engine) = engine.upgrade() else { return };
            let state = match engine.client.model().await {
                Ok(info) => self.usable(info),
                Err(error) => {
                    Err(EngineFault::Unreachable(error.detail().unwrap_or(error.message()).to_owned()))
                }
            };
            self.set_state(&engine, state);
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

    fn set_state(&self, engine: &Engine, state: State) {
        let before = std::mem::replace(
            &mut *engine.state.lock().unwrap_or_else(PoisonError::into_inner),
            state.clone(),
        );
        if before.as_ref().err() != state.as_ref().err() {
            events::engine_changed(&engine.name, state.as_ref().err());
        }
        self.update_readiness();
    }

    fn update_readiness(&self) {
        let num_usable = self.num_usable();
        events::engines_usable(num_usable);
        let readiness = if num_usable > 0 { Readiness::Ready } else { not_ready(&self.engines()) };
        self.readiness.send_if_modified(|current| {
            let changed = *current != readiness;
            if changed {
                events::readiness_changed(&readiness);
                *current = readiness;
            }
            changed
        });
    }

    fn engines(&self) -> MutexGuard<'_, Vec<Arc<Engine>>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable() -> Error {
    Error::new(Code::Unavailable, "no engine is ready; try again")
}

impl Engine {
    async fn generate(
        &self,
        request: &EngineRequest,
    ) -> std::result::Result<(EngineStream, PromptAnswer), NotTaken> {
        self.client.generate(request, Load::begin(&self.requests_in_flight)).await
    }

    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn not_ready(engines: &[Arc<Engine>]) -> Readiness {
    if engines.is_empty() {
        return Readiness::NotReady("no engine is known: its name has no address yet".to_owned());
    }
    let fault = |engine: &Arc<Engine>| Some(format!("engine {} {}", engine.name, engine.state().err()?));
    Readiness::NotReady(engines.iter().filter_map(fault).collect::<Vec<_>>().join("; "))
}
