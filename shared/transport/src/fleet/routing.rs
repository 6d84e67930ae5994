//! Which replica a request goes to. Pure: plain data in, an index out.

/// A replica as far as the choice goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its place in the fleet.
    pub(super) idx: usize,
    pub(super) requests_in_flight: usize,
}

/// The candidate with the fewest requests in flight. Among equals, `turn` goes round, so that an idle fleet shares the
/// work instead of giving all of it to the first.
pub(super) fn choose(candidates: &[Candidate], turn: usize) -> Option<usize> {
    let fewest = candidates.iter().map(|candidate| candidate.requests_in_flight).min()?;
    let mut equals = candidates.iter().filter(|candidate| candidate.requests_in_flight == fewest);
    let num_equals = equals.clone().count();
    equals.nth(turn % num_equals).map(|candidate| candidate.idx)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(in_flight: &[usize]) -> Vec<Candidate> {
        let candidate = |(idx, requests_in_flight): (usize, &usize)| Candidate {
            idx,
            requests_in_flight: *requests_in_flight,
        };
        in_flight.iter().enumerate().map(candidate).collect()
    }

    #[test]
    fn the_least_loaded_is_chosen() {
        assert_eq!(choose(&candidates(&[3, 1, 2]), 7), Some(1));
        assert_eq!(choose(&[], 0), None);
    }

    #[test]
    fn equals_take_turns() {
        let chosen: Vec<_> = (0..4).filter_map(|turn| choose(&candidates(&[0, 5, 0]), turn)).collect();
        assert_eq!(chosen, [0, 2, 0, 2]);
        assert_eq!(choose(&candidates(&[1, 1]), usize::MAX), Some(1));
    }
}
