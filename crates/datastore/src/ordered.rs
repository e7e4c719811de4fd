//! The commit of a store without transactions: writes in order, checks read again after them, undone where one fails
//! (architecture D3, D5).
//!
//! ```text
//!   affinity pending, handles (together) ─► block ─► checks read again ─► affinity confirmed ─► answered
//!                                             └──────────────┴─ one fails: everything taken back, last first
//! ```
//!
//! One function for every such store: the Kubernetes driver runs it, and so does the simulator.

use crate::{Check, CommitError, Key, Kind, ReadError, Record, Version, Write};
use futures::future::join_all;
use std::future::Future;
use std::time::Duration;

/// Writes of handles that go out together at most.
const TOGETHER: usize = 32;

/// How old a handle written by this commit may be when the block that counts on it is written. Below what a
/// collector waits before it takes a handle without addresses for an orphan (architecture D4).
const HANDLE_FRESH: Duration = Duration::from_secs(10);

/// A store that changes one record at a time, each change under its condition.
pub trait Single: Sync {
    /// What [`Single::restore`] and [`Single::recreate`] need of a record that was replaced or deleted.
    type Before: Send;

    /// Makes one write, never a [`Write::Pass`]. `written` of an error is 0.
    fn write_one(&self, write: &Write) -> impl Future<Output = Result<Version, CommitError>> + Send;

    /// The state of a record; `None` where there is none or it is deleted.
    fn version_of(&self, key: &Key) -> impl Future<Output = Result<Option<Version>, ReadError>> + Send;

    /// What a write is about to replace or delete, if that still is in the state `version`.
    fn before(
        &self,
        key: &Key,
        version: &Version,
    ) -> impl Future<Output = Result<Option<Self::Before>, ReadError>> + Send;

    /// Puts back what stood before an update whose outcome was `version`.
    fn restore(
        &self,
        key: &Key,
        before: Self::Before,
        version: &Version,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Makes a record again that was deleted, as it stood before.
    fn recreate(
        &self,
        key: &Key,
        before: Self::Before,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Time since some fixed instant; never runs backwards.
    fn elapsed(&self) -> Duration;
}

/// What takes a write back that was made.
enum Undo<B> {
    Remove(Record, Version),
    Restore(Key, B, Version),
    Recreate(Key, B),
}

/// Makes the writes in order, those of consecutive handles together and with what passes through a state before them;
/// reads the checks of records that are not written again after the last one; then brings what passes through a state to
/// its last one.
///
/// Where a check fails, the writes are undone and `written` tells how many could not be; so they are where a write of a
/// commit with checks is refused: a lost claim leaves neither affinity nor handle. A write without an answer is left as it
/// is: what stands then is what a crash would leave, and whoever asked looks.
///
/// Datastore calls: one per write (a [`Write::Pass`] two), one per check of a record that is not written, with such
/// checks one more per record that is replaced or deleted, and one per write that has to be undone; one per handle when more
/// than ten seconds passed between it and the next other write.
///
/// # Errors
/// See [`CommitError`].
pub async fn commit<S: Single>(
    store: &S,
    checks: &[Check],
    writes: &[Write],
) -> Result<Vec<Version>, CommitError> {
    let foreign = checks_of_others(checks, writes)?;
    let mut run = Run { store, guarded: !foreign.is_empty(), versions: Vec::new(), undos: Vec::new() };
    let mut handles_at = None;
    for wave in waves(writes) {
        match wave {
            [write] if write.key().kind() != Kind::Handle => {
                run.handles_still_there(writes, &mut handles_at).await?;
                run.make_or_undo(std::slice::from_ref(write)).await?;
            }
            wave => {
                handles_at.get_or_insert_with(|| store.elapsed());
                run.make_or_undo(wave).await?;
            }
        }
    }
    for check in foreign {
        run.check(check).await?;
    }
    run.finish(writes).await
}

struct Run<'a, S: Single> {
    store: &'a S,
    /// There are checks that may make it necessary to undo.
    guarded: bool,
    versions: Vec<Version>,
    undos: Vec<Undo<S::Before>>,
}

impl<S: Single> Run<'_, S> {
    /// Makes writes that do not depend on each other. Where one is refused for certain, what was made is undone.
    async fn make_or_undo(&mut self, wave: &[Write]) -> Result<(), CommitError> {
        match self.make(wave).await {
            Err(CommitError::Conflict { key, .. }) if self.guarded => {
                Err(CommitError::Conflict { key, written: self.undo().await })
            }
            Err(CommitError::Refused { key, reason, .. }) if self.guarded => {
                Err(CommitError::Refused { key, reason, written: self.undo().await })
            }
            result => result,
        }
    }

