//! The records in etcd v3, under Calico's own keys (data model §3.2).
//!
//! A commit is one transaction whose conditions are its checks and the versions that its writes replace; with more
//! writes than the servers take in one, the handles among them go in transactions before or after it. Every call has a
//! deadline; reads are tried again at another member, no write is. Reads are linearizable.
//!
//! ```no_run
//! use datastore::{Datastore, Key, etcd::{Etcd, Settings}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Etcd::new(Settings::of(["http://127.0.0.1:2379"]))?;
//! let config = store.get(&Key::Config).await?;
//! # Ok(()) }
//! ```

pub mod entry;
mod failure;
mod members;
mod messages;
mod own;
mod path;
mod settings;
mod transaction;
mod value;
mod watching;

pub use settings::{DEADLINE, Login, Pem, Settings, SettingsError};

use crate::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Kind, Listing, ReadError, Record, Revision,
    Scope, Stored, Version, Write,
};
use api::wire::Over;
use failure::Failure;
use futures::stream::BoxStream;
use jiff::Timestamp;
use members::Members;
use messages::{KeyValue, RangeRequest, RangeResponse, TxnResponse};
use own::OWN;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use transaction::{Change, Condition, Step};

/// Records asked for in one page of a list.
const PAGE: i64 = 1000;

/// How often a read is tried before its failure is reported.
const READ_TRIES: u32 = 3;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// The driver. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Etcd {
    members: Arc<Members>,
    deadline: Duration,
    /// What the servers take in one transaction, as far as they said.
    operations: Arc<AtomicUsize>,
    /// Whole resources as last seen, by key: an update must not lose what others wrote in them. Nodes are not kept,
    /// they are many and seldom written.
    resources: Arc<Mutex<BTreeMap<Key, (Revision, Value)>>>,
}

