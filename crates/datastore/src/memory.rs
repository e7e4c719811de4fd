//! A store in memory: atomic commits and watches with history. For tests, the simulator and planning.
//!
//! Nothing in it reads a clock or draws a random number, and it needs no runtime: the same calls in the same order
//! give the same revisions, identities and events.
//!
//! ```
//! use api::{Handle, IpamConfig};
//! use datastore::{Datastore, Key, Record, Write, memory::Memory};
//!
//! let store = Memory::new();
//! let write = Write::Create(Record::Config(IpamConfig::default()));
//! futures::executor::block_on(async {
//!     store.commit(&[], &[write]).await?;
//!     assert!(store.get(&Key::Config).await.is_ok_and(|found| found.is_some()));
//!     Ok::<(), datastore::CommitError>(())
//! })?;
//! # Ok::<(), datastore::CommitError>(())
//! ```

use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Kind, Listing, ReadError, Record, Revision,
    Scope, Stored, Version, Write,
};
use api::{AffinityNaming, Cidr, Owner};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Events kept for watches; older ones are forgotten and a watch from there is told to list again.
const HISTORY: usize = 100_000;

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The store. Clones share it.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    naming: AffinityNaming,
    clock: Option<Clock>,
}

#[derive(Default)]
struct State {
    revision: u64,
    identities: u64,
    /// By slot, which is the key except for affinities named per block.
    records: BTreeMap<Key, Stored>,
    /// Changes in revision order.
    history: VecDeque<Change>,
    /// Revision of the last change that was forgotten.
    forgotten: u64,
    wakers: Vec<Waker>,
}

struct Change {
    revision: u64,
    key: Key,
    /// `None` for a delete.
    stored: Option<Stored>,
}

impl Memory {
    /// An empty store whose affinities are named per node and whose records have no creation time.
    pub fn new() -> Self {
        Self { state: Arc::default(), naming: AffinityNaming::PerNode, clock: None }
    }

    /// The same store with affinities named as `naming` says (architecture D9).
    #[must_use]
    pub fn with_naming(self, naming: AffinityNaming) -> Self {
        Self { naming, ..self }
    }

    /// The same store, stamping records with the time that `clock` tells when they are created.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { clock: Some(Arc::new(clock)), ..self }
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        Revision(self.lock().revision)
    }

    /// Forgets the history so far, as a store does with old revisions: a watch from before now is told so.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.forgotten = state.revision;
        state.history.clear();
        state.wake();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder cannot leave the state half changed: commits are planned before they are applied.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the record of `key` is kept: with names per block, one place for all owners of a block.
    fn slot(&self, key: &Key) -> Key {
        match (self.naming, key) {
            (AffinityNaming::PerBlock, Key::Affinity(_, cidr)) => Key::Affinity(Owner::host(""), *cidr),
            _ => key.clone(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Memory")
            .field("revision", &state.revision)
            .field("records", &state.records.len())
            .finish_non_exhaustive()
    }
}

impl State {
    fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        while self.history.len() > HISTORY {
            if let Some(old) = self.history.pop_front() {
                self.forgotten = old.revision;
            }
        }
    }

    fn put(
        &mut self,
        slot: Key,
        record: Record,
        before: Option<Stored>,
        created: Option<Timestamp>,
    ) -> Version {
        let key = record.key();
        let (uid, created) = match before {
            Some(before) => {
                // Another owner took the place over: whoever follows the old one sees it go.
                let old = before.record.key();
                if old != key {
                    let revision = self.next_revision();
                    self.remember(Change { revision, key: old, stored: None });
                }
                (before.version.uid, before.created)
            }
            None => {
                self.identities += 1;
                (Some(format!("00000000-0000-4000-8000-{:012x}", self.identities)), created)
            }
        };
        let revision = self.next_revision();
        let version = Version { revision: Revision(revision), uid };
        let stored = Stored { record, version: version.clone(), created };
        let visible = !stored.record.is_deleted();
        self.remember(Change { revision, key, stored: visible.then(|| stored.clone()) });
        self.records.insert(slot, stored);
        version
    }
}

