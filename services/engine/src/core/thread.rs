use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fused_lifecycle::Lifecycle;
use fused_status::{Code, Error};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::admission::{PrefillRate, StepRate};
use super::door::{Bell, Command, Door, Load};
use super::{Clock, EngineCore, Progress};
use crate::Order;
use crate::events::{self, CoreEvents};
use crate::kv::KvCache;
use crate::runner::Runner;
use crate::scheduler::{Scheduler, SchedulerConfig};

/// Commands in the core's queue, beyond one for every request that may wait.
const SPARE_COMMANDS: usize = 1024;

/// How the core bounds its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreConfig {
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) order: Order,
    /// A request is refused where the prompts before it take longer.
    pub(crate) max_wait: Option<Duration>,
    pub(crate) max_waiting_requests: usize,
    pub(crate) stream_buffer: usize,
}

/// Why the core has ended, once it has failed.
pub(crate) type Failure = watch::Receiver<Option<Arc<str>>>;

/// Starts the core's thread. It ends when `lifecycle` stops, or when the runner fails.
///
/// # Errors
/// The system has no thread to give.
pub(crate) fn start<R: Runner>(
    config: CoreConfig,
    runner: R,
    kv: KvCache<R::Memory>,
    lifecycle: &Lifecycle,
) -> std::io::Result<(Door, Failure)> {
    let (core, door) = assemble(config, runner, kv, Box::new(Instant::now));
    let (failed, failure) = watch::channel(None);
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, end) = oneshot::channel();
    let stopper = StopOnDrop { stop: Arc::clone(&stop), bell: door.bell.clone() };
    let bell = door.bell.clone();
    std::thread::Builder::new().name("engine-core".to_owned()).spawn(move || {
        bell.answer();
        core.run_until(&stop, &failed);
        // Nobody waits where the process is going away.
        let _ = ended.send(());
    })?;
    let stopped = lifecycle.stopped();
    lifecycle.spawn("engine-core", async move {
        stopped.await;
        drop(stopper);
        // An error says that the thread is gone, which is what is waited for.
        let _ = end.await;
    });
    Ok((door, failure))
}

/// The core and the way to it, not running as yet.
pub(crate) fn assemble<R: Runner>(
    config: CoreConfig,
    runner: R,
    kv: KvCache<R::Memory>,
    clock: Clock,
) -> (EngineCore<R>, Door) {
    debug_assert!((1..=2).contains(&runner.max_in_flight()), "see Runner::max_in_flight");
    let (load, load_seen) = watch::channel(Load { kv: kv.stats(), ..Load::default() });
    let (sender, commands) = mpsc::channel(config.max_waiting_requests.saturating_add(SPARE_COMMANDS));
    let core = EngineCore {
        runner,
        kv,
        scheduler: Scheduler::new(config.scheduler),
        order: config.order,
        max_wait: config.max_wait,
        prefill_rate: PrefillRate::default(),
        step_rate: StepRate::default(),
        least_wait: (clock(), Duration::ZERO),
        started: clock(),
        requests: BTreeMap::new(),
        flights: VecDeque::new(),
        is_held_up: false,
        last_landing: clock(),
        numbers: HashMap::new(),
        commands,
        load,
        events: CoreEvents::new(),
        clock,
    };
    let door = Door {
        commands: sender,
        bell: Bell::default(),
        queue: Arc::new(Semaphore::new(config.max_waiting_requests)),
        next_number: Arc::new(AtomicU64::new(0)),
        stream_buffer: config.stream_buffer,
        max_wait: config.max_wait,
        load: load_seen,
    };
    (core, door)
}

/// Ends the thread, also where the runtime goes away without the lifecycle having stopped.
struct StopOnDrop {
    stop: Arc<AtomicBool>,
    bell: Bell,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl<R: Runner> EngineCore<R> {
    /// Steps until it is told to stop or the runner fails; then ends all requests.
    pub(super) fn run_until(mut self, stop: &AtomicBool, failed: &watch::Sender<Option<Arc<str>>>) {
        while !stop.load(Ordering::Acquire) {
            // Afterwards nothing but the requests' streams is touched, so that a half-done step does no harm.
            let reason = match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok(Ok(Progress::Ran)) => continue,
                Ok(Ok(Progress::Idle(None))) => {
                    std::thread::park();
                    continue;
                }
                Ok(Ok(Progress::Idle(Some(wait)))) => {
                    std::thread::park_timeout(wait);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("the engine's core panicked: {}", panic_message(&*panic)),
            };
            events::failed(&reason);
            let unready =
                Error::new(Code::Unavailable, "the engine has failed and must be restarted; try again");
            self.end(&unready);
            failed.send_replace(Some(reason.into()));
            return;
        }
        self.end(&Error::new(Code::ShuttingDown, "the server is shutting down"));
    }

    /// Ends all requests, those that nobody has taken in as yet included.
    fn end(mut self, error: &Error) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Start(arrival) = command {
                arrival.events.fail(error.clone());
            }
        }
        for request in std::mem::take(&mut self.requests).into_values() {
            self.events.request_ended(error.code().name());
            request.events.fail(error.clone());
        }
        let load = Load::default();
        self.events.load(&load);
        self.load.send_replace(load);
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
