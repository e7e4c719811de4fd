//! The lock of a datastore that is being migrated (`datastoreReady` of its ClusterInformation) as a barrier for writes.
//!
//! A writer that only watches the lock may have a commit under way when the lock is set. Where commits are atomic every commit
//! through a [`Gate`] therefore has one condition more: that the cluster's information is as it was when it was last seen
//! unlocked. Who locks changes it, and whatever was decided before is refused. On a plain Kubernetes API, which has no
//! transaction, the condition would be a request of its own for every commit and prove nothing about the moment of the write:
//! there the gate is open, and writers look at the lock before they begin.

use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Record, Revision, Scope,
    Stored, Version, Write,
};
use futures::stream::BoxStream;
use std::sync::{Arc, Mutex, PoisonError};

/// How often a commit is tried when the cluster's information changes under it and stays unlocked.
const TRIES: usize = 3;

/// A store whose commits are refused while it is locked. Clones share what is known of the lock.
#[derive(Clone, Debug)]
pub struct Gate<D> {
    store: D,
    /// What must hold of the cluster's information: how it was when it was last seen unlocked.
    open: Arc<Mutex<Option<Check>>>,
}

impl<D> Gate<D> {
    /// A gate before `store`.
    pub fn new(store: D) -> Self {
        Self { store, open: Arc::default() }
    }

    /// The store behind it, for who reads, and for who sets the lock.
    pub fn behind(&self) -> &D {
        &self.store
    }

    fn known(&self) -> Option<Check> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, open: Option<Check>) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }
}

/// What a look at the lock says.
enum Lock {
    /// Open as long as this holds.
    Open(Check),
    Set,
    /// It may not be read here, or makes no sense: nothing follows from it.
    Unknowable,
}

impl<D: Datastore> Gate<D> {
    async fn look(&self) -> Result<Lock, ReadError> {
        let key = Key::ClusterInformation;
        match self.store.get(&key).await {
            Ok(None) => Ok(Lock::Open(Check::Absent(key))),
            Ok(Some(Stored { record: Record::ClusterInformation(cluster), version, .. })) => {
                Ok(if cluster.datastore_ready {
                    Lock::Open(Check::Unchanged(key, version.revision))
                } else {
                    Lock::Set
                })
            }
            Ok(Some(_)) | Err(ReadError::Forbidden { .. } | ReadError::Malformed { .. }) => {
                Ok(Lock::Unknowable)
            }
            Err(error) => Err(error),
        }
    }

    /// The condition under which writes are allowed, read where it is not known.
    async fn condition(&self, key: &Key) -> Result<Option<Check>, CommitError> {
        if let Some(open) = self.known() {
            return Ok(Some(open));
        }
        let refused = |reason: String| CommitError::Unavailable { key: key.clone(), reason };
        match self.look().await {
            Ok(Lock::Open(check)) => {
                self.remember(Some(check.clone()));
                Ok(Some(check))
            }
            Ok(Lock::Set) => Err(refused(
                "it is locked for a migration; calicoctl datastore migrate unlock ends that".to_owned(),
            )),
            Ok(Lock::Unknowable) => Ok(None),
            Err(error) => Err(refused(error.to_string())),
        }
    }
}

