//! Copying all records from one store to another, whatever their drivers are.
//!
//! Both stores are read before anything is written: what cannot be understood in the source, or stands in the target beside what
//! is to come, refuses the copy as a whole. The target is locked while records arrive, and nothing in it is ever replaced: a
//! record that is there already must say the same. So a copy that was cut short is finished by running it again.

mod whole;

pub use whole::Whole;

use crate::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Write};
use api::ClusterInformation;
use serde_json::Value;
use std::collections::BTreeMap;

/// Records written in one commit, below what any store takes.
const TOGETHER: usize = 64;

/// Kinds in the order in which they are copied: what others refer to first, and the lock before everything.
const KINDS: [Kind; 7] =
    [Kind::Config, Kind::Pool, Kind::Reservation, Kind::Node, Kind::Block, Kind::Handle, Kind::Affinity];

/// How to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Compare only, write nothing.
    pub dry_run: bool,
    /// Copy although the source is not locked: what changes in it meanwhile may be missed.
    pub unlocked: bool,
}

/// How far it is, told after each commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being copied.
    pub kind: Kind,
    /// Records of it looked at so far.
    pub done: usize,
    /// Records of it in the source.
    pub total: usize,
}

/// What became of the records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Written, or to be written.
    pub copied: usize,
    /// There already, and the same.
    pub same: usize,
    /// Not taken by the target.
    pub left_out: usize,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By kind, those without records left out.
    pub kinds: BTreeMap<Kind, Count>,
    /// Why records were left out, one reason a kind.
    pub left_out: BTreeMap<Kind, String>,
}

/// Why a copy stopped. Run again, it goes on where it stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Writers are still at work in the source.
    #[error(
        "the source is not locked: lock it first (calicoctl datastore migrate lock), or say that it may change"
    )]
    Unlocked,
    /// The source has a record that cannot be understood. Addresses that it holds would be given to others in the target.
    #[error(
        "{key} cannot be understood in the source, and what it holds would be lost: mend or delete it there"
    )]
    Unreadable {
        /// The record.
        key: Key,
    },
    /// The source has a resource that is on its way out, which a copy would bring back.
    #[error("{key} is being deleted in the source: let that end first")]
    Leaving {
        /// The record.
        key: Key,
    },
    /// The target belongs to another cluster, which has addresses in use.
    #[error("the target holds cluster {found} and the source is {wanted}: copy into an empty datastore")]
    OtherCluster {
        /// Identity of the source.
        wanted: String,
        /// Identity of the target.
        found: String,
    },
    /// The target has a record that says something else.
    #[error("{key} is in the target already and differs: delete it there, or copy into an empty datastore")]
    Differs {
        /// The record.
        key: Key,
    },
    /// The target has a record that the source has not: its addresses may be the same as others'.
    #[error("{key} is in the target and not in the source: delete it there, or copy into an empty datastore")]
    Beside {
        /// The first such record.
        key: Key,
    },
    /// The target does not say what was written.
    #[error(
        "{key} does not read back from the target as it was written: if its custom resource definitions are of an older release, update them; \
         if somebody writes there though it is locked, stop that; then empty the target and copy again"
    )]
    NotKept {
        /// The first such record.
        key: Key,
    },
    /// The source changed while it was copied.
    #[error(
        "{key} changed in the source while it was copied: lock the source and copy into an empty datastore"
    )]
    Changed {
        /// The first record found changed.
        key: Key,
    },
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] CommitError),
}

/// The records of one kind that are to be made in the target.
struct Missing {
    kind: Kind,
    records: Vec<Record>,
    /// Pools, reservations and nodes, as they stand in the source.
    whole: BTreeMap<Key, Value>,
    count: Count,
}

