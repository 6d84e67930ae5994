use super::MAX_IN_FLIGHT;

/// Some of a kind that are used in turn: while the device still works with one, the host goes on with the next.
#[derive(Debug)]
pub(super) struct InTurn<T> {
    all: [T; MAX_IN_FLIGHT],
    turn: usize,
}

impl<T> InTurn<T> {
    pub(super) fn new<E>(make: impl Fn() -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { all: [make()?, make()?], turn: 0 })
    }

    /// The one whose turn it is from now on.
    pub(super) fn next(&mut self) -> &mut T {
        self.turn = (self.turn + 1) % MAX_IN_FLIGHT;
        &mut self.all[self.turn]
    }

    /// The one whose turn it is.
    pub(super) fn current(&self) -> &T {
        &self.all[self.turn]
    }

    /// Whose turn it is, for [`of_turn`](Self::of_turn).
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// The one whose turn it was then.
    pub(super) fn of_turn(&self, turn: usize) -> &T {
        &self.all[turn % MAX_IN_FLIGHT]
    }
}
