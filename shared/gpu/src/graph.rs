//! Many launches as one.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::sync::Arc;

use cudarc::driver::sys;

use crate::driver::check;
use crate::gpu::Context;
use crate::{Error, Gpu, Result};

/// What was asked of the stream while it was recorded: launches, fills, products, copies on the device.
/// Launching it costs the host about as much as launching one kernel.
///
/// Memory and kernels in it stay as long as any graph of the GPU lives, also when their owners are gone.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: a graph belongs to no thread; it is not Sync, so that two never launch it at once, which the driver
// forbids.
unsafe impl Send for Graph {}

impl Gpu {
    /// Records what `work` asks of the stream, instead of doing it.
    ///
    /// # Errors
    /// Another recording is on; `work` fails, or does what cannot be recorded: it allocates, waits, or copies
    /// to or from the host; whatever the driver refuses. Nothing is recorded any more then.
    pub fn capture<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let recording = Recorder::start(&self.context)?;
        let worked = work();
        let graph = recording.stop();
        worked?;
        Ok(graph?)
    }
}

/// A recording that is on; dropped by a panic, it ends.
struct Recorder<'a> {
    context: &'a Arc<Context>,
    is_on: bool,
}

impl<'a> Recorder<'a> {
    fn start(context: &'a Arc<Context>) -> Result<Self> {
        let _bound = context.bind()?;
        let mut recording = context.outside_graph("a recording")?;
        // The strict modes refuse calls that might wait for the stream, as a library may make when it first
        // loads a kernel. What really cannot be recorded is refused by whoever offers it here.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(context.stream, mode) })?;
        recording.is_on = true;
        Ok(Self { context, is_on: true })
    }

    fn stop(mut self) -> Result<Graph> {
        self.is_on = false;
        let context = self.context;
        let _bound = context.bind()?;
        let mut graph = std::ptr::null_mut();
        let mut recording = context.recording();
        // SAFETY: the pointer outlives the call; the stream is recorded.
        let ended = unsafe { sys::cuStreamEndCapture(context.stream, &raw mut graph) };
        recording.is_on = false;
        let made = check("cuStreamEndCapture", ended).and_then(|()| instantiate(graph));
        let executable = made.inspect_err(|_| context.tidy(&mut recording))?;
        recording.num_graphs += 1;
        let graph = Graph { context: Arc::clone(context), executable };
        drop(recording);
        // The first launch would otherwise pay for this.
        // SAFETY: the executable lives.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(executable, context.stream) })?;
        Ok(graph)
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if self.is_on
            && let Ok(_bound) = self.context.bind()
        {
            let mut graph = std::ptr::null_mut();
            // SAFETY: the pointer outlives the call; the stream is recorded.
            let _ = unsafe { sys::cuStreamEndCapture(self.context.stream, &raw mut graph) };
            if !graph.is_null() {
                // SAFETY: nobody else has it.
                let _ = unsafe { sys::cuGraphDestroy(graph) };
            }
            let mut recording = self.context.recording();
            recording.is_on = false;
            self.context.tidy(&mut recording);
        }
    }
}

fn instantiate(graph: sys::CUgraph) -> Result<sys::CUgraphExec> {
    let mut executable = std::ptr::null_mut();
    // SAFETY: the pointer outlives the call; the graph was just made.
    let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) };
    // SAFETY: the executable is a copy.
    let _ = unsafe { sys::cuGraphDestroy(graph) };
    check("cuGraphInstantiate", made)?;
    Ok(executable)
}

impl Graph {
    /// Does what was recorded, when the stream gets there. Addresses are those of the recording: what the work
    /// is about goes into the same buffers before.
    ///
    /// # Errors
    /// Whatever the driver refuses; what an earlier launch did wrong.
    pub fn launch(&self) -> Result<()> {
        let _no_graph = self.context.outside_graph("a graph's launch")?;
        let _bound = self.context.bind()?;
        // SAFETY: executable and stream live, and so does everything recorded, which `Recording` keeps.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, self.context.stream) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_bound) = self.context.bind() {
            // SAFETY: the stream lives. The graph may still be on it.
            let _ = unsafe { sys::cuStreamSynchronize(self.context.stream) };
            // SAFETY: nobody else has it.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
        let mut recording = self.context.recording();
        recording.num_graphs -= 1;
        self.context.tidy(&mut recording);
    }
}
