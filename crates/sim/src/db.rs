//! The records of the simulated store: what a server would hold, and how it changes.
//!
//! Records are shared between the table, the history and the judge; a reader gets its own copy. Every change is also
//! put on a list of what was done since it was last asked, so that the judge looks at nothing else.

use api::{AffinityNaming, Owner};
use datastore::{
    Check, CommitError, Event, Key, Kind, Listing, Record, Revision, Scope, Stored, Version, Write,
};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which kind of store is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreKind {
    /// Atomic commits, no identities, no creation times: etcd.
    Etcd,
    /// Atomic commits, identities and creation times: the embedded API server.
    Embedded,
    /// One record at a time, deletes in two phases: a Kubernetes API.
    Kubernetes,
}

impl StoreKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::Embedded, Self::Kubernetes];

    /// A commit is all or nothing.
    pub fn is_atomic(self) -> bool {
        self != Self::Kubernetes
    }
}

/// One change of the history, as a watch tells it.
#[derive(Clone, Debug)]
pub struct Change {
    /// When.
    pub revision: u64,
    /// Of what.
    pub key: Key,
    /// The record after it; `None` for a delete.
    pub stored: Option<Arc<Stored>>,
}

impl Change {
    /// As a watch's event.
    pub fn event(&self) -> Event {
        match &self.stored {
            Some(stored) => Event::Put((**stored).clone()),
            None => Event::Deleted(self.key.clone(), Revision(self.revision)),
        }
    }
}

/// One record changed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Which.
    pub key: Key,
    /// What readers saw before.
    pub before: Option<Arc<Stored>>,
    /// What readers see now.
    pub after: Option<Arc<Stored>>,
}

/// A commit that is still on its way although its sender was told that there is no answer.
#[derive(Clone, Debug)]
pub struct Late {
    /// Its checks.
    pub checks: Vec<Check>,
    /// Its writes.
    pub writes: Vec<Write>,
}

/// The table.
#[derive(Debug)]
pub struct Db {
    kind: StoreKind,
    naming: AffinityNaming,
    revision: u64,
    identities: u64,
    tables: [BTreeMap<Key, Arc<Stored>>; 8],
    history: [Vec<Change>; 8],
    applied: Vec<Applied>,
    /// Commits on their way, each with the number of the task that sent it.
    late: Vec<(Late, Option<u64>)>,
}

fn table(kind: Kind) -> usize {
    match kind {
        Kind::Pool => 0,
        Kind::Block => 1,
        Kind::Affinity => 2,
        Kind::Handle => 3,
        Kind::Config => 4,
        Kind::Reservation => 5,
        Kind::Node => 6,
        Kind::ClusterInformation => 7,
    }
}

impl Db {
    /// An empty one. Affinities of an etcd are always named per node.
    pub fn new(kind: StoreKind, naming: AffinityNaming) -> Self {
        let naming = if kind == StoreKind::Etcd { AffinityNaming::PerNode } else { naming };
        Self {
            kind,
            naming,
            revision: 0,
            identities: 0,
            tables: Default::default(),
            history: Default::default(),
            applied: Vec::new(),
            late: Vec::new(),
        }
    }

    /// Which kind of store this is.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// How affinities are named.
    pub fn naming(&self) -> AffinityNaming {
        self.naming
    }

    /// Revision of the last change.
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    fn slot(&self, key: &Key) -> Key {
        match (self.naming, key) {
            (AffinityNaming::PerBlock, Key::Affinity(_, cidr)) => {
                Key::Affinity(Owner::host(String::new()), *cidr)
            }
            _ => key.clone(),
        }
    }

    fn raw(&self, key: &Key) -> Option<&Arc<Stored>> {
        let table = &self.tables[table(key.kind())];
        match (self.naming, key) {
            (AffinityNaming::PerBlock, Key::Affinity(..)) => table.get(&self.slot(key)),
            _ => table.get(key),
        }
    }

    /// The record of a key, unless it is half deleted.
    pub fn peek(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.raw(key).filter(|stored| !stored.record.is_deleted())
    }

