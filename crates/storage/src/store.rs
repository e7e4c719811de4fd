//! The store: readers on one side, the writer's thread on the other.

use crate::commit::{Check, Commit, CommitError, Write};
use crate::event::{Entry, Event};
use crate::file::{self, Disk, MadeDisk, OpenError, PathDisk};
use crate::history::History;
use crate::state::{Listing, State};
use crate::watch::{Compacted, Watch, Watchers};
use redb::{Database, StorageBackend};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{mpsc, oneshot};

/// Sizes of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Changes kept for watches that start in the past.
    pub history_events: usize,
    /// Bytes of values kept for them; beyond it only the latest thousand are.
    pub history_bytes: usize,
    /// Changes that may wait for one watcher before it is cut.
    pub watch_queue: usize,
    /// Bytes of keys and values that may wait for one watcher before it is cut.
    pub watch_bytes: usize,
    /// Commits made durable together.
    pub batch: usize,
    /// Commits that may wait; further callers wait to be taken.
    pub queue: usize,
    /// Bytes of keys and values in one commit.
    pub commit_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_events: 12_000,
            history_bytes: 16 << 20,
            watch_queue: 4096,
            watch_bytes: 16 << 20,
            batch: 256,
            queue: 1024,
            commit_bytes: 16 << 20,
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    watchers: RwLock<Watchers>,
    limits: Limits,
    /// Why the last write was refused by the disk, until one is made that puts something there.
    trouble: RwLock<Option<String>>,
}

impl Shared {
    // A panic while the lock is held cannot leave the state half changed in a way that matters more than going on:
    // every change is of one event, already durable.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_troubled(&self, by: Option<String>) {
        *self.trouble.write().unwrap_or_else(PoisonError::into_inner) = by;
    }

    fn watchers(&self) -> RwLockWriteGuard<'_, Watchers> {
        self.watchers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer = oneshot::Sender<Result<Vec<u64>, CommitError>>;

struct Request {
    commit: Commit,
    answer: Answer,
}

/// The way to the writer's thread, which ends with it.
#[derive(Debug)]
struct Queue {
    /// Taken out only at the end.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // Commits whose callers went away are still made. A writer that panicked has closed the file as well.
            let _ = writer.join();
        }
    }
}

/// A handle of an open store; clones are the same store.
///
/// Dropping the last one closes the file: it waits for what is being committed, and the file can be opened again at
/// once.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

