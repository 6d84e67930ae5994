use std::sync::mpsc::sync_channel;

use anyhow::{Context, bail};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Server;

impl Server {
    /// Holds one of the server's threads, by name, until the process ends: it does nothing more, as if it were in a call that
    /// never returns.
    ///
    /// # Errors
    /// There is no such thread, or the system does not allow it.
    pub fn hold_thread(&self, name: &str) -> anyhow::Result<()> {
        let thread = self.thread(name)?;
        let (held, is_held) = sync_channel(1);
        // Whoever holds a thread lets go of it by ending, and is the only one who can bury it.
        std::thread::spawn(move || {
            let stopped = ptrace::seize(thread, ptrace::Options::empty())
                .and_then(|()| ptrace::interrupt(thread))
                .and_then(|()| waitpid(thread, Some(WaitPidFlag::__WALL)));
            let _ = held.send(stopped);
            // An error: it was never held, or is gone.
            while let Ok(status) = waitpid(thread, Some(WaitPidFlag::__WALL)) {
                if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                    return;
                }
            }
        });
        is_held.recv()?.context("the thread cannot be held")?;
        Ok(())
    }

    fn thread(&self, name: &str) -> anyhow::Result<Pid> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let task = task?;
            let is_named = std::fs::read_to_string(task.path().join("comm")).is_ok_and(|n| n.trim() == name);
            if is_named {
                let id = task.file_name().into_string().ok().and_then(|id| id.parse().ok());
                return Ok(Pid::from_raw(id.context("no thread's id")?));
            }
        }
        bail!("the server has no thread {name}")
    }
}
