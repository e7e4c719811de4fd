//! Following the changes of a prefix.

use crate::event::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A watch cannot start at a revision so old: list again and watch from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is too old, the history begins after {oldest}: list again")]
pub struct Compacted {
    /// Revision asked for.
    pub asked: u64,
    /// Oldest revision from which a watch can start.
    pub oldest: u64,
}

/// A watch ended: the reader was too slow, or the store is closed. Nothing before the end was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the watch was cut because its reader fell behind, or the store was closed: watch again from the last event"
)]
pub struct Cut;

/// Changes of a prefix after a revision, in order, each once.
#[derive(Debug)]
pub struct Watch {
    pub(crate) backlog: VecDeque<Arc<Event>>,
    pub(crate) live: mpsc::Receiver<Arc<Event>>,
}

impl Watch {
    /// The next change; waits for it.
    ///
    /// # Errors
    /// [`Cut`] when no more will come.
    ///
    /// # Cancellation
    /// A dropped call loses no event.
    pub async fn next(&mut self) -> Result<Arc<Event>, Cut> {
        match self.backlog.pop_front() {
            Some(event) => Ok(event),
            None => self.live.recv().await.ok_or(Cut),
        }
    }

    /// The next change if it is already here.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        self.backlog.pop_front().or_else(|| self.live.try_recv().ok())
    }

    /// Whether no change is waiting to be taken.
    pub fn is_drained(&self) -> bool {
        self.backlog.is_empty() && self.live.is_empty()
    }
}

/// Those who watch. The writer tells each what concerns it, and drops those that do not keep up.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    watchers: Vec<(String, mpsc::Sender<Arc<Event>>)>,
}

impl Watchers {
    pub(crate) fn add(&mut self, prefix: &str, queue: usize) -> mpsc::Receiver<Arc<Event>> {
        let (sender, receiver) = mpsc::channel(queue.max(1));
        // Those whose reader is gone are noticed only when something happens under their prefix: clear them here,
        // so that many short watches of a quiet prefix do not pile up.
        self.watchers.retain(|(_, sender)| !sender.is_closed());
        self.watchers.push((prefix.to_owned(), sender));
        receiver
    }

    pub(crate) fn tell(&mut self, event: &Arc<Event>) {
        self.watchers.retain(|(prefix, sender)| {
            if !event.key.starts_with(prefix.as_str()) {
                return true;
            }
            match sender.try_send(Arc::clone(event)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!(prefix, revision = event.revision, "cut a watch whose reader fell behind");
                    false
                }
            }
        });
    }

    pub(crate) fn clear(&mut self) {
        self.watchers.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.watchers.iter().filter(|(_, sender)| !sender.is_closed()).count()
    }
}