/// A key that no other of its kind is below.
fn lowest(kind: Kind) -> Key {
    match kind {
        Kind::Pool => Key::Pool(String::new()),
        Kind::Block => Key::Block(everything()),
        Kind::Affinity => Key::Affinity(Owner::host(""), everything()),
        Kind::Handle => Key::Handle(String::new()),
        Kind::Config => Key::Config,
        Kind::Reservation => Key::Reservation(String::new()),
        Kind::Node => Key::Node(String::new()),
        Kind::ClusterInformation => Key::ClusterInformation,
    }
}

/// The network that comes before all others.
fn everything() -> Cidr {
    Cidr::containing(Ipv4Addr::UNSPECIFIED.into(), 0).expect("a prefix of no bits fits any address")
}

impl Datastore for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_commit: true, name: "memory" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        Ok(self.lock().records.get(&self.slot(key)).filter(|stored| !stored.record.is_deleted()).cloned())
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        let state = self.lock();
        let kind = scope.kind();
        // Where affinities are named per node, those of one owner stand together.
        let (from, together) = match (scope, self.naming) {
            (Scope::AffinitiesOf(owner), AffinityNaming::PerNode) => {
                (Key::Affinity(owner.clone(), everything()), scope.clone())
            }
            _ => (lowest(kind), Scope::All(kind)),
        };
        // Counted before they are copied, so that nothing is copied twice.
        let found: Vec<&Stored> = state
            .records
            .range(from..)
            .take_while(|(slot, _)| together.holds(slot))
            .map(|(_, stored)| stored)
            .filter(|stored| !stored.record.is_deleted())
            .collect();
        let mut items: Vec<Stored> = found.into_iter().cloned().collect();
        // Slots are in key order, and those of one owner together, but for affinities named per block.
        if kind == Kind::Affinity && self.naming == AffinityNaming::PerBlock {
            items.retain(|stored| scope.holds(&stored.record.key()));
            items.sort_by_cached_key(|stored| stored.record.key());
        }
        Ok(Listing { items, revision: Revision(state.revision), ..Listing::default() })
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let created = self.clock.as_ref().map(|clock| clock());
        let mut state = self.lock();
        for check in checks {
            let (key, expected) = match check {
                Check::Unchanged(key, revision) => (key, Some(*revision)),
                Check::Absent(key) => (key, None),
            };
            let found = state.records.get(&self.slot(key)).map(|stored| stored.version.revision);
            if found != expected {
                return Err(CommitError::Conflict { key: key.clone(), written: 0 });
            }
        }
        let mut touched = std::collections::BTreeSet::new();
        for write in writes {
            let key = write.key();
            let slot = self.slot(&key);
            let found = state.records.get(&slot).map(|stored| &stored.version);
            let holds = match write {
                Write::Create(_) | Write::Pass { seen: None, .. } => found.is_none(),
                Write::Update(_, version)
                | Write::Delete(_, version)
                | Write::Pass { seen: Some(version), .. } => found.is_some_and(|found| {
                    found.revision == version.revision && (version.uid.is_none() || found.uid == version.uid)
                }),
            };
            // A second write of one record could only hold the version of before the commit.
            if !holds || !touched.insert(slot) {
                return Err(CommitError::Conflict { key, written: 0 });
            }
        }
        let mut versions = Vec::with_capacity(writes.len());
        for write in writes {
            let slot = self.slot(&write.key());
            let before = state.records.remove(&slot);
            versions.push(match write {
                Write::Create(record) | Write::Update(record, _) | Write::Pass { last: record, .. } => {
                    state.put(slot, record.clone(), before, created)
                }
                Write::Delete(_, version) => {
                    let key = before.map_or_else(|| write.key(), |old| old.record.key());
                    let revision = state.next_revision();
                    state.remember(Change { revision, key, stored: None });
                    version.clone()
                }
            });
        }
        state.wake();
        Ok(versions)
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        let what = scope.to_string();
        if from.0 < self.lock().forgotten {
            return Err(ReadError::Expired { what });
        }
        let watch = Watch { store: self.clone(), scope: scope.clone(), after: from.0 };
        // An expired watch says so once and ends.
        Ok(stream::StreamExt::scan(watch, false, |failed, item| {
            let ended = std::mem::replace(failed, item.is_err());
            futures::future::ready((!ended).then_some(item))
        })
        .boxed())
    }
}