impl Store {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`OpenError`]: in use, not readable, or not a store.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, OpenError> {
        Self::start(Box::new(PathDisk(path.to_owned())), limits)
    }

    /// Opens what `make` gives; it is called once now and once after each failure of the disk.
    ///
    /// # Errors
    /// [`OpenError`] as for a file.
    pub fn open_on<B: StorageBackend>(
        make: impl Fn() -> B + Send + 'static,
        limits: Limits,
    ) -> Result<Self, OpenError> {
        Self::start(Box::new(MadeDisk(make)), limits)
    }

    /// A store that is gone with the process.
    ///
    /// # Errors
    /// [`OpenError`] in principle; memory does not refuse.
    pub fn in_memory() -> Result<Self, OpenError> {
        Self::open_on(redb::backends::InMemoryBackend::new, Limits::default())
    }

    fn start(disk: Box<dyn Disk>, limits: Limits) -> Result<Self, OpenError> {
        let opened = file::open(disk.as_ref())?;
        let state = State {
            revision: opened.revision,
            index: opened.index,
            history: History::new(opened.revision, limits.history_events, limits.history_bytes),
        };
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            watchers: RwLock::default(),
            limits,
            trouble: RwLock::default(),
        });
        let (requests, queue) = mpsc::channel(limits.queue.max(1));
        let writer =
            Writer { disk, database: Some(opened.database), in_doubt: None, shared: Arc::clone(&shared) };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| OpenError::Io {
                path: "the writer's thread".into(),
                source: Box::new(redb::Error::Io(error)),
            })?;
        Ok(Self { shared, queue: Arc::new(Queue { requests: Some(requests), writer: Some(writer) }) })
    }

    /// Revision of the last change. 0: nothing was ever written.
    pub fn revision(&self) -> u64 {
        self.shared.read().revision
    }

    /// Oldest revision from which a watch can start or that can be listed.
    pub fn oldest(&self) -> u64 {
        self.shared.read().history.complete_after()
    }

    /// The current value of a key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.shared.read().index.get(key).cloned()
    }

    /// The current value of a key, and the revision it was read at.
    pub fn get_at_revision(&self, key: &str) -> (Option<Entry>, u64) {
        let state = self.shared.read();
        (state.index.get(key).cloned(), state.revision)
    }

    /// Entries whose key begins with `prefix` and comes after the key `after`, at most `limit` (0: all).
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Listing {
        self.shared.read().list(prefix, after, limit)
    }

    /// As [`Store::list`], as it was at `revision`.
    ///
    /// # Errors
    /// [`Compacted`] when the history no longer reaches back that far.
    pub fn list_at(
        &self,
        revision: u64,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, Compacted> {
        let state = self.shared.read();
        let oldest = state.history.complete_after();
        state.list_at(revision, prefix, after, limit).ok_or(Compacted { asked: revision, oldest })
    }

    /// Whether any key begins with `prefix`.
    pub fn any(&self, prefix: &str) -> bool {
        !self.shared.read().list(prefix, None, 1).entries.is_empty()
    }

    /// Follows the keys of `prefix` from just after revision `after`.
    ///
    /// # Errors
    /// [`Compacted`] when changes since are no longer all in the history.
    pub fn watch(&self, prefix: &str, after: u64) -> Result<Watch, Compacted> {
        // The state is held while the watcher is added: what is published later comes by the queue, what was
        // published before by the backlog, and nothing by both.
        let state = self.shared.read();
        let oldest = state.history.complete_after();
        let since = state.history.since(after).ok_or(Compacted { asked: after, oldest })?;
        let backlog = since.filter(|event| event.key.starts_with(prefix)).cloned().collect();
        let live = self.shared.watchers().add(prefix, self.shared.limits.watch_queue);
        Ok(Watch { backlog, live })
    }

    /// How many watches are open.
    pub fn watchers(&self) -> usize {
        self.shared.watchers().len()
    }

    /// What the disk said when it refused the last write; none once it has taken one that puts something there. Deletes are
    /// still made by a full disk, so that they say nothing.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the commit, durably, and returns the revision of each of its writes.
    ///
    /// Commits that wait at the same time share one synchronisation of the disk; a refused one refuses no other.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] when a check does not hold; the others as they say.
    ///
    /// # Cancellation
    /// Dropping the future may leave the commit made or not made, never half made.
    pub async fn commit(&self, commit: Commit) -> Result<Vec<u64>, CommitError> {
        let bytes = commit.writes.iter().map(size).sum();
        let limit = self.shared.limits.commit_bytes;
        if bytes > limit {
            return Err(CommitError::TooLarge { bytes, limit });
        }
        let (answer, answered) = oneshot::channel();
        let requests = self.queue.requests.as_ref().ok_or(CommitError::Closed)?;
        requests.send(Request { commit, answer }).await.map_err(|_closed| CommitError::Closed)?;
        answered.await.map_err(|_closed| CommitError::Closed)?
    }
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put(key, value) => key.len() + value.len(),
        Write::Delete(key) => key.len(),
    }
}

/// A batch whose durability is unknown, because the disk failed under it.
struct InDoubt {
    events: Vec<Arc<Event>>,
    revision: u64,
}

struct Writer {
    disk: Box<dyn Disk>,
    /// `None` after a failure of the disk, until it can be opened again.
    database: Option<Database>,
    in_doubt: Option<InDoubt>,
    shared: Arc<Shared>,
}

