//! Marks on the stream.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUresult};

use crate::driver::check;
use crate::gpu::Context;
use crate::{Gpu, Result};

/// A place on the stream that the host can wait for. One that was never recorded is done.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event belongs to no thread.
unsafe impl Send for Event {}
// SAFETY: the driver's calls on one event may be made by several threads at once.
unsafe impl Sync for Event {}

impl Event {
    /// An event that takes no time stamps, which is cheapest.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Self::of(&gpu.context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that knows when the device came by.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn timed(gpu: &Gpu) -> Result<Self> {
        Self::of(&gpu.context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn of(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self> {
        let _bound = context.bind()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags as u32) })?;
        Ok(Self { context: Arc::clone(context), event })
    }

    /// Marks the end of everything asked for so far; an earlier mark is forgotten.
    ///
    /// # Errors
    /// A graph is being recorded; whatever the driver refuses.
    pub fn record(&self) -> Result<()> {
        let _no_graph = self.context.outside_graph("an event")?;
        self.mark()
    }

    /// [`record`](Self::record) by somebody who knows that no graph is being recorded.
    pub(crate) fn mark(&self) -> Result<()> {
        let _bound = self.context.bind()?;
        // SAFETY: event and stream live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, self.context.stream) })
    }

    /// Waits until the stream has come to the mark.
    ///
    /// # Errors
    /// What went wrong in anything launched before.
    pub fn wait(&self) -> Result<()> {
        let _bound = self.context.bind()?;
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }

    /// Whether the stream has come to the mark.
    ///
    /// # Errors
    /// What went wrong in anything launched before.
    pub fn is_done(&self) -> Result<bool> {
        let _bound = self.context.bind()?;
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    /// The device's time from another mark to this one, to half a microsecond; both are [timed](Self::timed).
    ///
    /// # Errors
    /// One of them is not timed, was not recorded, or is not done.
    pub fn since(&self, earlier: &Self) -> Result<Duration> {
        let _bound = self.context.bind()?;
        let mut millis = 0.0_f32;
        // SAFETY: both events live; the pointer outlives the call.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&raw mut millis, earlier.event, self.event)
        })?;
        Ok(Duration::from_secs_f64(f64::from(millis.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_bound) = self.context.bind() {
            // SAFETY: an event of ours; the driver keeps what the stream still needs of it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}