struct Watch {
    store: Memory,
    scope: Scope,
    after: u64,
}

impl Stream for Watch {
    type Item = Result<Event, ReadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let store = this.store.clone();
        let mut state = store.lock();
        if this.after < state.forgotten {
            return Poll::Ready(Some(Err(ReadError::Expired { what: this.scope.to_string() })));
        }
        let start = state.history.partition_point(|change| change.revision <= this.after);
        for change in state.history.range(start..) {
            this.after = change.revision;
            if this.scope.holds(&change.key) {
                let event = match &change.stored {
                    Some(stored) => Event::Put(stored.clone()),
                    None => Event::Deleted(change.key.clone(), Revision(change.revision)),
                };
                return Poll::Ready(Some(Ok(event)));
            }
        }
        state.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, conformance};
    use api::{Affinity, AffinityState, Cidr, IpamConfig};
    use futures::executor::block_on;
    use futures::{FutureExt, StreamExt};

    fn affinity(node: &str) -> Affinity {
        let cidr: Cidr = "10.0.0.0/26".parse().unwrap();
        Affinity { owner: Owner::host(node), cidr, state: AffinityState::Pending, deleted: false }
    }

    #[test]
    fn keeps_the_contract_with_affinities_named_per_node() {
        block_on(conformance::run(&Memory::new())).unwrap();
    }

    #[test]
    fn keeps_the_contract_with_affinities_named_per_block() {
        block_on(conformance::run(&Memory::new().with_naming(AffinityNaming::PerBlock))).unwrap();
    }

    #[test]
    fn affinity_named_per_block_is_found_by_every_owner_and_leaves_the_old_owner_when_taken_over() {
        block_on(async {
            let store = Memory::new().with_naming(AffinityNaming::PerBlock);
            let (a, b) = (Record::Affinity(affinity("a")), Record::Affinity(affinity("b")));
            let version = store.commit(&[], &[Write::Create(a.clone())]).await.unwrap().remove(0);
            assert_eq!(store.get(&b.key()).await.unwrap().map(|stored| stored.record), Some(a.clone()));
            let second = store.commit(&[], &[Write::Create(b.clone())]).await;
            assert!(matches!(second, Err(CommitError::Conflict { .. })));
            let mut watch =
                store.watch(&Scope::AffinitiesOf(Owner::host("a")), version.revision).await.unwrap();
            store.commit(&[], &[Write::Update(b.clone(), version)]).await.unwrap();
            let event = watch.next().await.unwrap().unwrap();
            assert!(matches!(event, Event::Deleted(key, _) if key == a.key()));
        });
    }

    #[test]
    fn watch_of_forgotten_history_is_told_so_once_and_ends() {
        block_on(async {
            let store = Memory::new();
            let scope = Scope::All(Kind::Config);
            let mut watch = store.watch(&scope, Revision(0)).await.unwrap();
            store.commit(&[], &[Write::Create(Record::Config(IpamConfig::default()))]).await.unwrap();
            store.compact();
            assert!(matches!(watch.next().await, Some(Err(ReadError::Expired { .. }))));
            assert!(watch.next().await.is_none());
            assert!(matches!(store.watch(&scope, Revision(0)).await, Err(ReadError::Expired { .. })));
            let mut fresh = store.watch(&scope, store.revision()).await.unwrap();
            assert!(fresh.next().now_or_never().is_none());
        });
    }

    #[test]
    fn same_calls_give_the_same_versions() {
        let run = || {
            let store = Memory::new();
            block_on(store.commit(&[], &[Write::Create(Record::Affinity(affinity("a")))])).unwrap()
        };
        assert_eq!(run(), run());
    }
}
