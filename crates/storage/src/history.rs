//! The latest changes, kept for watchers that start in the past and for lists of a past revision.

use crate::state::Event;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    /// Changes after this revision are all here.
    complete_after: u64,
    max_events: usize,
}

impl History {
    pub(crate) fn new(complete_after: u64, max_events: usize) -> Self {
        Self { events: VecDeque::new(), complete_after, max_events: max_events.max(1) }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        if self.events.len() >= self.max_events
            && let Some(oldest) = self.events.pop_front()
        {
            self.complete_after = oldest.revision;
        }
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