    /// All records of a kind in the table's order, half deleted ones left out.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Stored>> {
        self.tables[table(kind)].values().filter(|stored| !stored.record.is_deleted())
    }

    /// Changes of a kind, oldest first.
    pub fn history(&self, kind: Kind) -> &[Change] {
        &self.history[table(kind)]
    }

    /// What was done since this was asked last.
    pub fn take_applied(&mut self, into: &mut Vec<Applied>) {
        into.append(&mut self.applied);
    }

    /// Reads one record. Whoever meets a half deleted one finishes its delete.
    pub fn get(&mut self, key: &Key) -> Option<Stored> {
        if self.raw(key)?.record.is_deleted() {
            let slot = self.slot(key);
            self.tables[table(key.kind())].remove(&slot);
            return None;
        }
        self.raw(key).map(|stored| (**stored).clone())
    }

    /// Reads a scope.
    pub fn list(&self, scope: &Scope) -> Listing {
        let kind = scope.kind();
        let held = self.all(kind).filter(|stored| match (scope, &stored.record) {
            (Scope::All(_), _) => true,
            (Scope::AffinitiesOf(owner), Record::Affinity(affinity)) => affinity.owner == *owner,
            _ => false,
        });
        let mut items: Vec<Stored> = held.map(|stored| (**stored).clone()).collect();
        if kind == Kind::Affinity && self.naming == AffinityNaming::PerBlock {
            items.sort_by_key(|stored| stored.record.key());
        }
        Listing { items, revision: Revision(self.revision), ..Listing::default() }
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn remember(&mut self, key: Key, stored: Option<Arc<Stored>>) {
        let revision =
            stored.as_ref().map_or_else(|| self.next_revision(), |stored| stored.version.revision.0);
        self.history[table(key.kind())].push(Change { revision, key, stored });
    }

    fn put(&mut self, record: Record, now: Timestamp) -> Version {
        let key = record.key();
        let before = self.raw(&key).cloned();
        let (uid, created) = match &before {
            Some(before) => {
                let old = before.record.key();
                // Another owner took the place over: whoever follows the old one sees it go.
                if old != key {
                    self.remember(old.clone(), None);
                    self.applied.push(Applied { key: old, before: Some(Arc::clone(before)), after: None });
                }
                (before.version.uid.clone(), before.created)
            }
            None if self.kind == StoreKind::Etcd => (None, None),
            None => {
                self.identities += 1;
                (Some(format!("u{}", self.identities)), Some(now))
            }
        };
        let version = Version { revision: Revision(self.next_revision()), uid };
        let stored = Arc::new(Stored { record, version: version.clone(), created });
        let seen = (!stored.record.is_deleted()).then(|| Arc::clone(&stored));
        let slot = self.slot(&key);
        self.tables[table(key.kind())].insert(slot, stored);
        match &seen {
            Some(_) => self.remember(key.clone(), seen.clone()),
            None => self.history[table(key.kind())].push(Change {
                revision: version.revision.0,
                key: key.clone(),
                stored: None,
            }),
        }
        let before = before.filter(|before| before.record.key() == key && !before.record.is_deleted());
        self.applied.push(Applied { key, before, after: seen });
        version
    }

    fn remove(&mut self, key: &Key) {
        let slot = self.slot(key);
        if let Some(before) = self.tables[table(key.kind())].remove(&slot) {
            let key = before.record.key();
            if !before.record.is_deleted() {
                self.remember(key.clone(), None);
                self.applied.push(Applied { key, before: Some(before), after: None });
            }
        }
    }

    fn holds(&self, key: &Key, seen: Option<&Version>) -> bool {
        match (self.raw(key), seen) {
            (None, None) => true,
            (Some(found), Some(seen)) => {
                found.version.revision == seen.revision
                    && (seen.uid.is_none() || found.version.uid == seen.uid)
            }
            _ => false,
        }
    }

    /// Makes one write; a delete removes at once.
    fn apply(&mut self, write: &Write, now: Timestamp) -> Version {
        match write {
            Write::Create(record) | Write::Update(record, _) | Write::Pass { last: record, .. } => {
                self.put(record.clone(), now)
            }
            Write::Delete(record, version) => {
                self.remove(&record.key());
                version.clone()
            }
        }
    }

    /// A whole commit, all or nothing.
    pub fn commit(
        &mut self,
        checks: &[Check],
        writes: &[Write],
        now: Timestamp,
    ) -> Result<Vec<Version>, CommitError> {
        let conflict = |key: &Key| Err(CommitError::Conflict { key: key.clone(), written: 0 });
        for check in checks {
            let (key, holds) = match check {
                Check::Absent(key) => (key, self.raw(key).is_none()),
                Check::Unchanged(key, revision) => {
                    (key, self.raw(key).is_some_and(|found| found.version.revision == *revision))
                }
            };
            if !holds {
                return conflict(key);
            }
        }
        for (index, write) in writes.iter().enumerate() {
            let key = write.key();
            let twice = writes.iter().take(index).any(|earlier| self.slot(&earlier.key()) == self.slot(&key));
            if twice || !self.holds(&key, seen(write)) {
                return conflict(&key);
            }
        }
        Ok(writes.iter().map(|write| self.apply(write, now)).collect())
    }

    /// One write of a store without commits.
    pub fn write(&mut self, write: &Write, now: Timestamp) -> Result<Version, CommitError> {
        let key = write.key();
        if !self.holds(&key, seen(write)) {
            return Err(CommitError::Conflict { key, written: 0 });
        }
        Ok(self.apply(write, now))
    }

    /// The same, of a client that deletes in two phases: a delete only marks the record.
    pub fn write_marking(&mut self, write: &Write, now: Timestamp) -> Result<Version, CommitError> {
        let key = write.key();
        if !self.holds(&key, seen(write)) {
            return Err(CommitError::Conflict { key, written: 0 });
        }
        if let Write::Delete(record, version) = write
            && let Some(marked) = marked(record)
        {
            self.put(marked, now);
            return Ok(version.clone());
        }
        Ok(self.apply(write, now))
    }

    /// Second phase of a delete: removes what is marked, and no successor of it.
    pub fn sweep(&mut self, key: &Key) {
        if self.raw(key).is_some_and(|found| found.record.is_deleted()) {
            let slot = self.slot(key);
            self.tables[table(key.kind())].remove(&slot);
        }
    }

    /// Keeps a commit that will arrive later than its sender waits.
    pub fn postpone(&mut self, late: Late) {
        self.late.push((late, None));
    }

    /// Says who sent the commits that were postponed since this was last said.
    pub fn sent_by(&mut self, task: u64) {
        for (_, sender) in self.late.iter_mut().rev().take_while(|(_, sender)| sender.is_none()) {
            *sender = Some(task);
        }
    }

    /// Commits on their way.
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// Lets one of them arrive, and answers what it writes first and who sent it. Nobody hears what became of it.
    pub fn arrive(&mut self, index: usize, now: Timestamp) -> Option<(Key, u64)> {
        if index >= self.late.len() {
            return None;
        }
        let (late, sender) = self.late.remove(index);
        let key = late.writes.first().map(Write::key);
        if self.kind.is_atomic() {
            let _ = self.commit(&late.checks, &late.writes, now);
        } else {
            for write in &late.writes {
                let _ = self.write(write, now);
            }
        }
        Some((key?, sender.unwrap_or(0)))
    }
}

/// The state that a write depends on; `None`: that there is nothing.
fn seen(write: &Write) -> Option<&Version> {
    match write {
        Write::Create(_) => None,
        Write::Update(_, version) | Write::Delete(_, version) => Some(version),
        Write::Pass { seen, .. } => seen.as_ref(),
    }
}

/// The record with its mark of deletion, where its kind has one.
fn marked(record: &Record) -> Option<Record> {
    match record.clone() {
        Record::Block(mut block) => {
            block.deleted = true;
            Some(Record::Block(block))
        }
        Record::Affinity(mut affinity) => {
            affinity.deleted = true;
            Some(Record::Affinity(affinity))
        }
        Record::Handle(mut handle) => {
            handle.deleted = true;
            Some(Record::Handle(handle))
        }
        _ => None,
    }
}
