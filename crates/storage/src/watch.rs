//! Following the changes of a prefix.

use crate::event::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    pub(crate) live: Live,
}

/// The changes that wait for one watch, and their size.
#[derive(Debug)]
pub(crate) struct Live {
    events: mpsc::Receiver<Arc<Event>>,
    bytes: Arc<AtomicUsize>,
}

impl Live {
    fn taken(&self, event: Arc<Event>) -> Arc<Event> {
        self.bytes.fetch_sub(size(&event), Ordering::Relaxed);
        event
    }
}

/// What a change that waits keeps in memory, in bytes.
fn size(event: &Event) -> usize {
    let values = [&event.now, &event.before].into_iter().flatten();
    event.key.len() + values.map(|entry| entry.value.len()).sum::<usize>()
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
            None => self.live.events.recv().await.map(|event| self.live.taken(event)).ok_or(Cut),
        }
    }

    /// The next change if it is already here.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        self.backlog.pop_front().or_else(|| {
            let event = self.live.events.try_recv().ok()?;
            Some(self.live.taken(event))
        })
    }

    /// Whether no change is waiting to be taken.
    pub fn is_drained(&self) -> bool {
        self.backlog.is_empty() && self.live.events.is_empty()
    }
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    events: mpsc::Sender<Arc<Event>>,
    bytes: Arc<AtomicUsize>,
}

/// Those who watch. The writer tells each what concerns it, and drops those that do not keep up.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    watchers: Vec<Watcher>,
}

impl Watchers {
    pub(crate) fn add(&mut self, prefix: &str, queue: usize) -> Live {
        let (sender, receiver) = mpsc::channel(queue.max(1));
        let bytes = Arc::new(AtomicUsize::new(0));
        // Those whose reader is gone are noticed only when something happens under their prefix: clear them here,
        // so that many short watches of a quiet prefix do not pile up.
        self.watchers.retain(|watcher| !watcher.events.is_closed());
        self.watchers.push(Watcher { prefix: prefix.to_owned(), events: sender, bytes: Arc::clone(&bytes) });
        Live { events: receiver, bytes }
    }

    /// Tells everybody whom it concerns. `most` is how many bytes may wait for one; a single change always may.
    pub(crate) fn tell(&mut self, event: &Arc<Event>, most: usize) {
        let size = size(event);
        self.watchers.retain(|Watcher { prefix, events, bytes }| {
            if !event.key.starts_with(prefix.as_str()) {
                return true;
            }
            let before = bytes.fetch_add(size, Ordering::Relaxed);
            let is_too_much = before > 0 && before.saturating_add(size) > most;
            let sent = if is_too_much { None } else { Some(events.try_send(Arc::clone(event))) };
            match sent {
                Some(Ok(())) => true,
                Some(Err(mpsc::error::TrySendError::Closed(_))) => false,
                None | Some(Err(mpsc::error::TrySendError::Full(_))) => {
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
        self.watchers.iter().filter(|watcher| !watcher.events.is_closed()).count()
    }
}
