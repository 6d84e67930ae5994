use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fused_lifecycle::Lifecycle;
use fused_status::{Code, Error};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::admission::{ForecastRatio, PrefillRate, StepRate};
use super::door::{Bell, Command, Door, Load};
use super::failure::{Failure, engine_lost};
use super::pulse::{Pulse, StepTime};
use super::{Clock, EngineCore, Progress, watchdog};
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
    /// Events a sequence, for a client that does not read.
    pub(crate) stream_buffer: usize,
    /// The core is given up where it gets nothing done for so long although there is work.
    pub(crate) watchdog_timeout: Option<Duration>,
}

/// Starts the core's thread, and whoever watches it. It ends when `lifecycle` stops, or when the runner fails.
///
/// # Errors
/// The system has no thread to give.
pub(crate) fn start<R: Runner>(
    config: CoreConfig,
    runner: R,
    kv: KvCache<R::Memory>,
    lifecycle: &Lifecycle,
) -> std::io::Result<Door> {
    let (core, door) = assemble(config, runner, kv, Box::new(Instant::now));
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, end) = oneshot::channel();
    let stopper = StopOnDrop { stop: Arc::clone(&stop), bell: door.bell.clone() };
    let (bell, pulse) = (door.bell.clone(), Arc::clone(&core.pulse));
    let failure = door.failure.clone();
    std::thread::Builder::new().name("engine-core".to_owned()).spawn(move || {
        bell.answer();
        core.run_until(&stop, &failure);
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
    if let Some(limit) = config.watchdog_timeout {
        let watching = watchdog::watch(limit, pulse, door.commands.clone(), door.failure.clone());
        let stopped = lifecycle.stopped();
        lifecycle.spawn("engine watchdog", async move {
            tokio::select! {
                () = stopped => {}
                () = watching => {}
            }
        });
    }
    Ok(door)
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
    let bell = Bell::default();
    let core = EngineCore {
        runner,
        kv,
        scheduler: Scheduler::new(config.scheduler),
        order: config.order,
        max_wait: config.max_wait,
        prefill_rate: PrefillRate::default(),
        step_rate: StepRate::default(),
        forecast_ratio: ForecastRatio::default(),
        least_wait: (clock(), Duration::ZERO),
        step_time: StepTime::default(),
        pulse: Arc::new(Pulse::default()),
        started: clock(),
        requests: BTreeMap::new(),
        flights: VecDeque::new(),
        is_held_up: false,
        last_landing: clock(),
        numbers: HashMap::new(),
        deadlines: BTreeSet::new(),
        bell: bell.clone(),
        commands,
        load,
        events: CoreEvents::new(),
        clock,
    };
    let door = Door {
        commands: sender,
        bell,
        queue: Arc::new(Semaphore::new(config.max_waiting_requests)),
        next_number: Arc::new(AtomicU64::new(0)),
        stream_buffer: config.stream_buffer,
        max_wait: config.max_wait,
        load: load_seen,
        failure: Failure::default(),
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
    /// Steps until it is told to stop, the runner fails or the watchdog has given it up; then ends all requests.
    pub(super) fn run_until(mut self, stop: &AtomicBool, failure: &Failure) {
        while !stop.load(Ordering::Acquire) {
            if failure.reason().is_some() {
                events::came_back();
                return self.end(&engine_lost());
            }
            // Afterwards nothing but the requests' streams is touched, so that a half-done step does no harm.
            let reason = match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok(Ok(Progress::Ran)) => continue,
                Ok(Ok(Progress::Idle(wait))) => {
                    self.pulse.rest(wait);
                    match wait {
                        None => std::thread::park(),
                        Some(wait) => std::thread::park_timeout(wait),
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("the engine's core panicked: {}", panic_message(&*panic)),
            };
            self.end(&engine_lost());
            // Whoever hears of it may log it too; an operator looks for the first line.
            events::failed(&reason);
            failure.tell(reason);
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
