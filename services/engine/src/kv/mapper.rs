//! Maps extents behind the ends of slots while a step runs, so that no step waits for the driver.
//!
//! One thread: two that map at once are slower than one (37 µs an extent instead of 24 on an H200). What it is told
//! concerns addresses that no unfinished step touches; bookkeeping stays with the cache, which hears later what came of it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fused_virtual_memory::{Access, Error as MemoryError, HandleId, RangeId, VirtualMemory};

use super::Error;
use super::extents::ExtentId;

/// One extent to be mapped behind the end of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    pub(super) slot: usize,
    pub(super) place: Place,
    pub(super) num_pages: usize,
    pub(super) source: Source,
}

/// Some of a slot's addresses, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) range: RangeId,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// Where the extent comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// It is created.
    New,
    /// It is mapped nowhere.
    Unmapped(ExtentId, HandleId),
    /// It is taken from the end of a slot that does not need it.
    Slot { extent: ExtentId, handle: HandleId, slot: usize, place: Place },
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Grown {
    pub(super) growth: Growth,
    pub(super) outcome: Result<HandleId, NotGrown>,
    /// Driver calls that it took.
    pub(super) num_calls: usize,
}

/// How far it got. Nobody needs the extent as yet, so that the error itself is of no interest: whoever does need one hears
/// why there is none.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotGrown {
    /// There is no new extent, or the old one is still where it was.
    Untaken,
    /// There is no new extent, because the system has no memory for it.
    NoMemory,
    /// The extent is mapped nowhere.
    Unmapped(HandleId),
    /// The extent is where it should be, and nobody may touch it.
    Closed(HandleId),
}

/// Who does it.
#[derive(Debug)]
pub(super) enum Mapper {
    /// The caller itself, at once: in tests and in simulation, where everything is to happen in the same order each time.
    Inline { grown: VecDeque<Grown>, spent: Duration },
    /// A thread. `waited`: how long somebody had to wait for it, in all.
    /// The receiver is only shared, never used, by those who share the cache; the mutex says so to the compiler.
    Thread { jobs: SyncSender<Growth>, grown: Mutex<Receiver<Grown>>, num_in_flight: usize, waited: Duration },
}

impl Mapper {
    pub(super) fn inline() -> Self {
        Self::Inline { grown: VecDeque::new(), spent: Duration::ZERO }
    }

    /// `capacity`: the most growths in flight at the same time. The thread ends when the mapper is dropped.
    pub(super) fn thread<M: VirtualMemory>(memory: &Arc<M>, capacity: usize) -> Result<Self, Error> {
        let (jobs, to_do) = sync_channel::<Growth>(capacity);
        let (done, grown) = sync_channel(capacity);
        let memory = Arc::clone(memory);
        let run = move || {
            while let Ok(growth) = to_do.recv() {
                if done.send(grow(&*memory, growth)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("kv-mapper".to_owned()).spawn(run).map_err(Error::Thread)?;
        Ok(Self::Thread { jobs, grown: Mutex::new(grown), num_in_flight: 0, waited: Duration::ZERO })
    }

    /// Begins a growth. Returns whether it has begun.
    pub(super) fn begin<M: VirtualMemory>(&mut self, memory: &M, growth: Growth) -> bool {
        match self {
            Self::Inline { grown, spent } => {
                let before = memory.spent();
                grown.push_back(grow(memory, growth));
                *spent += memory.spent() - before;
                true
            }
            Self::Thread { jobs, num_in_flight, .. } => {
                let begun = jobs.try_send(growth).is_ok();
                *num_in_flight += usize::from(begun);
                begun
            }
        }
    }

    /// A growth that is done, if there is one.
    pub(super) fn poll(&mut self) -> Result<Option<Grown>, Error> {
        match self {
            Self::Inline { grown, .. } => Ok(grown.pop_front()),
            Self::Thread { grown, num_in_flight, .. } => match unshared(grown).try_recv() {
                Ok(grown) => {
                    *num_in_flight -= 1;
                    Ok(Some(grown))
                }
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Error::MapperEnded),
            },
        }
    }

    /// The next growth, waiting for it; `None` where none is in flight.
    pub(super) fn wait(&mut self) -> Result<Option<Grown>, Error> {
        if let Some(grown) = self.poll()? {
            return Ok(Some(grown));
        }
        let Self::Thread { grown, num_in_flight, waited, .. } = self else { return Ok(None) };
        if *num_in_flight == 0 {
            return Ok(None);
        }
        let began = Instant::now();
        let done = unshared(grown).recv().map_err(|_| Error::MapperEnded)?;
        *num_in_flight -= 1;
        *waited += began.elapsed();
        Ok(Some(done))
    }

    /// How long somebody has waited for the thread.
    pub(super) fn waited(&self) -> Duration {
        match self {
            Self::Inline { .. } => Duration::ZERO,
            Self::Thread { waited, .. } => *waited,
        }
    }

    /// Time that a simulated driver spent while a step ran beside it.
    pub(super) fn spent(&self) -> Duration {
        match self {
            Self::Inline { spent, .. } => *spent,
            Self::Thread { .. } => Duration::ZERO,
        }
    }
}

fn unshared(grown: &mut Mutex<Receiver<Grown>>) -> &mut Receiver<Grown> {
    grown.get_mut().unwrap_or_else(PoisonError::into_inner)
}

fn grow<M: VirtualMemory>(memory: &M, growth: Growth) -> Grown {
    let mut num_calls = 1;
    let handle = match growth.source {
        Source::New => memory.create(growth.place.len).map_err(|error| match error {
            MemoryError::OutOfMemory { .. } => NotGrown::NoMemory,
            _ => NotGrown::Untaken,
        }),
        Source::Unmapped(_, handle) => {
            num_calls = 0;
            Ok(handle)
        }
        Source::Slot { handle, place, .. } => {
            let unmapped = memory.unmap(place.range, place.offset, place.len);
            unmapped.map(|()| handle).map_err(|_| NotGrown::Untaken)
        }
    };
    let outcome = handle.and_then(|handle| {
        num_calls += 2;
        open(memory, growth.place, handle).map(|()| handle)
    });
    Grown { growth, outcome, num_calls }
}

/// Maps an extent and makes it writable.
fn open<M: VirtualMemory>(memory: &M, place: Place, handle: HandleId) -> Result<(), NotGrown> {
    let Place { range, offset, len } = place;
    memory.map(range, offset, handle).map_err(|_| NotGrown::Unmapped(handle))?;
    memory.set_access(range, offset, len, Access::ReadWrite).map_err(|_| {
        match memory.unmap(range, offset, len) {
            Ok(()) => NotGrown::Unmapped(handle),
            Err(_) => NotGrown::Closed(handle),
        }
    })
}
