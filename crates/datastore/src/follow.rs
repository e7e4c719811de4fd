//! Following a scope for as long as wanted: list, watch, and list again where the history is gone.
//!
//! ```text
//!           ┌────────────────── Expired ──────────────────┐
//!           ▼                                             │
//!   list ── Reset ──► watch ── Put, Deleted, Unreadable, Progress ──► end or failure
//!    ▲ │ failure        ▲                                 │
//!    └─┘ Lost, wait     └────── Lost, wait ───────────────┘
//! ```

use crate::{Datastore, Event, Key, Listing, ReadError, Revision, Scope, Stored};
use futures::stream::{self, BoxStream, StreamExt};
use std::time::Duration;

/// First wait after a failure; doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// Longest wait between two tries: how late a follower may notice that the store is back.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A step of what is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything there is; forget what was known before.
    Reset(Listing),
    /// Created or changed.
    Put(Stored),
    /// Deleted at this revision.
    Deleted(Key, Revision),
    /// Changed at this revision into what cannot be understood; it is there.
    Unreadable(Key, Revision),
    /// Complete up to this revision. Also the sign that a store is back after [`Change::Lost`] without a `Reset`.
    Progress(Revision),
    /// The store does not answer: what is known grows old until `Progress` or `Reset`. Tries go on.
    Lost(ReadError),
}

enum Phase {
    List,
    Watch(Revision),
    Follow(BoxStream<'static, Result<Event, ReadError>>, Revision),
}

struct Follower<D> {
    store: D,
    scope: Scope,
    phase: Phase,
    wait: Duration,
    /// `Lost` was said and nothing has been heard since.
    lost: bool,
}

/// Follows `scope` from a first full list on. The stream never ends; dropping it stops.
///
/// Datastore calls: one list and one watch, and the same again after each loss of history.
pub fn follow<D>(store: D, scope: Scope) -> BoxStream<'static, Change>
where
    D: Datastore + 'static,
{
    let follower = Follower { store, scope, phase: Phase::List, wait: Duration::ZERO, lost: false };
    stream::unfold(follower, |mut follower| async move {
        let change = follower.next().await;
        Some((change, follower))
    })
    .boxed()
}

impl<D: Datastore> Follower<D> {
    async fn next(&mut self) -> Change {
        loop {
            match std::mem::replace(&mut self.phase, Phase::List) {
                Phase::List => {
                    self.pause().await;
                    match self.store.list(&self.scope).await {
                        Ok(listing) => {
                            self.heard();
                            self.phase = Phase::Watch(listing.revision);
                            return Change::Reset(listing);
                        }
                        Err(error) => return self.lose(error, Phase::List),
                    }
                }
                Phase::Watch(from) => {
                    self.pause().await;
                    match self.store.watch(&self.scope, from).await {
                        Ok(stream) => {
                            self.phase = Phase::Follow(stream, from);
                            if self.lost {
                                self.heard();
                                return Change::Progress(from);
                            }
                        }
                        Err(ReadError::Expired { what }) => self.relist(&what, from),
                        Err(error) => return self.lose(error, Phase::Watch(from)),
                    }
                }
                Phase::Follow(mut stream, from) => match stream.next().await {
                    Some(Ok(event)) => {
                        self.heard();
                        let (change, at) = match event {
                            Event::Put(stored) => {
                                let at = stored.version.revision;
                                (Change::Put(stored), at)
                            }
                            Event::Deleted(key, at) => (Change::Deleted(key, at), at),
                            Event::Unreadable(key, at) => (Change::Unreadable(key, at), at),
                            Event::Progress(at) => (Change::Progress(at), at),
                        };
                        self.phase = Phase::Follow(stream, at.max(from));
                        return change;
                    }
                    Some(Err(ReadError::Expired { what })) => self.relist(&what, from),
                    Some(Err(error)) => return self.lose(error, Phase::Watch(from)),
                    // Servers end a watch every few minutes. A server that ends it at once is not asked in a tight loop.
                    None => {
                        self.wait = self.wait.max(SHORTEST_WAIT);
                        self.phase = Phase::Watch(from);
                    }
                },
            }
        }
    }

    fn heard(&mut self) {
        self.wait = Duration::ZERO;
        self.lost = false;
    }

    fn relist(&mut self, what: &str, from: Revision) {
        tracing::info!(what, revision = from.0, "history is gone, listing again");
        self.wait = self.wait.max(SHORTEST_WAIT);
        self.phase = Phase::List;
    }

    fn lose(&mut self, error: ReadError, next: Phase) -> Change {
        self.wait = (self.wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        self.phase = next;
        self.lost = true;
        Change::Lost(error)
    }

    async fn pause(&mut self) {
        if !self.wait.is_zero() {
            tokio::time::sleep(self.wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::{Kind, Record, Write};
    use api::IpamConfig;

    #[tokio::test(start_paused = true)]
    async fn follower_lists_then_watches_and_lists_again_when_the_history_is_gone() {
        let store = Memory::new();
        let config = Record::Config(IpamConfig::default());
        let mut changes = follow(store.clone(), Scope::All(Kind::Config));
        assert!(matches!(changes.next().await, Some(Change::Reset(listing)) if listing.items.is_empty()));
        let version =
            store.commit(&[], &[Write::Create(config.clone())]).await.map(|mut all| all.remove(0)).unwrap();
        assert!(matches!(changes.next().await, Some(Change::Put(stored)) if stored.record == config));
        store.commit(&[], &[Write::Delete(config.clone(), version)]).await.unwrap();
        assert!(matches!(changes.next().await, Some(Change::Deleted(Key::Config, _))));
        store.commit(&[], &[Write::Create(config.clone())]).await.unwrap();
        store.compact();
        assert!(matches!(changes.next().await, Some(Change::Reset(listing)) if listing.items.len() == 1));
    }
}
