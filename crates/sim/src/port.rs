//! A client's connection to the simulated store: every call waits until the scheduler says what becomes of it.
//!
//! One port belongs to one task of a client. A task may have several calls waiting at once.

use crate::clock::{SimClock, Time};
use crate::db::{Db, Late};
use datastore::ordered::{self, Single};
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Kind, Listing, ReadError, Record, Revision,
    Scope, Stored, Version, Write,
};
use futures::stream::{self, BoxStream, StreamExt};
use ipam::Clock as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What becomes of a datastore call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is made and answered.
    Proceed,
    /// The store refuses to talk: nothing was done, and the caller knows it.
    Refuse,
    /// It never arrives, and the caller learns only that there was no answer.
    LoseRequest,
    /// It takes effect, and the answer is lost.
    LoseReply,
    /// The caller is told that there was no answer; a write arrives later, or never.
    Late,
    /// It takes effect, and the caller dies before the answer: whoever grants this drops the task.
    DieAfter,
}

/// What a waiting call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reads one record.
    Get(Key),
    /// Reads a scope.
    List(Scope),
    /// An atomic commit: what it checks and what it writes.
    Commit {
        /// Keys checked and not written.
        checked: Vec<Key>,
        /// Keys written, in order.
        written: Vec<Key>,
    },
    /// One write of a store without commits.
    Write(Key),
    /// Second phase of a delete.
    Sweep(Key),
}

impl Call {
    /// Whether it can change anything.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Write(_) | Self::Sweep(_))
    }

    /// The kind of record it is mainly about.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Get(key) | Self::Write(key) | Self::Sweep(key) => key.kind(),
            Self::List(scope) => scope.kind(),
            Self::Commit { written, .. } => written.last().map_or(Kind::Config, Key::kind),
        }
    }
}

/// Number of a call within its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(u32);

#[derive(Debug)]
struct Waiting {
    id: CallId,
    call: Call,
    verdict: Option<Verdict>,
}

#[derive(Debug, Default)]
struct Calls {
    waiting: Vec<Waiting>,
    next: u32,
    /// Calls granted so far.
    granted: u32,
    /// Moments at which calls were granted with nothing under way before: sequential trips.
    trips: u32,
}

/// The scheduler's end of a task's calls. Clones are the same port.
#[derive(Clone, Debug, Default)]
pub struct Port(Arc<Mutex<Calls>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody panics while holding one of these and leaves it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    /// Calls that wait for a verdict.
    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.len()
    }

    /// The calls that wait, oldest first.
    pub fn calls(&self) -> Vec<(CallId, Call)> {
        lock(&self.0).waiting.iter().map(|waiting| (waiting.id, waiting.call.clone())).collect()
    }

    /// Says what becomes of the `index`th waiting call, and answers what it is.
    pub fn grant(&self, index: usize, verdict: Verdict) -> Option<Call> {
        let mut calls = lock(&self.0);
        calls.granted += 1;
        let waiting = calls.waiting.get_mut(index)?;
        waiting.verdict = Some(verdict);
        Some(waiting.call.clone())
    }

    /// Calls granted so far.
    pub fn granted(&self) -> u32 {
        lock(&self.0).granted
    }

    /// Sequential trips so far: calls that were asked for together count once.
    pub fn trips(&self) -> u32 {
        lock(&self.0).trips
    }
}

/// A call's turn: ready once there is a verdict. There is no waker: the scheduler polls whom it granted something.
struct Turn {
    calls: Arc<Mutex<Calls>>,
    id: CallId,
}

