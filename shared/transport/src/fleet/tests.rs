use std::sync::atomic::AtomicU32;

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::*;

const SERVICE: &str = "test.Service";

/// Nothing is asked twice of itself: what changes is told.
const PATIENT: Timing = Timing { retry: Duration::from_secs(1), refresh: Duration::from_secs(24 * 60 * 60) };

#[derive(Default)]
struct Test {
    num_retries: Arc<AtomicU32>,
}

impl Kind for Test {
    const SERVICE: &'static str = SERVICE;
    const NAME: &'static str = "thing";
    type Facts = ();

    async fn ask(&self, _: Channel) -> std::result::Result<(), Fault> {
        Ok(())
    }

    fn replica_changed(&self, _: &str, _: Option<&Fault>) {}

    fn usable_changed(&self, _: usize) {}

    fn readiness_changed(&self, _: &Readiness) {}

    fn retried(&self, _: &str, _: &Error) {
        self.num_retries.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    fleet: Arc<Fleet<Test>>,
    healths: Vec<HealthReporter>,
    list: watch::Sender<Vec<Replica>>,
    lifecycle: Lifecycle,
    num_retries: Arc<AtomicU32>,
}

impl Rig {
    /// So many replicas, all of them serving.
    async fn new(num: usize) -> Self {
        let lifecycle = Lifecycle::new();
        let (mut healths, mut replicas) = (Vec::new(), Vec::new());
        for idx in 0..num {
            let (health, service) = tonic_health::server::health_reporter();
            health.set_service_status(SERVICE, ServingStatus::Serving).await;
            let channel = crate::in_process(Routes::new(service), &lifecycle);
            replicas.push(Replica { name: idx.to_string(), channel });
            healths.push(health);
        }
        let (list, followed) = watch::channel(replicas);
        let kind = Test::default();
        let num_retries = Arc::clone(&kind.num_retries);
        let fleet = Fleet::start(kind, followed, PATIENT, &lifecycle);
        let rig = Self { fleet, healths, list, lifecycle, num_retries };
        rig.usable(num).await;
        rig
    }

    async fn usable(&self, num: usize) {
        let become_so = async {
            while self.fleet.num_usable() != num {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), become_so).await.unwrap();
    }

    async fn tell(&self, idx: usize, status: ServingStatus) {
        self.healths[idx].set_service_status(SERVICE, status).await;
    }

    /// Which replica the only request is at.
    fn busy(&self) -> String {
        let members = self.fleet.members();
        let is_it = |listed: &&Listed<Test>| listed.member.requests_in_flight() > 0;
        members.iter().find(is_it).unwrap().member.name.clone()
    }

    /// Where a request goes whose replica fails so, and how it ends.
    async fn send(&self, fail: impl Fn(&str, u32) -> Option<Failed>) -> (Vec<String>, Result<()>) {
        let asked = Mutex::new(Vec::new());
        let sent = self.fleet.send(async |lease: Lease| {
            let name = self.busy();
            asked.lock().unwrap().push(name.clone());
            match fail(&name, lease.attempt) {
                None => Ok(()),
                Some(failed) => Err(failed),
            }
        });
        let outcome = sent.await;
        (asked.into_inner().unwrap(), outcome)
    }