    /// Makes writes that do not depend on each other.
    async fn make(&mut self, wave: &[Write]) -> Result<(), CommitError> {
        // Only a commit that may have to be undone pays for looking at what it replaces.
        let this = &*self;
        let looks = wave.iter().map(|write| async move {
            match replaced(write) {
                Some(version) if this.guarded => this.before(&write.key(), version).await.map(Some),
                _ => Ok(None),
            }
        });
        let befores = join_all(looks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let store = self.store;
        let results = join_all(wave.iter().map(|write| async move {
            match write {
                Write::Pass { passing, seen, .. } => {
                    let first = match seen {
                        None => Write::Create((**passing).clone()),
                        Some(version) => Write::Update((**passing).clone(), version.clone()),
                    };
                    store.write_one(&first).await
                }
                write => store.write_one(write).await,
            }
        }))
        .await;
        let made = self.versions.len() + results.iter().filter(|result| result.is_ok()).count();
        let mut failure: Option<CommitError> = None;
        for ((write, before), result) in wave.iter().zip(befores).zip(results) {
            match result {
                Ok(version) => {
                    if self.guarded {
                        self.undos.push(undo(write, before, &version));
                    }
                    self.versions.push(version);
                }
                // Not knowing outweighs knowing that it failed.
                Err(error @ CommitError::Unknown { .. }) => failure = Some(error),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), |error| Err(after(error, made)))
    }

    async fn before(&self, key: &Key, version: &Version) -> Result<S::Before, CommitError> {
        let written = self.versions.len();
        match self.store.before(key, version).await {
            Ok(Some(before)) => Ok(before),
            Ok(None) => Err(CommitError::Conflict { key: key.clone(), written }),
            Err(ReadError::Unavailable { reason, .. }) if written == 0 => {
                Err(CommitError::Unavailable { key: key.clone(), reason })
            }
            Err(error) => Err(unknown(key, &error)),
        }
    }

    /// A handle that was written long ago may have been collected as an orphan: no block may count on it then.
    async fn handles_still_there(
        &mut self,
        writes: &[Write],
        written_at: &mut Option<Duration>,
    ) -> Result<(), CommitError> {
        let now = self.store.elapsed();
        if written_at.is_some_and(|at| now.saturating_sub(at) > HANDLE_FRESH) {
            // What is read from here on is younger than `now`: one look is enough, however long it takes.
            let written: Vec<(Key, Version)> = writes
                .iter()
                .zip(&self.versions)
                .filter(|(write, _)| {
                    matches!(write, Write::Create(Record::Handle(_)) | Write::Update(Record::Handle(_), _))
                })
                .map(|(write, version)| (write.key(), version.clone()))
                .collect();
            let store = self.store;
            let found = join_all(written.iter().map(|(key, _)| store.version_of(key))).await;
            for ((key, version), found) in written.iter().zip(found) {
                match found {
                    Ok(found) if found.as_ref() == Some(version) => {}
                    Ok(_) => {
                        // Without checks nothing is taken back, and everything stands.
                        let standing = self.versions.len();
                        let written = if self.guarded { self.undo().await } else { standing };
                        return Err(CommitError::Conflict { key: key.clone(), written });
                    }
                    Err(error) => return Err(unknown(key, &error)),
                }
            }
            *written_at = Some(now);
        }
        Ok(())
    }

    async fn check(&mut self, check: &Check) -> Result<(), CommitError> {
        let (Check::Unchanged(key, _) | Check::Absent(key)) = check;
        let holds = match (self.store.version_of(key).await, check) {
            (Ok(found), Check::Unchanged(_, revision)) => {
                found.is_some_and(|found| found.revision == *revision)
            }
            (Ok(found), Check::Absent(_)) => found.is_none(),
            (Err(error), _) => {
                // Nobody is answered on a check that could not be read: take everything back.
                self.undo().await;
                return Err(unknown(key, &error));
            }
        };
        if holds {
            return Ok(());
        }
        let left = self.undo().await;
        tracing::info!(record = %key, left, "check failed, commit undone");
        Err(CommitError::Conflict { key: key.clone(), written: left })
    }

    /// Everything stands: what was only passing through a state comes to its last.
    async fn finish(mut self, writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let made = self.versions.len();
        for (write, version) in writes.iter().zip(&mut self.versions) {
            let Write::Pass { last, .. } = write else { continue };
            let update = Write::Update(last.clone(), version.clone());
            *version = self.store.write_one(&update).await.map_err(|error| after(error, made))?;
        }
        Ok(self.versions)
    }

    /// Takes writes back, the last one first, and answers how many could not be.
    async fn undo(&mut self) -> usize {
        let mut left = self.undos.len();
        for undo in std::mem::take(&mut self.undos).into_iter().rev() {
            let result = match undo {
                Undo::Remove(record, version) => {
                    self.store.write_one(&Write::Delete(record, version)).await.map(drop)
                }
                Undo::Recreate(key, before) => self.store.recreate(&key, before).await,
                Undo::Restore(key, before, version) => self.store.restore(&key, before, &version).await,
            };
            if let Err(error) = result {
                tracing::warn!(%error, left, "could not undo a write");
                break;
            }
            left -= 1;
        }
        left
    }
}

/// `before`: what stood there, for a write that replaces or deletes. The record that a delete names may be another: what
/// its caller made of it on the way.
fn undo<B>(write: &Write, before: Option<B>, version: &Version) -> Undo<B> {
    match (write, before) {
        (Write::Delete(..), Some(before)) => Undo::Recreate(write.key(), before),
        (_, Some(before)) => Undo::Restore(write.key(), before, version.clone()),
        (Write::Pass { passing, .. }, None) => Undo::Remove((**passing).clone(), version.clone()),
        (Write::Create(record) | Write::Update(record, _) | Write::Delete(record, _), None) => {
            Undo::Remove(record.clone(), version.clone())
        }
    }
}

/// The state that a write replaces with another or with nothing; `None` for one that creates.
fn replaced(write: &Write) -> Option<&Version> {
    match write {
        Write::Update(_, version) | Write::Delete(_, version) | Write::Pass { seen: Some(version), .. } => {
            Some(version)
        }
        Write::Create(_) | Write::Pass { seen: None, .. } => None,
    }
}

/// The writes in order: consecutive handles together, with what passes through a state right before them; everything else
/// by itself. A handle without its block is what a crash may leave anyway, so it need not wait for the affinity.
fn waves(writes: &[Write]) -> impl Iterator<Item = &[Write]> {
    let is_handle = |write: &Write| write.key().kind() == Kind::Handle;
    writes
        .chunk_by(move |one, next| (is_handle(one) || matches!(one, Write::Pass { .. })) && is_handle(next))
        .flat_map(|run| run.chunks(TOGETHER))
}

/// The checks that no write of the same commit makes by itself. A check that contradicts a write is a conflict now.
fn checks_of_others<'a>(checks: &'a [Check], writes: &[Write]) -> Result<Vec<&'a Check>, CommitError> {
    let mut others = Vec::new();
    for check in checks {
        let (Check::Unchanged(key, _) | Check::Absent(key)) = check;
        let agrees = writes.iter().find(|write| write.key() == *key).map(|write| match (check, write) {
            (Check::Absent(_), Write::Create(_) | Write::Pass { seen: None, .. }) => true,
            (
                Check::Unchanged(_, at),
                Write::Update(_, seen) | Write::Delete(_, seen) | Write::Pass { seen: Some(seen), .. },
            ) => *at == seen.revision,
            _ => false,
        });
        match agrees {
            None => others.push(check),
            Some(true) => {}
            Some(false) => return Err(CommitError::Conflict { key: key.clone(), written: 0 }),
        }
    }
    Ok(others)
}