impl Etcd {
    /// A driver over the members that `settings` name. Files are read; nothing is sent yet.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        Ok(Self {
            members: Arc::new(Members::new(&settings)?),
            deadline: settings.deadline,
            operations: Arc::new(AtomicUsize::new(settings.operations.max(1))),
            resources: Arc::default(),
        })
    }

    /// A read, tried again where another member may answer, and all of it within the deadline.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        let until = tokio::time::Instant::now() + self.deadline;
        let mut tries = 1;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            // A member that does not answer must leave time for the others.
            let others = self.members.are_several() && tries < READ_TRIES;
            let patience = if others { left / 2 } else { left };
            let failure = match self.members.call(messages::RANGE, request.clone(), patience).await {
                Err(failure) if failure.is_of_the_member() && tries < READ_TRIES => failure,
                result => return result,
            };
            tokio::time::sleep_until(until.min(tokio::time::Instant::now() + PAUSE)).await;
            // Without time a call would only give up a connection that may be good again.
            if tokio::time::Instant::now() >= until {
                return Err(failure);
            }
            tracing::debug!(?failure, "reading again");
            tries += 1;
        }
    }

    /// Hands on what stands from `first` to before `end`, page by page, as it was at the revision `at`, or as it is now if that is
    /// 0; and answers that revision.
    async fn pages(
        &self,
        (first, end): (&str, &str),
        mut at: i64,
        keys_only: bool,
        mut take: impl FnMut(Vec<KeyValue>),
    ) -> Result<i64, Failure> {
        let mut from = first.as_bytes().to_vec();
        loop {
            let request = RangeRequest {
                key: from,
                range_end: end.as_bytes().to_vec(),
                limit: PAGE,
                revision: at,
                keys_only,
                ..RangeRequest::default()
            };
            let page = self.range(request).await?;
            if at == 0 {
                at = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().filter(|_| page.more).map(|last| last.key.clone());
            take(page.kvs);
            match last {
                Some(last) => {
                    from = last;
                    from.push(0);
                }
                None => return Ok(at),
            }
        }
    }

    /// What stands at one key.
    async fn at(&self, path: String) -> Result<Option<KeyValue>, Failure> {
        let request = RangeRequest { key: path.into_bytes(), ..RangeRequest::default() };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// The record as read; of a whole resource the value is kept for the next update.
    fn note(&self, key: &Key, found: value::Found) -> Result<Stored, String> {
        let stored = found.record?;
        if let Some(fault) = found.mended {
            tracing::warn!(%key, fault, "mended record as it was read");
        }
        if !found.resource.is_null() && key.kind() != Kind::Node {
            let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.insert(key.clone(), (stored.version.revision, found.resource));
        }
        Ok(stored)
    }

    fn forget(&self, key: &Key) {
        if value::is_resource(key.kind()) {
            self.resources.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        }
    }

    /// The value that stood at `key` in the state `seen`.
    ///
    /// Datastore calls: none, or one if it was not read here before or is a node.
    async fn resource(&self, key: &Key, path: &str, seen: &Version) -> Result<Value, CommitError> {
        let known = {
            let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.get(key).filter(|(at, _)| *at == seen.revision).map(|(_, value)| value.clone())
        };
        if let Some(value) = known {
            return Ok(value);
        }
        let found = self.at(path.to_owned()).await.map_err(|failure| match failure {
            Failure::NoAnswer(reason) => CommitError::Unavailable { key: key.clone(), reason },
            failure => failure.writing(key.clone(), 0),
        })?;
        match found {
            Some(found) if value::version(&found).revision == seen.revision => {
                Ok(value::read(key, &found).resource)
            }
            _ => Err(CommitError::Conflict { key: key.clone(), written: 0 }),
        }
    }

    /// What `write` does to its key.
    async fn step(&self, write: &Write) -> Result<Step, CommitError> {
        let key = write.key();
        let path = path::of(&key).map_err(|bad| bad.writing(key.clone()))?;
        let over_what_stands = async |record: &Record, seen: &Version| {
            let before = if value::is_resource(key.kind()) {
                self.resource(&key, &path, seen).await?
            } else {
                Value::Null
            };
            Ok(Change::Put(value::write(record, Over::Value(&before))))
        };
        let change = match write {
            Write::Create(record) | Write::Pass { last: record, seen: None, .. } => {
                let uid = uuid::Uuid::new_v4().to_string();
                Change::Put(value::write(record, Over::Nothing { uid: &uid, created: Timestamp::now() }))
            }
            Write::Update(record, seen) | Write::Pass { last: record, seen: Some(seen), .. } => {
                over_what_stands(record, seen).await?
            }
            Write::Delete(..) => Change::Delete,
        };
        Ok(Step { condition: transaction::condition_of(write), key, path, change: Some(change) })
    }

    /// One transaction, after `written` writes of the same commit.
    async fn transact(&self, steps: &[Step], written: usize) -> Result<Revision, NotMade> {
        let Some(first) = steps.iter().find(|step| step.change.is_some()).or_else(|| steps.first()) else {
            return Ok(Revision(0));
        };
        let key = || first.key.clone();
        let request = transaction::request(steps);
        let answer: TxnResponse =
            self.members.call(messages::TXN, request, self.deadline).await.map_err(|failure| {
                if failure.is_too_many_operations() {
                    NotMade::TooMany
                } else {
                    NotMade::For(failure.writing(key(), written))
                }
            })?;
        if !answer.succeeded {
            let culprit = transaction::culprit(steps, &answer).unwrap_or_else(key);
            return Err(NotMade::For(CommitError::Conflict { key: culprit, written }));
        }
        Ok(answer.header.map_or(Revision(0), |header| messages::revision(header.revision)))
    }

    /// Makes `changes` if `checks` hold, in as few transactions as the servers take. Told after each is how many changes it made.
    ///
    /// What is known of the servers' limit is a guess until they say that it is too much, which they do before anything is
    /// done: then it is cut anew. What cannot be cut is sent as it is.
    async fn transact_in_parts(
        &self,
        mut checks: Vec<Step>,
        mut changes: Vec<Step>,
        mut made: impl FnMut(&[Step], Revision) -> usize,
    ) -> Result<(), CommitError> {
        let mut written = 0;
        'cut: loop {
            let limit = self.operations.load(Ordering::Relaxed);
            let all = checks.len() + changes.len();
            let cut = transaction::parts(checks.clone(), changes.clone(), limit);
            let (parts, last_word) = match cut {
                Ok(parts) => (parts, false),
                Err(_) => (vec![checks.iter().chain(&changes).cloned().collect()], true),
            };
            for part in parts {
                match self.transact(&part, written).await {
                    Ok(revision) => {
                        let count = made(&part, revision);
                        written += count;
                        changes.drain(..count);
                        // Checks and what belongs together are over with the first change that is no handle.
                        let is_rest =
                            |step: &Step| step.change.is_some() && !matches!(step.key, Key::Handle(_));
                        if part.iter().any(is_rest) {
                            checks.clear();
                        }
                    }
                    Err(NotMade::TooMany) if !last_word && part.len() > 1 => {
                        let less = part.len().div_ceil(2).min(limit);
                        tracing::info!(limit = less, "etcd takes fewer operations in one transaction");
                        self.operations.store(less, Ordering::Relaxed);
                        continue 'cut;
                    }
                    Err(NotMade::TooMany) => {
                        let key = changes.first().map_or(Key::Config, |step| step.key.clone());
                        let reason = format!(
                            "it takes a transaction of {all} operations, more than etcd takes: raise --max-txn-ops of the servers, or ask for less at once"
                        );
                        return Err(CommitError::Refused { key, reason, written });
                    }
                    Err(NotMade::For(error)) => return Err(error),
                }
            }
            if last_word {
                self.operations.fetch_max(all, Ordering::Relaxed);
            }
            return Ok(());
        }
    }
}