/// Copies every record of `from` to `to`, and leaves `to` locked.
///
/// Afterwards the target is read, and must say what was written; and the source is read once more: unless it may change,
/// whatever is not as it was copied is an error.
///
/// Datastore calls: three lists of each kind of the source at most and two of the target, and one commit for each 64 records
/// (more where the target does not take as many in one request), one for each pool, reservation and node.
///
/// # Errors
/// See [`CopyError`].
///
/// # Cancellation
/// Leaves the target locked and part of the records in it; run it again.
pub async fn copy<S: Whole, T: Whole>(
    from: &S,
    to: &T,
    options: Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report, CopyError> {
    let cluster = cluster(from).await?;
    if cluster.as_ref().is_none_or(|cluster| cluster.datastore_ready) && !options.unlocked {
        return Err(CopyError::Unlocked);
    }
    let source = records(from).await?;
    let locked = ClusterInformation { datastore_ready: false, ..cluster.unwrap_or_default() };
    same_cluster(to, &locked).await?;
    let mut missing = Vec::new();
    for kind in KINDS {
        missing.push(compared(from, to, kind, &source).await?);
    }
    let mut report = Report::default();
    let count = if options.dry_run { lock_count(to, &locked).await?.0 } else { lock(to, locked).await? };
    report.kinds.insert(Kind::ClusterInformation, count);
    for Missing { kind, records, whole, mut count } in missing {
        let total = records.len() + count.same + count.left_out;
        // One by one where there is more than the record.
        let together = if whole.is_empty() { TOGETHER } else { 1 };
        for batch in records.chunks(together) {
            if !options.dry_run {
                let made = match batch {
                    [record] if whole.contains_key(&record.key()) => {
                        create_whole(to, record, &whole[&record.key()]).await
                    }
                    batch => write(to, batch).await,
                };
                match made {
                    Err(CommitError::Refused { reason, .. }) if kind == Kind::Node => {
                        count.left_out += batch.len();
                        report.left_out.insert(kind, reason);
                        continue;
                    }
                    result => result?,
                }
            }
            count.copied += batch.len();
            progress(Progress { kind, done: count.same + count.left_out + count.copied, total });
        }
        if total > 0 {
            report.kinds.insert(kind, count);
        }
    }
    if !options.dry_run {
        kept(to, &source).await?;
    }
    if !options.unlocked {
        unchanged(from, source).await?;
    }
    Ok(report)
}

/// Every record of the source. One that cannot be understood refuses the copy, but for nodes, which belong to the target's cluster.
async fn records<S: Whole>(from: &S) -> Result<BTreeMap<Key, Record>, CopyError> {
    let mut all = BTreeMap::new();
    for kind in KINDS {
        let listing = from.list(&Scope::All(kind)).await?;
        if kind != Kind::Node
            && let Some(key) = listing.unreadable.into_iter().next()
        {
            return Err(CopyError::Unreadable { key });
        }
        for stored in listing.items {
            let record = match stored.record {
                Record::Node(node) => Record::Node(from.node_elsewhere(node)),
                record => record,
            };
            let key = record.key();
            if matches!(&record, Record::Pool(pool) if pool.deleting) {
                return Err(CopyError::Leaving { key });
            }
            all.insert(key, record);
        }
    }
    Ok(all)
}

/// What of `kind` is in the source and not in the target, which must have nothing else.
async fn compared<S: Whole, T: Whole>(
    from: &S,
    to: &T,
    kind: Kind,
    source: &BTreeMap<Key, Record>,
) -> Result<Missing, CopyError> {
    let listing = to.list(&Scope::All(kind)).await?;
    let there: BTreeMap<Key, Record> =
        listing.items.into_iter().map(|stored| (stored.record.key(), stored.record)).collect();
    let is_node = kind == Kind::Node;
    if !is_node {
        if let Some(key) = listing.unreadable.into_iter().next() {
            let known = source.contains_key(&key);
            return Err(if known { CopyError::Differs { key } } else { CopyError::Beside { key } });
        }
        if let Some(key) = there.keys().find(|key| !source.contains_key(key)) {
            return Err(CopyError::Beside { key: key.clone() });
        }
    }
    let (mut count, mut records) = (Count::default(), Vec::new());
    for (key, record) in source.iter().filter(|(key, _)| key.kind() == kind) {
        match there.get(key) {
            Some(found) if found == record => count.same += 1,
            // Nodes belong to the cluster of the target where it has any.
            Some(_) if is_node => count.left_out += 1,
            Some(_) => return Err(CopyError::Differs { key: key.clone() }),
            None => records.push(record.clone()),
        }
    }
    let has_more = matches!(kind, Kind::Pool | Kind::Reservation | Kind::Node) && !records.is_empty();
    let whole = if has_more { from.whole(kind).await? } else { BTreeMap::new() };
    Ok(Missing { kind, records, whole, count })
}

async fn cluster<D: Datastore>(store: &D) -> Result<Option<ClusterInformation>, ReadError> {
    Ok(match store.get(&Key::ClusterInformation).await?.map(|stored| stored.record) {
        Some(Record::ClusterInformation(cluster)) => Some(cluster),
        _ => None,
    })
}

/// Whether the target is nobody's, or of the cluster whose information is to be `locked`.
async fn same_cluster<D: Datastore>(to: &D, locked: &ClusterInformation) -> Result<(), CopyError> {
    if let Some(other) = cluster(to).await?
        && !other.cluster_guid.is_empty()
        && other.cluster_guid != locked.cluster_guid
        && !to.list(&Scope::All(Kind::Block)).await?.items.is_empty()
    {
        let (wanted, found) = (locked.cluster_guid.clone(), other.cluster_guid);
        return Err(CopyError::OtherCluster { wanted, found });
    }
    Ok(())
}

/// Whether the target's information is to be written, and the write.
async fn lock_count<D: Datastore>(
    to: &D,
    locked: &ClusterInformation,
) -> Result<(Count, Option<Write>), CopyError> {
    let found = to.get(&Key::ClusterInformation).await?;
    let record = Record::ClusterInformation(locked.clone());
    let (same, copied) = (Count { same: 1, ..Count::default() }, Count { copied: 1, ..Count::default() });
    Ok(match found {
        Some(stored) if stored.record == record => (same, None),
        Some(stored) => (copied, Some(Write::Update(record, stored.version))),
        None => (copied, Some(Write::Create(record))),
    })
}

/// Gives the target the identity of a cluster, locked, whatever `cluster` says of that.
///
/// Datastore calls: 1, and 1 to write.
///
/// # Errors
/// See [`CopyError`].
pub async fn lock<D: Datastore>(to: &D, cluster: ClusterInformation) -> Result<Count, CopyError> {
    let locked = ClusterInformation { datastore_ready: false, ..cluster };
    let (count, write) = lock_count(to, &locked).await?;
    if let Some(write) = write {
        to.commit(&[], &[write]).await?;
    }
    Ok(count)
}

/// Creates what is more than its record. Where an answer is lost, what is there afterwards decides.
async fn create_whole<T: Whole>(to: &T, record: &Record, whole: &Value) -> Result<(), CommitError> {
    let error = match to.create_whole(record, whole).await {
        Err(error @ (CommitError::Unknown { .. } | CommitError::Conflict { .. })) => error,
        result => return result,
    };
    match to.get(&record.key()).await.map_err(|_| error)? {
        Some(stored) if stored.record == *record => Ok(()),
        Some(_) => Err(CommitError::Conflict { key: record.key(), written: 0 }),
        None => to.create_whole(record, whole).await,
    }
}

/// Creates records. Where an answer is lost, what is there afterwards decides.
async fn write<D: Datastore>(to: &D, records: &[Record]) -> Result<(), CommitError> {
    let writes: Vec<Write> = records.iter().cloned().map(Write::Create).collect();
    let Err(error) = to.commit(&[], &writes).await else { return Ok(()) };
    // Together they may be more than the store takes in a request.
    let is_refused = matches!(error, CommitError::Refused { .. });
    if is_refused && records.len() > 1 && records.iter().all(|record| record.key().kind() != Kind::Node) {
        for half in records.chunks(records.len().div_ceil(2)) {
            Box::pin(write(to, half)).await?;
        }
        return Ok(());
    }
    if !matches!(error, CommitError::Unknown { .. } | CommitError::Conflict { .. }) {
        return Err(error);
    }
    for record in records {
        let found = to.get(&record.key()).await.map_err(|_| error.clone())?;
        match found {
            Some(stored) if stored.record == *record => {}
            Some(_) => return Err(CommitError::Conflict { key: record.key(), written: 0 }),
            None => drop(to.commit(&[], &[Write::Create(record.clone())]).await?),
        }
    }
    Ok(())
}

/// Whether the target says what was written.
async fn kept<S: Datastore>(to: &S, source: &BTreeMap<Key, Record>) -> Result<(), CopyError> {
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Node) {
        let listing = to.list(&Scope::All(kind)).await?;
        let there: BTreeMap<Key, Record> =
            listing.items.into_iter().map(|stored| (stored.record.key(), stored.record)).collect();
        let wanted = source.iter().filter(|(key, _)| key.kind() == kind);
        if let Some((key, _)) = wanted.into_iter().find(|(key, record)| there.get(key) != Some(*record)) {
            return Err(CopyError::NotKept { key: key.clone() });
        }
    }
    Ok(())
}