/// An error of one write, as that of a commit of which `made` writes were made.
fn after(error: CommitError, made: usize) -> CommitError {
    match error {
        CommitError::Conflict { key, .. } => CommitError::Conflict { key, written: made },
        CommitError::Refused { key, reason, .. } => CommitError::Refused { key, reason, written: made },
        CommitError::Unavailable { key, reason } if made > 0 => CommitError::Unknown { key, reason },
        error => error,
    }
}

fn unknown(key: &Key, error: &ReadError) -> CommitError {
    CommitError::Unknown { key: key.clone(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::{Datastore as _, Revision};
    use api::{Affinity, AffinityState, Cidr, ClusterInformation, Handle, IpamConfig, Owner};
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A memory store that is written one record at a time, notes what is done, and lets time pass with each handle.
    struct OneByOne {
        memory: Memory,
        done: Mutex<Vec<String>>,
        seconds: AtomicU64,
        seconds_per_handle: u64,
        /// Time that each read takes.
        seconds_per_read: u64,
        /// Deletes this record once the handles are written.
        thief: Option<Key>,
    }

    impl OneByOne {
        fn over(memory: &Memory) -> Self {
            Self {
                memory: memory.clone(),
                done: Mutex::default(),
                seconds: AtomicU64::new(0),
                seconds_per_handle: 0,
                seconds_per_read: 0,
                thief: None,
            }
        }

        fn note(&self, line: String) {
            self.done.lock().unwrap().push(line);
        }

        fn done(&self) -> Vec<String> {
            self.done.lock().unwrap().clone()
        }
    }

    impl Single for OneByOne {
        type Before = Record;

        async fn write_one(&self, write: &Write) -> Result<Version, CommitError> {
            self.note(match write {
                Write::Create(record) => format!("create {}{}", record.key(), state(record)),
                Write::Update(record, _) => format!("update {}{}", record.key(), state(record)),
                Write::Delete(record, _) => format!("delete {}", record.key()),
                Write::Pass { .. } => panic!("a write that passes is no single write"),
            });
            if write.key().kind() == Kind::Handle {
                self.seconds.fetch_add(self.seconds_per_handle, Ordering::Relaxed);
            }
            let version = self.memory.commit(&[], std::slice::from_ref(write)).await?.remove(0);
            if let Some(thief) = self.thief.as_ref().filter(|thief| **thief == write.key()) {
                let found = self.memory.get(thief).await.unwrap().unwrap();
                self.memory.commit(&[], &[Write::Delete(found.record, found.version)]).await?;
            }
            Ok(version)
        }

        async fn version_of(&self, key: &Key) -> Result<Option<Version>, ReadError> {
            self.note(format!("read {key}"));
            self.seconds.fetch_add(self.seconds_per_read, Ordering::Relaxed);
            Ok(self.memory.get(key).await?.map(|stored| stored.version))
        }

        async fn before(&self, key: &Key, version: &Version) -> Result<Option<Record>, ReadError> {
            self.note(format!("look at {key}"));
            let found = self.memory.get(key).await?;
            Ok(found.filter(|stored| stored.version == *version).map(|stored| stored.record))
        }

        async fn restore(&self, _: &Key, before: Record, version: &Version) -> Result<(), CommitError> {
            self.write_one(&Write::Update(before, version.clone())).await.map(drop)
        }

        async fn recreate(&self, _: &Key, before: Record) -> Result<(), CommitError> {
            self.write_one(&Write::Create(before)).await.map(drop)
        }

        fn elapsed(&self) -> Duration {
            Duration::from_secs(self.seconds.load(Ordering::Relaxed))
        }
    }

    fn state(record: &Record) -> &'static str {
        match record {
            Record::Affinity(Affinity { state: AffinityState::Pending, .. }) => " pending",
            Record::Affinity(Affinity { state: AffinityState::Confirmed, .. }) => " confirmed",
            _ => "",
        }
    }

    fn cidr() -> Cidr {
        "10.0.0.0/30".parse().unwrap()
    }

    fn handle(id: &str) -> Record {
        Record::Handle(Handle { id: id.to_owned(), blocks: BTreeMap::from([(cidr(), 1)]), deleted: false })
    }

    fn claim() -> Write {
        let affinity = |state| {
            Record::Affinity(Affinity { owner: Owner::host("n"), cidr: cidr(), state, deleted: false })
        };
        Write::Pass {
            passing: Box::new(affinity(AffinityState::Pending)),
            last: affinity(AffinityState::Confirmed),
            seen: None,
        }
    }

    fn config() -> Write {
        Write::Create(Record::Config(IpamConfig::default()))
    }

    fn run<S: Single>(store: &S, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        futures::executor::block_on(commit(store, checks, writes))
    }

    fn all(memory: &Memory) -> usize {
        [Kind::Affinity, Kind::Handle, Kind::Config]
            .into_iter()
            .map(|kind| {
                let listing = futures::executor::block_on(memory.list(&crate::Scope::All(kind)));
                listing.unwrap().items.len()
            })
            .sum()
    }

    #[test]
    fn a_passing_record_is_confirmed_only_after_the_writes_and_the_checks() {
        let memory = Memory::new();
        let store = OneByOne::over(&memory);
        let writes = [claim(), Write::Create(handle("a")), config()];
        let versions = run(&store, &[Check::Absent(Key::ClusterInformation)], &writes).unwrap();
        let affinity = "affinity of host:n for 10.0.0.0/30";
        assert_eq!(
            store.done(),
            [
                format!("create {affinity} pending"),
                "create handle a".to_owned(),
                "create IPAM configuration".to_owned(),
                "read cluster information".to_owned(),
                format!("update {affinity} confirmed"),
            ]
        );
        let found = futures::executor::block_on(memory.get(&writes[0].key())).unwrap().unwrap();
        assert_eq!(found.version, versions[0]);
    }

    #[test]
    fn a_failed_check_takes_everything_back_and_confirms_nothing() {
        let memory = Memory::new();
        let other = Write::Create(Record::ClusterInformation(ClusterInformation::default()));
        futures::executor::block_on(memory.commit(&[], &[other])).unwrap();
        let store = OneByOne::over(&memory);
        let writes = [claim(), Write::Create(handle("a")), config()];
        let error = run(&store, &[Check::Absent(Key::ClusterInformation)], &writes).unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::ClusterInformation, written: 0 });
        assert_eq!(all(&memory), 0);
    }

    #[test]
    fn a_lost_claim_leaves_neither_affinity_nor_handle() {
        for taken in [claim(), config()] {
            let memory = Memory::new();
            futures::executor::block_on(memory.commit(&[], std::slice::from_ref(&taken))).unwrap();
            let store = OneByOne::over(&memory);
            let writes = [claim(), Write::Create(handle("a")), config()];
            let error = run(&store, &[Check::Absent(Key::ClusterInformation)], &writes).unwrap_err();
            assert_eq!(error, CommitError::Conflict { key: taken.key(), written: 0 });
            assert_eq!(all(&memory), 1);
        }
    }

    #[test]
    fn one_handle_in_conflict_lets_the_others_of_its_wave_stand_and_no_block_is_written() {
        let memory = Memory::new();
        futures::executor::block_on(memory.commit(&[], &[Write::Create(handle("b"))])).unwrap();
        let store = OneByOne::over(&memory);
        let mut writes: Vec<Write> = ["a", "b", "c"].map(|id| Write::Create(handle(id))).into();
        writes.push(config());
        let error = run(&store, &[], &writes).unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Handle("b".to_owned()), written: 2 });
        assert_eq!(store.done().len(), 3);
    }

    #[test]
    fn a_handle_collected_during_a_long_pause_stops_the_block() {
        let memory = Memory::new();
        let thief = Some(Key::Handle("a".to_owned()));
        let store = OneByOne { seconds_per_handle: 61, thief, ..OneByOne::over(&memory) };
        let error = run(&store, &[], &[Write::Create(handle("a")), config()]).unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Handle("a".to_owned()), written: 1 });
        assert_eq!(all(&memory), 0);
        let quick = OneByOne { seconds_per_handle: 3, ..OneByOne::over(&memory) };
        run(&quick, &[], &[Write::Create(handle("a")), config()]).unwrap();
        assert_eq!(quick.done(), ["create handle a", "create IPAM configuration"]);
    }

    #[test]
    fn handles_that_stand_after_a_long_pause_are_counted_and_without_checks_left() {
        let memory = Memory::new();
        let thief = Some(Key::Handle("a".to_owned()));
        let store = OneByOne { seconds_per_handle: 61, thief, ..OneByOne::over(&memory) };
        let writes = [Write::Create(handle("a")), Write::Create(handle("b")), config()];
        let error = run(&store, &[], &writes).unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Handle("a".to_owned()), written: 2 });
        assert_eq!(all(&memory), 1);
    }

    #[test]
    fn handles_are_looked_at_once_after_a_long_pause_however_slow_the_reads_are() {
        let memory = Memory::new();
        let store = OneByOne { seconds_per_handle: 61, seconds_per_read: 61, ..OneByOne::over(&memory) };
        run(&store, &[], &[Write::Create(handle("a")), config()]).unwrap();
        assert_eq!(store.done(), ["create handle a", "read handle a", "create IPAM configuration"]);
    }

    #[test]
    fn a_delete_that_is_undone_brings_back_what_stood_there() {
        let memory = Memory::new();
        let other = Write::Create(Record::ClusterInformation(ClusterInformation::default()));
        let stood = [other, Write::Create(handle("a"))];
        let seen = futures::executor::block_on(memory.commit(&[], &stood)).unwrap().remove(1);
        let store = OneByOne::over(&memory);
        // As a caller leaves it that has counted its last address away.
        let emptied = Record::Handle(Handle { id: "a".to_owned(), blocks: BTreeMap::new(), deleted: false });
        let writes = [Write::Delete(emptied, seen)];
        let error = run(&store, &[Check::Absent(Key::ClusterInformation)], &writes).unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::ClusterInformation, written: 0 });
        let found = futures::executor::block_on(memory.get(&Key::Handle("a".to_owned()))).unwrap().unwrap();
        assert_eq!(found.record, handle("a"));
    }

    #[test]
    fn check_of_a_written_record_is_the_writes_own_condition() {
        let checks = [Check::Absent(Key::Config), Check::Absent(Key::ClusterInformation)];
        let others = checks_of_others(&checks, &[config()]).unwrap();
        assert_eq!(others, [&Check::Absent(Key::ClusterInformation)]);
        let contradiction = [Check::Unchanged(Key::Config, Revision(1))];
        let result = checks_of_others(&contradiction, &[config()]);
        assert!(matches!(result, Err(CommitError::Conflict { key: Key::Config, written: 0 })));
    }

    #[test]
    fn handles_go_out_together_up_to_a_bound_and_nothing_else_does() {
        let mut writes: Vec<Write> = (0..40).map(|id| Write::Create(handle(&id.to_string()))).collect();
        writes.insert(0, claim());
        writes.push(config());
        let sizes: Vec<usize> = waves(&writes).map(<[Write]>::len).collect();
        assert_eq!(sizes, [32, 9, 1]);
    }
}