impl<D: Datastore> Datastore for Gate<D> {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.store.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.store.list(scope).await
    }

    /// As the store behind it; [`CommitError::Unavailable`] while that is locked.
    ///
    /// Datastore calls: those of the store behind it, and where commits are atomic one read before the first commit, and one
    /// for each commit that meets the lock or a change of the cluster's information.
    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let first = writes.first().map_or(Key::Config, Write::key);
        let mut guarded: Vec<Check> = checks.to_vec();
        for _ in 0..TRIES {
            if !self.store.capabilities().atomic_commit {
                break;
            }
            let Some(open) = self.condition(&first).await? else { break };
            guarded.truncate(checks.len());
            guarded.push(open);
            match self.store.commit(&guarded, writes).await {
                Err(CommitError::Conflict { key: Key::ClusterInformation, written }) => {
                    self.remember(None);
                    if written > 0 {
                        return Err(CommitError::Conflict { key: Key::ClusterInformation, written });
                    }
                }
                result => return result,
            }
        }
        // A condition that fails although what it says was read holds for an API that does not have the kind at all: nobody can
        // have locked there.
        if matches!(guarded.get(checks.len()), Some(Check::Unchanged(..))) {
            let reason = "the cluster's information changes all the time".to_owned();
            return Err(CommitError::Unavailable { key: first, reason });
        }
        self.store.commit(checks, writes).await
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.store.watch(scope, from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use api::{ClusterInformation, Handle};
    use futures::executor::block_on;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn handle(id: &str) -> [Write; 1] {
        let blocks = [("10.0.0.0/26".parse().unwrap(), 1)].into();
        [Write::Create(Record::Handle(Handle { id: id.to_owned(), blocks, deleted: false }))]
    }

    async fn set(store: &Memory, datastore_ready: bool) {
        let record = Record::ClusterInformation(ClusterInformation { datastore_ready, ..Default::default() });
        let write = match store.get(&Key::ClusterInformation).await.unwrap() {
            Some(stored) => Write::Update(record, stored.version),
            None => Write::Create(record),
        };
        store.commit(&[], &[write]).await.unwrap();
    }

    fn is_there(store: &Memory, id: &str) -> bool {
        block_on(store.get(&Key::Handle(id.to_owned()))).unwrap().is_some()
    }

    fn is_locked_out(result: &Result<Vec<Version>, CommitError>) -> bool {
        matches!(result, Err(CommitError::Unavailable { reason, .. }) if reason.contains("locked"))
    }

    #[test]
    fn a_commit_that_was_decided_before_the_lock_is_refused_after_it() {
        let store = Memory::new();
        let gate = Gate::new(store.clone());
        // No cluster's information is no lock; nor is one that is ready, whenever it comes.
        block_on(gate.commit(&[], &handle("absent"))).unwrap();
        block_on(set(&store, true));
        block_on(gate.commit(&[], &handle("ready"))).unwrap();
        block_on(set(&store, false));
        for _ in 0..2 {
            let refused = block_on(gate.commit(&[], &handle("late")));
            assert!(is_locked_out(&refused), "{refused:?}");
            assert!(!is_there(&store, "late"));
        }
        block_on(set(&store, true));
        block_on(gate.commit(&[], &handle("late"))).unwrap();
        assert!(is_there(&store, "late"));
    }

    /// A store that counts what it is asked, and may be locked while a commit is on its way to it.
    #[derive(Clone)]
    struct Watched {
        store: Memory,
        atomic_commit: bool,
        locks: bool,
        reads: Arc<AtomicUsize>,
        checks: Arc<AtomicUsize>,
    }

    impl Datastore for Watched {
        fn capabilities(&self) -> Capabilities {
            Capabilities { atomic_commit: self.atomic_commit, ..self.store.capabilities() }
        }

        async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.store.get(key).await
        }

        async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
            self.store.list(scope).await
        }

        async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
            if self.locks {
                set(&self.store, false).await;
            }
            self.checks.fetch_add(checks.len(), Ordering::Relaxed);
            self.store.commit(checks, writes).await
        }

        async fn watch(
            &self,
            scope: &Scope,
            from: Revision,
        ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
            self.store.watch(scope, from).await
        }
    }

    fn gate(atomic_commit: bool, locks: bool) -> Gate<Watched> {
        let store = Memory::new();
        block_on(set(&store, true));
        Gate::new(Watched { store, atomic_commit, locks, reads: Arc::default(), checks: Arc::default() })
    }

    #[test]
    fn a_lock_that_is_set_while_a_commit_is_on_its_way_refuses_it() {
        let gate = gate(true, true);
        let refused = block_on(gate.commit(&[], &handle("h")));
        assert!(is_locked_out(&refused), "{refused:?}");
        assert!(!is_there(&gate.behind().store, "h"));
    }

    #[test]
    fn where_commits_are_not_atomic_the_gate_costs_no_call_and_asks_nothing() {
        let gate = gate(false, true);
        block_on(gate.commit(&[], &handle("h"))).unwrap();
        assert_eq!(gate.behind().reads.load(Ordering::Relaxed), 0);
        assert_eq!(gate.behind().checks.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_lock_is_read_before_the_first_commit_and_not_again() {
        let gate = gate(true, false);
        for id in ["a", "b", "c"] {
            block_on(gate.clone().commit(&[], &handle(id))).unwrap();
        }
        assert_eq!(gate.behind().reads.load(Ordering::Relaxed), 1);
    }
}
