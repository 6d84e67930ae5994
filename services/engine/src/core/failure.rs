use std::sync::{Arc, OnceLock};

use fused_status::{Code, Error};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Whether the engine is lost, and why: told once, by the core or by the watchdog, and seen by everybody else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failure {
    reason: Arc<OnceLock<String>>,
    told: CancellationToken,
}

impl Failure {
    /// Says that the engine is lost. The first reason stays. Returns whether this is the first.
    pub(super) fn tell(&self, reason: String) -> bool {
        let is_first = self.reason.set(reason).is_ok();
        // Whoever is woken finds the reason.
        self.told.cancel();
        is_first
    }

    /// Why the engine is lost; `None` as long as it is not.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Completes when the engine is lost.
    pub(crate) fn told(&self) -> WaitForCancellationFutureOwned {
        self.told.clone().cancelled_owned()
    }
}

/// What clients hear of a lost engine. The reason is for the operator: the log, health and `GetModel` have it.
pub(crate) fn engine_lost() -> Error {
    Error::new(Code::Unavailable, "the engine has failed and must be restarted; try again")
}