/// Why a transaction was not made.
enum NotMade {
    /// The servers do not take as many operations. Nothing was done.
    TooMany,
    For(CommitError),
}

/// The conditions that `checks` ask.
fn conditions(checks: &[Check]) -> Result<Vec<Step>, CommitError> {
    let step = |check: &Check| {
        let (key, condition) = match check {
            Check::Unchanged(key, revision) => (key, Condition::At(*revision)),
            Check::Absent(key) => (key, Condition::Absent),
        };
        let path = path::of(key).map_err(|bad| bad.writing(key.clone()))?;
        Ok(Step { key: key.clone(), path, condition, change: None })
    };
    checks.iter().map(step).collect()
}

impl Datastore for Etcd {
    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_commit: true, name: "etcd" }
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        let path = path::of(key).map_err(|bad| bad.reading(key.to_string()))?;
        let found = self.at(path).await.map_err(|failure| failure.reading(key.to_string()))?;
        let Some(found) = found else {
            self.forget(key);
            return Ok(None);
        };
        let stored = self
            .note(key, value::read(key, &found))
            .map_err(|reason| ReadError::Malformed { what: key.to_string(), reason })?;
        Ok((!stored.record.is_deleted()).then_some(stored))
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        let (first, end) = path::range(scope).map_err(|bad| bad.reading(scope.to_string()))?;
        let mut starts = 0;
        loop {
            starts += 1;
            let (mut items, mut unreadable, mut mended) = (Vec::new(), Vec::new(), Vec::new());
            let take = |page: Vec<KeyValue>| {
                for found in &page {
                    let Some((key, record)) = value::read_any(scope.kind(), found) else { continue };
                    let fault = record.mended.clone();
                    match self.note(&key, record) {
                        Ok(stored) if !stored.record.is_deleted() => {
                            mended.extend(fault.map(|fault| (key, fault)));
                            items.push(stored);
                        }
                        Ok(_) => {}
                        Err(reason) => {
                            tracing::warn!(%key, reason, "skipped record");
                            unreadable.push(key);
                        }
                    }
                }
            };
            match self.pages((&first, &end), 0, false, take).await {
                Ok(at) => {
                    items.sort_by_cached_key(|stored: &Stored| stored.record.key());
                    return Ok(Listing { items, revision: messages::revision(at), unreadable, mended });
                }
                // The pages' revision is gone: begin anew.
                Err(failure) if failure.is_expired() && starts < READ_TRIES => {}
                Err(failure) => return Err(failure.reading(scope.to_string())),
            }
        }
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let checks = conditions(checks)?;
        let mut changes = Vec::with_capacity(writes.len());
        let mut touched = BTreeSet::new();
        for write in writes {
            let key = write.key();
            // A second write of one record could only hold the version of before the commit.
            if !touched.insert(key.clone()) {
                return Err(CommitError::Conflict { key, written: 0 });
            }
            let step = self.step(write).await?;
            if let Some(Change::Put(text)) = &step.change {
                OWN.remember(&step.path, text, write.record());
            }
            changes.push(step);
        }
        let mut versions = Vec::with_capacity(writes.len());
        self.transact_in_parts(checks, changes, |part, revision| {
            let before = versions.len();
            for step in part.iter().filter(|step| step.change.is_some()) {
                self.forget(&step.key);
                versions
                    .extend(writes.get(versions.len()).map(|write| transaction::version_of(write, revision)));
            }
            versions.len() - before
        })
        .await?;
        Ok(versions)
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.open_watch(scope, from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read whose time is over must leave the connection alone that others may have made meanwhile.
    #[tokio::test]
    async fn a_read_that_ran_out_of_time_begins_no_further_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings =
            Settings { deadline: Duration::from_millis(300), ..Settings::of([format!("http://{address}")]) };
        let store = Etcd::new(settings).unwrap();
        // It takes connections and says nothing.
        let reading = async {
            let read = store.get(&Key::Config).await;
            assert!(matches!(read, Err(ReadError::Unavailable { .. })), "{read:?}");
            tokio::net::TcpStream::connect(address).await.unwrap()
        };
        let counting = async {
            let mut taken = Vec::new();
            loop {
                taken.push(listener.accept().await.unwrap());
                if taken.len() > 1 {
                    return taken;
                }
            }
        };
        let (last, taken) = futures::join!(reading, counting);
        assert_eq!(taken[1].1, last.local_addr().unwrap(), "the driver came a second time");
    }
}
