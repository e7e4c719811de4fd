//! Copying all records from one store to another, whatever their drivers are.
//!
//! The target is locked while records arrive, and nothing in it is ever replaced: a record that is there already must
//! say the same. So a copy that was cut short is finished by running it again.

use crate::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Stored, Write};
use api::ClusterInformation;
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

/// Copies every record of `from` to `to`, and leaves `to` locked.
///
/// Afterwards the source is read once more: unless it may change, whatever is not as it was copied is an error.
///
/// Datastore calls: two lists of each kind of the source and one of the target, and one commit for each 64 records
/// (more where the target does not take as many in one request).
///
/// # Errors
/// See [`CopyError`].
///
/// # Cancellation
/// Leaves the target locked and part of the records in it; run it again.
pub async fn copy<S: Datastore, T: Datastore>(
    from: &S,
    to: &T,
    options: Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report, CopyError> {
    let cluster = cluster(from).await?;
    if cluster.as_ref().is_none_or(|cluster| cluster.datastore_ready) && !options.unlocked {
        return Err(CopyError::Unlocked);
    }
    let mut report = Report::default();
    lock(to, cluster.unwrap_or_default(), options, &mut report).await?;
    let mut copied: BTreeMap<Key, Record> = BTreeMap::new();
    for kind in KINDS {
        let source = from.list(&Scope::All(kind)).await?.items;
        let mut missing = Vec::new();
        let there: BTreeMap<Key, Record> =
            to.list(&Scope::All(kind)).await?.items.into_iter().map(keyed).collect();
        let mut count = Count::default();
        for (key, record) in source.into_iter().map(keyed) {
            match there.get(&key) {
                Some(found) if *found == record => count.same += 1,
                // Nodes belong to the cluster of the target where it has any.
                Some(_) if kind == Kind::Node => count.left_out += 1,
                Some(_) => return Err(CopyError::Differs { key }),
                None => missing.push(record.clone()),
            }
            copied.insert(key, record);
        }
        let total = missing.len() + count.same + count.left_out;
        for batch in missing.chunks(TOGETHER) {
            if !options.dry_run {
                match write(to, batch).await {
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
    if !options.unlocked {
        unchanged(from, copied).await?;
    }
    Ok(report)
}

fn keyed(stored: Stored) -> (Key, Record) {
    (stored.record.key(), stored.record)
}

async fn cluster<D: Datastore>(store: &D) -> Result<Option<ClusterInformation>, ReadError> {
    Ok(match store.get(&Key::ClusterInformation).await?.map(|stored| stored.record) {
        Some(Record::ClusterInformation(cluster)) => Some(cluster),
        _ => None,
    })
}

/// Gives the target the source's identity, locked.
async fn lock<D: Datastore>(
    to: &D,
    cluster: ClusterInformation,
    options: Options,
    report: &mut Report,
) -> Result<(), CopyError> {
    let locked = ClusterInformation { datastore_ready: false, ..cluster };
    let found = to.get(&Key::ClusterInformation).await?;
    let before = found.as_ref().map(|stored| &stored.record);
    let mut count = Count::default();
    if before == Some(&Record::ClusterInformation(locked.clone())) {
        count.same = 1;
    } else {
        if let Some(Record::ClusterInformation(other)) = before
            && !other.cluster_guid.is_empty()
            && other.cluster_guid != locked.cluster_guid
            && !to.list(&Scope::All(Kind::Block)).await?.items.is_empty()
        {
            let (wanted, found) = (locked.cluster_guid, other.cluster_guid.clone());
            return Err(CopyError::OtherCluster { wanted, found });
        }
        count.copied = 1;
        if !options.dry_run {
            let record = Record::ClusterInformation(locked);
            let write = match found {
                Some(stored) => Write::Update(record, stored.version),
                None => Write::Create(record),
            };
            to.commit(&[], &[write]).await?;
        }
    }
    report.kinds.insert(Kind::ClusterInformation, count);
    Ok(())
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

/// Whether the source still says what was copied.
async fn unchanged<D: Datastore>(from: &D, mut copied: BTreeMap<Key, Record>) -> Result<(), CopyError> {
    for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Node) {
        for (key, record) in from.list(&Scope::All(kind)).await?.items.into_iter().map(keyed) {
            if copied.remove(&key) != Some(record) {
                return Err(CopyError::Changed { key });
            }
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