/// Whether the source still says what was copied.
async fn unchanged<S: Whole>(from: &S, mut copied: BTreeMap<Key, Record>) -> Result<(), CopyError> {
    for (key, record) in records(from).await?.into_iter().filter(|(key, _)| key.kind() != Kind::Node) {
        if copied.remove(&key) != Some(record) {
            return Err(CopyError::Changed { key });
        }
    }
    match copied.into_keys().find(|key| key.kind() != Kind::Node) {
        Some(key) => Err(CopyError::Changed { key }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use api::{Handle, IpamConfig, Pool};
    use futures::executor::block_on;

    fn handle(number: usize) -> Record {
        Record::Handle(Handle {
            id: format!("h{number:03}"),
            blocks: BTreeMap::from([("10.0.0.0/26".parse().unwrap(), 1)]),
            deleted: false,
        })
    }

    fn put(store: &Memory, records: impl IntoIterator<Item = Record>) {
        let writes: Vec<Write> = records.into_iter().map(Write::Create).collect();
        block_on(store.commit(&[], &writes)).unwrap();
    }

    fn source(ready: bool) -> Memory {
        let store = Memory::new();
        let cluster = ClusterInformation {
            datastore_ready: ready,
            cluster_guid: "guid".to_owned(),
            ..ClusterInformation::default()
        };
        put(&store, [Record::ClusterInformation(cluster), Record::Config(IpamConfig::default())]);
        put(&store, [Record::Pool(Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap()))]);
        put(&store, (0..150).map(handle));
        store
    }

    /// Memory as a store with faults of its own.
    #[derive(Clone)]
    struct Odd {
        memory: Memory,
        /// A record that nobody can read any more.
        unreadable: Option<Key>,
        /// Handles lose a field on their way in.
        forgetful: bool,
    }

    impl Odd {
        fn over(memory: Memory) -> Self {
            Self { memory, unreadable: None, forgetful: false }
        }
    }

    impl Datastore for Odd {
        fn capabilities(&self) -> crate::Capabilities {
            self.memory.capabilities()
        }

        async fn get(&self, key: &Key) -> Result<Option<crate::Stored>, ReadError> {
            self.memory.get(key).await
        }

        async fn list(&self, scope: &Scope) -> Result<crate::Listing, ReadError> {
            let mut listing = self.memory.list(scope).await?;
            let hidden = |key: &Key| Some(key) == self.unreadable.as_ref();
            if listing.items.iter().any(|stored| hidden(&stored.record.key())) {
                listing.items.retain(|stored| !hidden(&stored.record.key()));
                listing.unreadable.extend(self.unreadable.clone());
            }
            Ok(listing)
        }

        async fn commit(
            &self,
            checks: &[crate::Check],
            writes: &[Write],
        ) -> Result<Vec<crate::Version>, CommitError> {
            let mut writes = writes.to_vec();
            for write in &mut writes {
                if let (true, Write::Create(Record::Handle(handle))) = (self.forgetful, write) {
                    handle.blocks.clear();
                }
            }
            self.memory.commit(checks, &writes).await
        }

        async fn watch(
            &self,
            scope: &Scope,
            from: crate::Revision,
        ) -> Result<futures::stream::BoxStream<'static, Result<crate::Event, ReadError>>, ReadError> {
            self.memory.watch(scope, from).await
        }
    }

    impl Whole for Odd {
        async fn whole(&self, kind: Kind) -> Result<BTreeMap<Key, Value>, ReadError> {
            self.memory.whole(kind).await
        }

        async fn create_whole(&self, record: &Record, whole: &Value) -> Result<(), CommitError> {
            self.memory.create_whole(record, whole).await
        }
    }

    #[test]
    fn a_record_that_cannot_be_understood_refuses_the_copy_before_anything_is_written() {
        let key = handle(7).key();
        let from = Odd { unreadable: Some(key.clone()), ..Odd::over(source(false)) };
        for dry_run in [true, false] {
            let to = Memory::new();
            let options = Options { dry_run, ..Options::default() };
            let refused = block_on(copy(&from, &to, options, |_| {}));
            assert_eq!(refused, Err(CopyError::Unreadable { key: key.clone() }));
            assert_eq!(to.revision(), Memory::new().revision());
        }
        // In the target it is in the way too.
        let to = Odd { unreadable: Some(key.clone()), ..Odd::over(Memory::new()) };
        put(&to.memory, [handle(7)]);
        let before = to.memory.revision();
        let refused = block_on(copy(&source(false), &to, Options::default(), |_| {}));
        assert_eq!(refused, Err(CopyError::Differs { key }));
        assert_eq!(to.memory.revision(), before);
    }

    #[test]
    fn what_the_target_has_beside_the_source_refuses_the_copy_before_anything_is_written() {
        let (from, to) = (source(false), Memory::new());
        put(&to, [crate::conformance::block("192.0.2.0/30", "n").unwrap()]);
        let before = to.revision();
        let key = Key::Block("192.0.2.0/30".parse().unwrap());
        assert_eq!(run(&from, &to, Options::default()), Err(CopyError::Beside { key }));
        assert_eq!(to.revision(), before);
    }

    #[test]
    fn a_target_that_does_not_keep_what_is_written_is_found_out() {
        let to = Odd { forgetful: true, ..Odd::over(Memory::new()) };
        let result = block_on(copy(&source(false), &to, Options::default(), |_| {}));
        assert_eq!(result, Err(CopyError::NotKept { key: handle(0).key() }));
    }

    #[test]
    fn a_pool_that_is_being_deleted_is_not_brought_back() {
        let from = source(false);
        let mut pool = Pool::with_defaults("going", "10.1.0.0/16".parse().unwrap());
        pool.deleting = true;
        put(&from, [Record::Pool(pool)]);
        let result = run(&from, &Memory::new(), Options::default());
        assert_eq!(result, Err(CopyError::Leaving { key: Key::Pool("going".to_owned()) }));
    }

    fn run(from: &Memory, to: &Memory, options: Options) -> Result<Report, CopyError> {
        block_on(copy(from, to, options, |_| {}))
    }

    fn count(store: &Memory, kind: Kind) -> usize {
        block_on(store.list(&Scope::All(kind))).unwrap().items.len()
    }

    #[test]
    fn everything_arrives_and_the_target_is_locked() {
        let (from, to) = (source(false), Memory::new());
        let mut told = Vec::new();
        let report = block_on(copy(&from, &to, Options::default(), |progress| told.push(progress))).unwrap();
        assert_eq!(report.kinds[&Kind::Handle], Count { copied: 150, ..Count::default() });
        assert_eq!(count(&to, Kind::Handle), 150);
        let handles: Vec<usize> =
            told.iter().filter(|told| told.kind == Kind::Handle).map(|told| told.done).collect();
        assert_eq!(handles, [64, 128, 150]);
        let cluster = block_on(cluster(&to)).unwrap().unwrap();
        assert_eq!((cluster.cluster_guid.as_str(), cluster.datastore_ready), ("guid", false));
    }

    #[test]
    fn a_copy_that_was_cut_short_is_finished_by_the_next() {
        let (from, to) = (source(false), Memory::new());
        put(&to, (0..70).map(handle));
        let report = run(&from, &to, Options::default()).unwrap();
        assert_eq!(report.kinds[&Kind::Handle], Count { copied: 80, same: 70, left_out: 0 });
        let again = run(&from, &to, Options::default()).unwrap();
        assert!(again.kinds.values().all(|count| count.copied == 0), "{again:?}");
    }

    #[test]
    fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
        let (from, to) = (source(false), Memory::new());
        let report = run(&from, &to, Options { dry_run: true, unlocked: false }).unwrap();
        assert_eq!(report.kinds[&Kind::Handle].copied, 150);
        assert_eq!(to.revision(), Memory::new().revision());
    }

    #[test]
    fn an_unlocked_source_is_refused_unless_it_may_change() {
        let (from, to) = (source(true), Memory::new());
        assert_eq!(run(&from, &to, Options::default()), Err(CopyError::Unlocked));
        assert_eq!(to.revision(), Memory::new().revision());
        run(&from, &to, Options { unlocked: true, dry_run: false }).unwrap();
        assert!(!block_on(cluster(&to)).unwrap().unwrap().datastore_ready);
    }

    #[test]
    fn what_the_target_holds_is_never_replaced() {
        let (from, to) = (source(false), Memory::new());
        let other = Handle {
            id: "h007".to_owned(),
            blocks: BTreeMap::from([("10.9.9.0/26".parse().unwrap(), 1)]),
            deleted: false,
        };
        put(&to, [Record::Handle(other.clone())]);
        let key = Key::Handle("h007".to_owned());
        assert_eq!(run(&from, &to, Options::default()), Err(CopyError::Differs { key: key.clone() }));
        assert_eq!(block_on(to.get(&key)).unwrap().unwrap().record, Record::Handle(other));
        let foreign = Memory::new();
        let cluster = ClusterInformation { cluster_guid: "another".to_owned(), ..Default::default() };
        let block = crate::conformance::block("192.0.2.0/30", "n").unwrap();
        put(&foreign, [Record::ClusterInformation(cluster), block]);
        assert!(matches!(
            run(&from, &foreign, Options::default()),
            Err(CopyError::OtherCluster { found, .. }) if found == "another"
        ));
    }
}