impl Future for Turn {
    type Output = Verdict;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Verdict> {
        let mut calls = lock(&self.calls);
        let place = calls.waiting.iter().position(|waiting| waiting.id == self.id);
        match place.and_then(|place| Some((place, calls.waiting.get(place)?.verdict?))) {
            Some((place, verdict)) => {
                calls.waiting.remove(place);
                Poll::Ready(verdict)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let id = self.id;
        lock(&self.calls).waiting.retain(|waiting| waiting.id != id);
    }
}

/// One task's connection.
#[derive(Clone, Debug)]
pub struct SimStore {
    db: Arc<Mutex<Db>>,
    port: Port,
    time: Time,
    clock: SimClock,
    atomic: bool,
    /// Whether deletes are in two phases, as peers make them on a store without transactions.
    marks: bool,
}

fn lost(what: impl ToString) -> ReadError {
    ReadError::Unavailable { what: what.to_string(), reason: "simulated loss".to_owned() }
}

impl SimStore {
    /// A connection to `db`, whose calls wait at `port`.
    pub fn new(db: Arc<Mutex<Db>>, port: Port, time: &Time) -> Self {
        let atomic = lock(&db).kind().is_atomic();
        Self { db, port, time: time.clone(), clock: time.clock(), atomic, marks: false }
    }

    /// The same connection for a peer, which marks what it deletes before it removes it (data model §3.3).
    #[must_use]
    pub fn marking(self) -> Self {
        Self { marks: true, ..self }
    }

    fn db(&self) -> MutexGuard<'_, Db> {
        lock(&self.db)
    }

    fn turn(&self, call: Call) -> Turn {
        let mut calls = lock(&self.port.0);
        calls.next += 1;
        let id = CallId(calls.next);
        if calls.waiting.iter().all(|waiting| waiting.verdict.is_some()) {
            calls.trips += 1;
        }
        calls.waiting.push(Waiting { id, call, verdict: None });
        Turn { calls: Arc::clone(&self.port.0), id }
    }

    /// A read: without an answer it does not matter whether the store saw it.
    async fn read<T>(
        &self,
        call: Call,
        what: impl ToString,
        read: impl FnOnce(&mut Db) -> T,
    ) -> Result<T, ReadError> {
        match self.turn(call).await {
            Verdict::Proceed => Ok(read(&mut self.db())),
            Verdict::DieAfter => std::future::pending().await,
            Verdict::LoseRequest | Verdict::LoseReply | Verdict::Late | Verdict::Refuse => Err(lost(what)),
        }
    }

    /// A write of any kind.
    async fn write<T>(
        &self,
        call: Call,
        key: &Key,
        late: impl FnOnce() -> Late,
        write: impl FnOnce(&mut Db, jiff::Timestamp) -> Result<T, CommitError>,
    ) -> Result<T, CommitError> {
        let unknown = || CommitError::Unknown { key: key.clone(), reason: "simulated loss".to_owned() };
        let verdict = self.turn(call).await;
        match verdict {
            Verdict::Proceed => write(&mut self.db(), self.clock.now()),
            Verdict::Refuse => {
                Err(CommitError::Unavailable { key: key.clone(), reason: "simulated refusal".to_owned() })
            }
            Verdict::LoseRequest => Err(unknown()),
            Verdict::LoseReply | Verdict::DieAfter => {
                // Whether it was refused or made, its sender does not hear it.
                let _ = write(&mut self.db(), self.clock.now());
                if verdict == Verdict::DieAfter {
                    return std::future::pending().await;
                }
                Err(unknown())
            }
            Verdict::Late => {
                let late = late();
                self.db().postpone(late);
                Err(unknown())
            }
        }
    }
}

impl Single for SimStore {
    type Before = Record;

    async fn write_one(&self, write: &Write) -> Result<Version, CommitError> {
        let key = write.key();
        let late = || Late { checks: Vec::new(), writes: vec![write.clone()] };
        let call = Call::Write(key.clone());
        let marks = self.marks && matches!(key.kind(), Kind::Block | Kind::Affinity | Kind::Handle);
        let made = |db: &mut Db, now| {
            if marks { db.write_marking(write, now) } else { db.write(write, now) }
        };
        let version = self.write(call, &key, late, made).await?;
        if marks && matches!(write, Write::Delete(..)) {
            // From its mark on the record is deleted. Whoever reads it next finishes what is left here.
            if self.turn(Call::Sweep(key.clone())).await == Verdict::Proceed {
                self.db().sweep(&key);
            }
        }
        Ok(version)
    }

    async fn version_of(&self, key: &Key) -> Result<Option<Version>, ReadError> {
        Ok(self.get(key).await?.map(|stored| stored.version))
    }

