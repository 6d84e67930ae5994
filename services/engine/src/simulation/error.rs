use std::time::Duration;

/// Why a simulation has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine does not start with these settings.
    #[error("the engine cannot be simulated")]
    Engine(#[from] crate::Error),
    /// The core gave up.
    #[error("the simulated engine failed")]
    Step(#[from] crate::runner::RunnerError),
    /// More happens than can be kept.
    #[error("the workload takes more than {max_steps} steps; simulate fewer requests")]
    TooLong {
        /// How many are kept.
        max_steps: usize,
    },
    /// A fault of the engine: it goes round without time passing.
    #[error("the simulated engine makes no progress any more, {at:?} after the start")]
    Stuck {
        /// From the start of the simulation.
        at: Duration,
    },
}
