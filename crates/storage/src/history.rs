//! The latest changes, kept for watchers that start in the past and for lists of a past revision.

use crate::event::Event;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    /// Changes after this revision are all here.
    complete_after: u64,
    max_events: usize,
    /// Size of the values in `events`, after each change.
    bytes: usize,
    max_bytes: usize,
}

/// However large they are, so many of the latest changes are kept.
const ALWAYS_KEPT: usize = 1000;

impl History {
    pub(crate) fn new(complete_after: u64, max_events: usize, max_bytes: usize) -> Self {
        Self { events: VecDeque::new(), complete_after, max_events: max_events.max(1), bytes: 0, max_bytes }
    }

    fn is_full(&self) -> bool {
        let count = self.events.len();
        count >= self.max_events || (self.bytes > self.max_bytes && count >= ALWAYS_KEPT)
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        while self.is_full()
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= size(&oldest);
            self.complete_after = oldest.revision;
        }
        self.bytes += size(&event);
        self.events.push_back(event);
    }

    /// Oldest revision from which a watch can start.
    pub(crate) fn complete_after(&self) -> u64 {
        self.complete_after
    }

    /// Changes after `revision`, oldest first; `None` when some of them are no longer here.
    pub(crate) fn since(&self, revision: u64) -> Option<impl DoubleEndedIterator<Item = &Arc<Event>>> {
        if revision < self.complete_after {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= revision);
        Some(self.events.range(start..))
    }
}

/// A value is counted where it is new; as another change's past it is the same bytes again.
fn size(event: &Event) -> usize {
    event.now.as_ref().map_or(0, |entry| entry.value.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Entry;
    use bytes::Bytes;

    #[test]
    fn large_changes_are_forgotten_sooner_but_never_the_latest() {
        let mut history = History::new(0, 5000, 100);
        for revision in 1..=4000 {
            let now = Entry { revision, created: 1, value: Bytes::from_static(&[0; 10]) };
            history.push(Arc::new(Event { revision, key: "a".into(), now: Some(now), before: None }));
        }
        assert_eq!(history.complete_after(), 3000);
        assert_eq!(history.since(3000).map(Iterator::count), Some(1000));
        assert!(history.since(2999).is_none());
        assert_eq!(history.bytes, 10_000);
    }
}
