use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Streaming;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::outlier::Outlier;
use super::{Fleet, Kind};
use crate::{Channel, Replica};

/// How long a replica may take to tell its health for the first time, and to tell its facts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was lost may be made again so quickly that nothing has happened; past it, the replica is away.
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(250);

/// Why a replica is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has not answered yet.
    #[error("has not answered yet")]
    Unknown,
    /// It cannot be reached, or has stopped answering.
    #[error("does not answer: {0}")]
    Unreachable(String),
    /// Its health service says so.
    #[error("is not serving")]
    NotServing,
    /// It serves, and cannot be used all the same.
    #[error("cannot be used: {0}")]
    Unusable(String),
    /// It is another one than it should be: somebody has to mend the deployment.
    #[error("{0}")]
    Misplaced(String),
}

/// One replica, and what is known about it.
pub(super) struct Member<K: Kind> {
    pub(super) name: String,
    pub(super) channel: Channel,
    facts: Mutex<Result<Arc<K::Facts>, Fault>>,
    outlier: Mutex<Outlier>,
    requests_in_flight: Arc<AtomicUsize>,
    /// A request has found out what its health service may not have told yet.
    doubted: Notify,
}

/// One request in flight at a replica; lives in its response stream.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<K: Kind> Member<K> {
    pub(super) fn new(replica: &Replica) -> Self {
        Self {
            name: replica.name.clone(),
            channel: replica.channel.clone(),
            facts: Mutex::new(Err(Fault::Unknown)),
            outlier: Mutex::default(),
            requests_in_flight: Arc::default(),
            doubted: Notify::new(),
        }
    }

    pub(super) fn facts(&self) -> Result<Arc<K::Facts>, Fault> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether that is news.
    pub(super) fn set(&self, new: Result<K::Facts, Fault>) -> bool {
        let mut known = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = match (&*known, &new) {
            (Ok(known), Ok(new)) => **known != *new,
            (Err(known), Err(new)) => known != new,
            _ => true,
        };
        if is_news {
            *known = new.map(Arc::new);
        }
        is_news
    }

    pub(super) fn outlier(&self) -> MutexGuard<'_, Outlier> {
        self.outlier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for its facts again, in a while.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    pub(super) fn load(&self) -> Load {
        self.requests_in_flight.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.requests_in_flight))
    }

    pub(super) fn requests_in_flight(&self) -> usize {
        self.requests_in_flight.load(Ordering::Relaxed)
    }
}

impl<K: Kind> Fleet<K> {
    /// Follows a replica's health. Its requests share the connection with this stream: when the replica dies or hangs,
    /// both end together.
    pub(super) async fn watch(self: Arc<Self>, member: Arc<Member<K>>) {
        loop {
            let (was_usable, began) = (member.facts().is_ok(), Instant::now());
            let patience = if was_usable { RECONNECT_TIMEOUT } else { ANSWER_TIMEOUT };
            let watched = match begin(K::SERVICE, &member, patience).await {
                Ok((status, statuses)) => self.follow(&member, status, statuses).await,
                Err(fault) => {
                    self.set(&member, Err(fault));
                    tokio::time::sleep(self.timing.retry).await;
                    continue;
                }
            };
            // What has been usable until now may be so again at once.
            let may_be_back = member.facts().is_ok() && began.elapsed() > self.timing.retry;
            if !may_be_back {
                self.set(&member, Err(watched));
                tokio::time::sleep(self.timing.retry).await;
            }
        }
    }

    /// Takes what the replica tells, until its stream ends. Returns why it did.
    async fn follow(
        &self,
        member: &Member<K>,
        mut status: ServingStatus,
        mut statuses: Streaming<HealthCheckResponse>,
    ) -> Fault {
        loop {
            let facts = match status {
                ServingStatus::Serving => self.ask(member).await,
                _ => Err(Fault::NotServing),
            };
            self.set(member, facts);
            // One that does not serve tells when it does; one that serves may be another one by now.
            let pause = if member.facts().is_ok() { self.timing.refresh } else { self.timing.retry };
            let until = Instant::now() + pause;
            tokio::select! {
                answer = statuses.message() => match answer {
                    Ok(Some(answer)) => status = answer.status(),
                    Ok(None) => return Fault::Unreachable("it has ended".to_owned()),
                    Err(error) => return unreachable(&error),
                },
                () = sleep_until(until) => {}
                () = member.doubted.notified() => tokio::time::sleep(self.timing.retry).await,
            }
        }
    }

    async fn ask(&self, member: &Member<K>) -> Result<K::Facts, Fault> {
        let asked = self.kind.ask(member.channel.clone());
        timeout(ANSWER_TIMEOUT, asked)
            .await
            .unwrap_or_else(|elapsed| Err(Fault::Unreachable(elapsed.to_string())))
    }
}

async fn begin<K: Kind>(
    service: &str,
    member: &Member<K>,
    patience: Duration,
) -> Result<(ServingStatus, Streaming<HealthCheckResponse>), Fault> {
    let deadline = Instant::now() + patience;
    let mut client = HealthClient::new(member.channel.clone());
    let begun = async {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut statuses = client.watch(request).await.map_err(|status| unreachable(&status))?.into_inner();
        match statuses.message().await.map_err(|status| unreachable(&status))? {
            Some(first) => Ok((first.status(), statuses)),
            None => Err(Fault::Unreachable("it ended the answer".to_owned())),
        }
    };
    timeout_at(deadline, begun).await.unwrap_or_else(|elapsed| Err(Fault::Unreachable(elapsed.to_string())))
}

fn unreachable(status: &tonic::Status) -> Fault {
    let error = fused_status::Error::from(status);
    Fault::Unreachable(error.detail().unwrap_or(error.message()).to_owned())
}