/// Commits checked against the state and against each other, not yet durable.
#[derive(Default)]
struct Batch {
    events: Vec<Arc<Event>>,
    /// What the keys touched so far will hold.
    overlay: HashMap<String, Option<Entry>>,
    revision: u64,
    answers: Vec<(Answer, Result<Vec<u64>, CommitError>)>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            waiting.push(first);
            while waiting.len() < self.shared.limits.batch {
                match queue.try_recv() {
                    Ok(next) => waiting.push(next),
                    Err(_) => break,
                }
            }
            self.serve(waiting.drain(..));
        }
        self.shared.watchers().clear();
    }

    fn serve(&mut self, requests: impl Iterator<Item = Request>) {
        if let Err(error) = self.reopen() {
            self.shared.is_troubled(Some(error.to_string()));
            for request in requests {
                // Whoever asked may be gone.
                let _ = request.answer.send(Err(error.clone()));
            }
            return;
        }
        let batch = self.plan(requests);
        let outcome = self.make_durable(&batch);
        if outcome.is_ok() {
            self.publish(&batch.events, batch.revision);
        }
        for (answer, verdict) in batch.answers {
            let _ = answer.send(outcome.clone().and(verdict));
        }
    }

    /// Opens the file again after a failure, and finds out what became of the batch that failed.
    fn reopen(&mut self) -> Result<(), CommitError> {
        if self.database.is_some() {
            return Ok(());
        }
        let name = self.name();
        let unavailable = |reason: String| CommitError::Unavailable { file: name.clone(), reason };
        let database = self.disk.open().map_err(|error| unavailable(error.to_string()))?;
        let durable = file::revision(&database).map_err(|error| unavailable(error.to_string()))?;
        let known = self.shared.read().revision;
        match self.in_doubt.take() {
            Some(in_doubt) if in_doubt.revision == durable => {
                self.publish(&in_doubt.events, in_doubt.revision)
            }
            in_doubt if durable != known => {
                self.in_doubt = in_doubt;
                let reason =
                    format!("it is at revision {durable} after the failure, and {known} was answered");
                return Err(unavailable(reason));
            }
            _ => {}
        }
        tracing::info!(revision = durable, "opened the store again after a failure of the disk");
        self.database = Some(database);
        Ok(())
    }

    fn plan(&self, requests: impl Iterator<Item = Request>) -> Batch {
        let state = self.shared.read();
        let mut batch = Batch { revision: state.revision, ..Batch::default() };
        for Request { commit, answer } in requests {
            let verdict = batch.take(&state, commit);
            batch.answers.push((answer, verdict));
        }
        batch
    }

    fn make_durable(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let Some(database) = &self.database else { return Err(CommitError::Closed) };
        if batch.revision == self.shared.read().revision {
            return Ok(());
        }
        let Err(error) = file::write(database, &batch.events, batch.revision) else {
            if batch.events.iter().any(|event| event.now.is_some()) {
                self.shared.is_troubled(None);
            }
            return Ok(());
        };
        self.shared.is_troubled(Some(error.to_string()));
        tracing::error!(%error, file = self.name(), "could not write: the store is read-only until the disk is mended");
        self.database = None;
        self.in_doubt = Some(InDoubt { events: batch.events.clone(), revision: batch.revision });
        Err(CommitError::Unavailable { file: self.name(), reason: error.to_string() })
    }

    fn publish(&self, events: &[Arc<Event>], revision: u64) {
        let mut state = self.shared.write();
        let mut watchers = self.shared.watchers();
        for event in events {
            state.publish(Arc::clone(event));
            watchers.tell(event, self.shared.limits.watch_bytes);
        }
        state.revision = revision;
    }

    fn name(&self) -> String {
        self.disk.name().display().to_string()
    }
}

impl Batch {
    fn current<'a>(&'a self, state: &'a State, key: &str) -> Option<&'a Entry> {
        match self.overlay.get(key) {
            Some(planned) => planned.as_ref(),
            None => state.index.get(key),
        }
    }

    fn take(&mut self, state: &State, commit: Commit) -> Result<Vec<u64>, CommitError> {
        for check in commit.checks {
            let (key, expected) = match check {
                Check::Revision(key, revision) => (key, Some(revision)),
                Check::Absent(key) => (key, None),
            };
            let found = self.current(state, &key).map(|entry| entry.revision);
            if found != expected {
                return Err(CommitError::Conflict { key, found });
            }
        }
        let mut revisions = Vec::with_capacity(commit.writes.len());
        for write in commit.writes {
            self.revision += 1;
            let revision = self.revision;
            revisions.push(revision);
            let before = self.current(state, write.key()).cloned();
            let (key, now) = match write {
                Write::Put(key, value) => {
                    let created = before.as_ref().map_or(revision, |entry| entry.created);
                    (key, Some(Entry { revision, created, value }))
                }
                Write::Delete(key) => (key, None),
            };
            if now.is_none() && before.is_none() {
                continue;
            }
            self.overlay.insert(key.clone(), now.clone());
            self.events.push(Arc::new(Event { revision, key, now, before }));
        }
        Ok(revisions)
    }
}
