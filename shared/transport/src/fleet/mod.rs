//! The replicas of one service, each with what is known about it: which are usable, which one a request goes to, and
//! where it goes when that one does not answer. Replicas come and go.

mod failed;
mod member;
mod outlier;
mod routing;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use fused_status::{Code, Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{Channel, Replica};
pub use failed::Failed;
use member::Member;
pub use member::{Fault, Load};
use routing::{Candidate, choose};

/// How long a request waits for replicas that were not asked yet.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// What the replicas of a fleet are.
pub trait Kind: Send + Sync + Sized + 'static {
    /// The gRPC service whose health counts.
    const SERVICE: &'static str;
    /// What a log calls a replica, such as `engine`.
    const NAME: &'static str;
    /// What is known about a usable replica, such as its model.
    type Facts: PartialEq + Send + Sync + 'static;

    /// Asks a replica that says it serves whether it can be used, and for its facts.
    fn ask(&self, channel: Channel) -> impl Future<Output = std::result::Result<Self::Facts, Fault>> + Send;

    /// A replica became usable (no fault), or stopped being so.
    fn replica_changed(&self, name: &str, fault: Option<&Fault>);

    /// So many replicas are usable now.
    fn usable_changed(&self, num_usable: usize);

    /// The first replica became usable, or the last one stopped being so.
    fn readiness_changed(&self, readiness: &Readiness);

    /// A request goes to a second replica, or there once more.
    fn retried(&self, name: &str, error: &Error);
}

/// How often replicas are looked at, beside what their health service tells by itself.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// One that cannot be used is tried again after so long.
    pub retry: Duration,
    /// One that can be used is asked for its facts again after so long.
    pub refresh: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { retry: Duration::from_secs(1), refresh: Duration::from_secs(30) }
    }
}

/// Whether requests can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At least one replica is usable.
    Ready,
    /// None is, and why.
    NotReady(String),
}

/// One request's place at a replica.
#[derive(Debug)]
pub struct Lease {
    /// The way to the replica.
    pub channel: Channel,
    /// Counts the request as in flight there: keep it as long as its answers flow.
    pub load: Load,
    /// 0, or 1 where the request was sent before: the replica may know its id still.
    pub attempt: u32,
}

/// The replicas of one service.
pub struct Fleet<K: Kind> {
    kind: K,
    timing: Timing,
    members: Mutex<Vec<Listed<K>>>,
    readiness: watch::Sender<Readiness>,
    turn: AtomicUsize,
    lifecycle: Lifecycle,
}

struct Listed<K: Kind> {
    member: Arc<Member<K>>,
    /// Follows its health for as long as it is listed.
    _watch: AbortOnDropHandle<()>,
}

impl<K: Kind> Fleet<K> {
    /// Follows the list of replicas and the health of each, until the process stops. Needs a tokio runtime.
    pub fn start(
        kind: K,
        mut replicas: watch::Receiver<Vec<Replica>>,
        timing: Timing,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let fleet = Arc::new(Self {
            kind,
            timing,
            members: Mutex::default(),
            readiness: watch::Sender::new(Readiness::NotReady(String::new())),
            turn: AtomicUsize::new(0),
            lifecycle: lifecycle.clone(),
        });
        fleet.list(&replicas.borrow_and_update());
        let (followed, stopped) = (Arc::clone(&fleet), lifecycle.stopped());
        lifecycle.spawn("fleet", async move {
            tokio::pin!(stopped);
            loop {
                tokio::select! {
                    changed = replicas.changed() => if changed.is_err() { break },
                    () = &mut stopped => break,
                }
                followed.list(&replicas.borrow_and_update());
            }
            // Nobody changes the list any more; what is listed is watched on.
            stopped.await;
            followed.members().clear();
        });
        fleet
    }

    /// Whether any replica is usable; changes as that changes.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Replicas that requests can go to.
    pub fn num_usable(&self) -> usize {
        self.members().iter().filter(|listed| listed.member.facts().is_ok()).count()
    }

    /// The names of the replicas, usable or not.
    pub fn names(&self) -> Vec<String> {
        self.members().iter().map(|listed| listed.member.name.clone()).collect()
    }

    /// Why replicas cannot be used, those that can be left out.
    pub fn faults(&self) -> Vec<Fault> {
        self.members().iter().filter_map(|listed| listed.member.facts().err()).collect()
    }

    /// The facts of the first usable replica; none where none is usable.
    pub fn facts(&self) -> Option<Arc<K::Facts>> {
        self.members().iter().find_map(|listed| listed.member.facts().ok())
    }

    /// The same, once every replica was asked: a process that has just started does not know yet what it has.
    pub async fn settled_facts(&self) -> Option<Arc<K::Facts>> {
        if self.facts().is_none() {
            self.settle().await;
        }
        self.facts()
    }

    async fn settle(&self) {
        let all_asked = |_: &Readiness| !self.faults().contains(&Fault::Unknown);
        // Late or not, what is known then counts.
        let _ = tokio::time::timeout(START_PATIENCE, self.readiness().wait_for(all_asked)).await;
    }

