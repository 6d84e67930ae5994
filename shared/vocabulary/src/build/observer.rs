use crate::{Error, Result};

/// Is told how far a build is, and can end it. Called from several threads at once.
pub trait Observer: Sync {
    /// A stage begins; the one before it has ended.
    fn begin(&self, stage: &Stage);

    /// The stage is so many units further.
    fn advance(&self, amount: u64);

    /// Whether the build shall end now: it is asked several times a second, and the build then ends with
    /// [`Error::Cancelled`].
    fn is_cancelled(&self) -> bool;
}

/// A part of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What is done, as `"counting n-grams"`.
    pub name: &'static str,
    /// What [`Observer::advance`] counts.
    pub unit: Unit,
    /// How many units there are, where that is known.
    pub total: Option<u64>,
}

/// What a stage's progress is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of text.
    Bytes,
    /// Base tokens.
    Tokens,
    /// Chosen n-tokens, or removed tokens.
    Choices,
}

/// Watches nothing and never cancels.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begin(&self, _: &Stage) {}

    fn advance(&self, _: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// An error if the build shall end: for `?` in loops.
pub(super) fn go_on(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