    async fn before(&self, key: &Key, version: &Version) -> Result<Option<Record>, ReadError> {
        let found = self.get(key).await?.filter(|stored| stored.version.revision == version.revision);
        Ok(found.map(|stored| stored.record))
    }

    async fn restore(&self, _: &Key, before: Record, version: &Version) -> Result<(), CommitError> {
        self.write_one(&Write::Update(before, version.clone())).await.map(drop)
    }

    async fn recreate(&self, _: &Key, before: Record) -> Result<(), CommitError> {
        self.write_one(&Write::Create(before)).await.map(drop)
    }

    fn elapsed(&self) -> Duration {
        self.time.ran()
    }
}

impl Datastore for SimStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_commit: self.atomic, name: "simulated" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.read(Call::Get(key.clone()), key, |db| db.get(key)).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.read(Call::List(scope.clone()), scope, |db| db.list(scope)).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        if !self.atomic {
            return ordered::commit(self, checks, writes).await;
        }
        let written: Vec<Key> = writes.iter().map(Write::key).collect();
        let key = written.first().cloned().unwrap_or(Key::Config);
        let checked = checks
            .iter()
            .map(|check| match check {
                Check::Unchanged(key, _) | Check::Absent(key) => key.clone(),
            })
            .collect();
        let late = || Late { checks: checks.to_vec(), writes: writes.to_vec() };
        let commit = |db: &mut Db, now| db.commit(checks, writes, now);
        self.write(Call::Commit { checked, written }, &key, late, commit).await
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        let db = Arc::clone(&self.db);
        let kind = scope.kind();
        let scope = scope.clone();
        let start = lock(&db).history(kind).partition_point(|change| change.revision <= from.0);
        // For the contract only: the simulator tells its agents of changes by itself.
        let changes = stream::unfold(start, move |mut at| {
            let next = loop {
                let db = lock(&db);
                match db.history(kind).get(at) {
                    None => break None,
                    Some(change) => {
                        at += 1;
                        if scope.holds(&change.key) {
                            break Some((Ok(change.event()), at));
                        }
                    }
                }
            };
            std::future::ready(next)
        });
        Ok(changes.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::StoreKind;
    use api::AffinityNaming;
    use std::pin::pin;
    use std::task::Waker;

    /// Drives a task alone, each of its calls granted in turn.
    fn alone<F: Future>(port: &Port, task: F) -> F::Output {
        let mut task = pin!(task);
        let mut context = Context::from_waker(Waker::noop());
        let mut idle = 0;
        loop {
            if let Poll::Ready(done) = task.as_mut().poll(&mut context) {
                return done;
            }
            // A task that only let others of its own go first is asked again.
            idle = if port.waiting() > 0 && port.grant(0, Verdict::Proceed).is_some() { 0 } else { idle + 1 };
            assert!(idle < 100, "the task waits for no call");
        }
    }

    #[test]
    fn every_kind_of_simulated_store_keeps_the_contract_of_the_drivers() {
        for kind in StoreKind::ALL {
            for naming in [AffinityNaming::PerNode, AffinityNaming::PerBlock] {
                let db = Arc::new(Mutex::new(Db::new(kind, naming)));
                let port = Port::default();
                let store = SimStore::new(db, port.clone(), &Time::default());
                let outcome = alone(&port, datastore::conformance::run(&store));
                assert_eq!(outcome, Ok(()), "{kind:?} {naming:?}");
            }
        }
    }

    #[test]
    fn calls_made_together_are_one_trip() {
        let db = Arc::new(Mutex::new(Db::new(StoreKind::Etcd, AffinityNaming::PerNode)));
        let port = Port::default();
        let store = SimStore::new(db, port.clone(), &Time::default());
        let keys = [Key::Config, Key::ClusterInformation, Key::Pool("p".to_owned())];
        alone(&port, async {
            let found = futures::future::join_all(keys.iter().map(|key| store.get(key))).await;
            assert!(found.iter().all(|found| *found == Ok(None)));
            assert_eq!(store.get(&Key::Config).await, Ok(None));
        });
        assert_eq!((port.granted(), port.trips()), (4, 2));
    }
}