    /// Sends a request to the least loaded usable replica; `attempt` does so and waits for the first answer. Where that
    /// replica does not answer, the request goes to another one, once; where there is no other and the connection was
    /// lost, to the same one over a new connection.
    ///
    /// # Errors
    /// `Unavailable` where no replica is usable; else what the last attempt failed with.
    ///
    /// # Cancel safety
    /// Dropping it drops the attempt.
    pub async fn send<T, F>(&self, mut attempt: impl FnMut(Lease) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failed>>,
    {
        let first = match self.choose(None) {
            Some(first) => first,
            None => {
                self.settle().await;
                self.choose(None).ok_or_else(unavailable)?
            }
        };
        let failed = match self.try_at(&first, 0, &mut attempt).await {
            Ok(answer) => return Ok(answer),
            Err(Failed::Refused(error)) => return Err(error),
            Err(failed) => failed,
        };
        let same = || matches!(failed, Failed::Lost(_)).then(|| Arc::clone(&first));
        let Some(second) = self.choose(Some(&first)).or_else(same) else { return Err(failed.into_error()) };
        self.kind.retried(&first.name, &failed.into_error());
        self.try_at(&second, 1, &mut attempt).await.map_err(Failed::into_error)
    }

    async fn try_at<T, F>(
        &self,
        member: &Arc<Member<K>>,
        number: u32,
        attempt: &mut impl FnMut(Lease) -> F,
    ) -> std::result::Result<T, Failed>
    where
        F: Future<Output = std::result::Result<T, Failed>>,
    {
        let (channel, load) = (member.channel.clone(), member.load());
        let answer = attempt(Lease { channel, load, attempt: number }).await;
        let now = Instant::now();
        match &answer {
            Ok(_) => member.outlier().succeeded(),
            Err(Failed::Lost(_)) => member.outlier().lost(now),
            Err(Failed::Leaving(error)) => {
                self.set(member, Err(Fault::Unusable(error.message().to_owned())));
                member.doubt();
            }
            Err(Failed::Unavailable(_)) => member.outlier().failed(now),
            Err(Failed::Refused(error)) if error.code() == Code::Internal => member.outlier().failed(now),
            // It works: the request is at fault, or there are too many.
            Err(Failed::Refused(_)) => member.outlier().succeeded(),
        }
        answer
    }

    fn choose(&self, except: Option<&Arc<Member<K>>>) -> Option<Arc<Member<K>>> {
        let members = self.members();
        let now = Instant::now();
        let candidates = |may_be_ejected: bool| -> Vec<_> {
            let fits = |member: &Arc<Member<K>>| {
                !except.is_some_and(|except| Arc::ptr_eq(except, member))
                    && member.facts().is_ok()
                    && (may_be_ejected || !member.outlier().is_ejected(now))
            };
            let usable = members.iter().enumerate().filter(|(_, listed)| fits(&listed.member));
            let candidate = |(idx, listed): (usize, &Listed<K>)| Candidate {
                idx,
                requests_in_flight: listed.member.requests_in_flight(),
            };
            usable.map(candidate).collect()
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // Where all are ejected, one of them is still better than none.
        let chosen = choose(&candidates(false), turn).or_else(|| choose(&candidates(true), turn))?;
        members.get(chosen).map(|listed| Arc::clone(&listed.member))
    }

    /// Keeps the replicas that stay, with what is known about them. Requests at one that goes run on to their end.
    fn list(self: &Arc<Self>, replicas: &[Replica]) {
        let mut members = self.members();
        members.retain(|listed| replicas.iter().any(|replica| replica.name == listed.member.name));
        for replica in replicas {
            if members.iter().any(|listed| listed.member.name == replica.name) {
                continue;
            }
            let member = Arc::new(Member::new(replica));
            let watch = Arc::clone(self).watch(Arc::clone(&member));
            let watch = AbortOnDropHandle::new(self.lifecycle.spawn("replica health", watch));
            members.push(Listed { member, _watch: watch });
        }
        drop(members);
        self.update_readiness();
    }

    /// Takes what has been found out about a replica.
    fn set(&self, member: &Member<K>, facts: std::result::Result<K::Facts, Fault>) {
        // A draining process's own services refuse others' requests; those accepted before still go to them.
        if member.channel.is_in_process() && self.lifecycle.is_draining() {
            return;
        }
        if member.set(facts) {
            self.kind.replica_changed(&member.name, member.facts().err().as_ref());
            self.update_readiness();
        }
    }

    fn update_readiness(&self) {
        let members = self.members();
        let num_usable = members.iter().filter(|listed| listed.member.facts().is_ok()).count();
        let readiness = if num_usable > 0 { Readiness::Ready } else { not_ready(&members) };
        self.kind.usable_changed(num_usable);
        // While the list is locked, so that of two changes the later one is told last.
        self.readiness.send_if_modified(|current| {
            let changed = *current != readiness;
            if changed {
                self.kind.readiness_changed(&readiness);
                *current = readiness;
            }
            changed
        });
    }

    fn members(&self) -> MutexGuard<'_, Vec<Listed<K>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_ready<K: Kind>(members: &[Listed<K>]) -> Readiness {
    if members.is_empty() {
        return Readiness::NotReady(format!("no {} is known: its name has no address yet", K::NAME));
    }
    let fault = |listed: &Listed<K>| {
        let member = &listed.member;
        Some(format!("{} {} {}", K::NAME, member.name, member.facts().err()?))
    };
    Readiness::NotReady(members.iter().filter_map(fault).collect::<Vec<_>>().join("; "))
}

fn unavailable() -> Error {
    Error::new(Code::Unavailable, "no service behind this one is ready; try again")
}
