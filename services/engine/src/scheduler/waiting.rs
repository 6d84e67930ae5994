use std::collections::BTreeMap;

use super::SequenceId;
use super::progress::Progress;

/// Sequences without a slot. Those that can run stand apart from those that wait for more of their prompt, so that a step
/// looks at no more of a long queue than it admits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Something can be computed, in order.
    ready: BTreeMap<SequenceId, Progress>,
    /// Nothing can be computed as yet: these need no slot.
    arriving: BTreeMap<SequenceId, Progress>,
    /// What is to be computed in all of them, kept because every step asks.
    num_uncached_tokens: usize,
}

impl Waiting {
    pub(super) fn insert(&mut self, id: SequenceId, progress: Progress) {
        self.num_uncached_tokens += progress.num_uncached();
        self.queue_mut(progress).insert(id, progress);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Progress> {
        let progress = self.ready.remove(&id).or_else(|| self.arriving.remove(&id))?;
        self.num_uncached_tokens -= progress.num_uncached();
        Some(progress)
    }

    /// Changes a sequence's progress, if it is here.
    pub(super) fn update(&mut self, id: SequenceId, change: impl FnOnce(&mut Progress)) {
        if let Some(mut progress) = self.remove(id) {
            change(&mut progress);
            self.insert(id, progress);
        }
    }

    /// Those that can run, in order.
    pub(super) fn ready(&self) -> impl Iterator<Item = (SequenceId, Progress)> {
        self.ready.iter().map(|(id, progress)| (*id, *progress))
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<Progress> {
        self.ready.get(&id).or_else(|| self.arriving.get(&id)).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.arriving.len()
    }

    pub(super) fn num_uncached_tokens(&self) -> usize {
        self.num_uncached_tokens
    }

    pub(super) fn num_uncached_tokens_of(&self, id: SequenceId) -> usize {
        self.ready.get(&id).map_or(0, Progress::num_uncached)
    }

    pub(super) fn contains(&self, id: SequenceId) -> bool {
        self.ready.contains_key(&id) || self.arriving.contains_key(&id)
    }

    /// Everybody is in the one queue where it belongs, and the sum is that of the queue; for debug builds.
    pub(super) fn is_consistent(&self) -> bool {
        self.ready.values().all(|progress| progress.num_ready() > 0)
            && self.arriving.values().all(|progress| progress.num_ready() == 0)
            && !self.arriving.keys().any(|id| self.ready.contains_key(id))
            && self.num_uncached_tokens == self.ready.values().map(Progress::num_uncached).sum::<usize>()
    }

    fn queue_mut(&mut self, progress: Progress) -> &mut BTreeMap<SequenceId, Progress> {
        if progress.num_ready() > 0 { &mut self.ready } else { &mut self.arriving }
    }
}