    async fn asked(&self) -> String {
        self.send(|_, _| None).await.0.join(" ")
    }
}

fn error(code: Code) -> Error {
    Error::new(code, "the test wants it")
}

#[tokio::test(start_paused = true)]
async fn requests_go_where_it_is_served_and_changes_are_told() {
    let rig = Rig::new(2).await;
    let mut asked = vec![rig.asked().await, rig.asked().await];
    asked.sort();
    assert_eq!(asked, ["0", "1"], "they share the work");
    let start = Instant::now();
    rig.tell(0, ServingStatus::NotServing).await;
    rig.usable(1).await;
    assert!(start.elapsed() < Duration::from_millis(100), "told, not asked for");
    assert_eq!((rig.asked().await, rig.asked().await), ("1".to_owned(), "1".to_owned()));
    assert_eq!(*rig.fleet.readiness().borrow(), Readiness::Ready, "any is enough");
    rig.tell(1, ServingStatus::NotServing).await;
    rig.usable(0).await;
    assert_eq!(rig.send(|_, _| None).await.1.unwrap_err().code(), Code::Unavailable);
    let reason = rig.fleet.readiness().borrow().clone();
    assert_eq!(reason, Readiness::NotReady("thing 0 is not serving; thing 1 is not serving".to_owned()));
    rig.tell(0, ServingStatus::Serving).await;
    rig.usable(1).await;
    assert_eq!(rig.asked().await, "0");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_a_drain_overtakes_still_goes_to_the_services_of_its_process() {
    let rig = Rig::new(1).await;
    rig.lifecycle.begin_drain();
    rig.tell(0, ServingStatus::NotServing).await;
    // Time for the health stream to tell it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.asked().await, "0");
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_does_not_answer_another_one_does_once() {
    for failed in [
        || Failed::Lost(error(Code::Unavailable)),
        || Failed::Leaving(error(Code::ShuttingDown)),
        || Failed::Unavailable(error(Code::Unavailable)),
    ] {
        let rig = Rig::new(3).await;
        let (asked, outcome) = rig.send(|_, attempt| (attempt == 0).then(failed)).await;
        assert!(outcome.is_ok() && asked.len() == 2 && asked[0] != asked[1], "{asked:?}");
        assert_eq!(rig.num_retries.load(Ordering::Relaxed), 1);
        let (asked, outcome) = rig.send(|_, _| Some(failed())).await;
        assert!(outcome.is_err() && asked.len() == 2, "{asked:?}");
    }
    let rig = Rig::new(2).await;
    let (asked, outcome) = rig.send(|_, _| Some(Failed::Refused(error(Code::InvalidArgument)))).await;
    assert_eq!((asked.len(), outcome.unwrap_err().code()), (1, Code::InvalidArgument));
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_to_the_only_replica_is_made_again() {
    let rig = Rig::new(1).await;
    let lost = |_: &str, attempt: u32| (attempt == 0).then(|| Failed::Lost(error(Code::Unavailable)));
    let (asked, outcome) = rig.send(lost).await;
    assert_eq!((asked.len(), outcome.is_ok()), (2, true));
    let busy = |_: &str, _: u32| Some(Failed::Unavailable(error(Code::Unavailable)));
    assert_eq!(rig.send(busy).await.0.len(), 1, "an answer is not asked for twice");
}

#[tokio::test(start_paused = true)]
async fn an_outlier_is_left_alone_for_a_while() {
    let rig = Rig::new(2).await;
    let lost = |name: &str, _: u32| (name == "0").then(|| Failed::Lost(error(Code::Unavailable)));
    while !rig.send(lost).await.0.contains(&"0".to_owned()) {}
    for _ in 0..20 {
        assert_eq!(rig.asked().await, "1");
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut asked = vec![rig.asked().await, rig.asked().await];
    asked.sort();
    assert_eq!(asked, ["0", "1"]);
    // Where all are outliers, one of them is still better than none.
    let all = |_: &str, _: u32| Some(Failed::Lost(error(Code::Unavailable)));
    rig.send(all).await.1.unwrap_err();
    assert!(rig.send(|_, _| None).await.1.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_says_that_it_leaves_and_stays_is_taken_back() {
    let rig = Rig::new(1).await;
    let leaving = |_: &str, _: u32| Some(Failed::Leaving(error(Code::ShuttingDown)));
    assert_eq!(rig.send(leaving).await.1.unwrap_err().code(), Code::ShuttingDown);
    assert_eq!(rig.fleet.num_usable(), 0);
    rig.usable(1).await;
}

#[tokio::test(start_paused = true)]
async fn replicas_come_and_go() {
    let rig = Rig::new(2).await;
    let replicas = rig.list.borrow().clone();
    rig.list.send_replace(replicas[1..].to_vec());
    rig.usable(1).await;
    assert_eq!(rig.fleet.names(), ["1"]);
    rig.list.send_replace(Vec::new());
    rig.usable(0).await;
    let readiness = rig.fleet.readiness().borrow().clone();
    assert!(matches!(&readiness, Readiness::NotReady(why) if why.contains("no address")), "{readiness:?}");
    rig.list.send_replace(replicas);
    rig.usable(2).await;
    rig.lifecycle.shut_down(Duration::ZERO, Duration::from_secs(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ends_its_watch_is_not_asked_in_a_busy_loop() {
    let mut rig = Rig::new(1).await;
    rig.healths[0].clear_service_status(SERVICE).await;
    rig.usable(0).await;
    rig.tell(0, ServingStatus::Serving).await;
    let start = Instant::now();
    rig.usable(1).await;
    assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
}
