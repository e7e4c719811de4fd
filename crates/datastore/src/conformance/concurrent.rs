//! Many clients at once: their history is linearizable, a watch tells it completely and in order, and nobody sees one
//! half of a commit.

use super::history::{Did, Held, Operation, judge};
use super::{expect, handle, must_read, read, remove, write};
use crate::{CommitError, Datastore, Event, Key, Kind, ReadError, Record, Revision, Scope, Version, Write};
use api::Handle;
use futures::StreamExt;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

/// Keys that the clients contend for.
const KEYS: u64 = 12;

/// How a delete looks to a create beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// The record is there, then the name is free.
    AtOnce,
    /// For a moment readers see nothing and the name is taken still (data model §3.3): that a create was refused says
    /// nothing about what readers see.
    InPhases,
}

/// What the clients did.
#[derive(Debug, Default)]
pub struct Run {
    /// Every operation that was made, or may have been.
    pub history: Vec<Operation>,
    /// Writes that left a record: where, and what.
    pub written: BTreeMap<Revision, (Key, u32)>,
    /// Operations that the store did not take: it could not be reached. They changed nothing.
    pub unavailable: usize,
}

/// Lets the other clients go on, also over a store that answers at once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A stream of numbers that a seed fixes.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What all clients share.
struct Shared<'a> {
    /// Name of the keys, so that two runs have none in common.
    name: &'a str,
    deletes: Deletes,
    /// Grows with every beginning and end.
    clock: AtomicU64,
    values: AtomicU32,
    run: Mutex<Run>,
}

impl Shared<'_> {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn record(&self, id: &str, value: u32) -> Result<Record, String> {
        handle(id, value)
    }

    fn change(&self, change: impl FnOnce(&mut Run)) {
        if let Ok(mut run) = self.run.lock() {
            change(&mut run);
        }
    }
}

fn value_of(record: &Record) -> Held {
    match record {
        Record::Handle(Handle { blocks, .. }) => blocks.values().next().copied(),
        _ => None,
    }
}

/// Lets each of `clients` make its share of `operations` on the same few records, and tells what came of it.
///
/// The records are handles whose ids begin with `name`; they must not exist, and some remain.
///
/// # Errors
/// If the store refuses an operation for another reason than that a record changed or the store is away.
pub async fn run_clients<D: Datastore>(
    clients: &[&D],
    name: &str,
    operations: usize,
    seed: u64,
    deletes: Deletes,
) -> Result<Run, String> {
    let shared =
        Shared { name, deletes, clock: AtomicU64::new(0), values: AtomicU32::new(0), run: Mutex::default() };
    let share = operations.div_ceil(clients.len().max(1));
    let working = (0_u64..).zip(clients).map(|(number, store)| {
        let numbers = Numbers(seed.wrapping_add(number.wrapping_mul(0x5851_f42d_4c95_7f2d)));
        client(*store, &shared, share, numbers)
    });
    for result in join_all(working).await {
        result?;
    }
    shared.run.into_inner().map_err(|error| error.to_string())
}

async fn client<D: Datastore>(
    store: &D,
    shared: &Shared<'_>,
    operations: usize,
    mut numbers: Numbers,
) -> Result<(), String> {
    // What this client last saw of each key.
    let mut seen: BTreeMap<String, (u32, Version)> = BTreeMap::new();
    for _ in 0..operations {
        let id = format!("{}.{}", shared.name, numbers.below(KEYS));
        let begun = shared.tick();
        Yield(false).await;
        let known = seen.get(&id).cloned();
        let did = match (numbers.below(10), known) {
            (0..4, _) => look(store, shared, &id, &mut seen).await?,
            (4..8, Some((value, version))) => {
                let next = shared.values.fetch_add(1, Ordering::SeqCst) + 1;
                let update = Write::Update(shared.record(&id, next)?, version);
                make(store, shared, update, Some(value), Some(next), &mut seen).await?
            }
            (8, Some((value, version))) => {
                let delete = Write::Delete(shared.record(&id, value)?, version);
                make(store, shared, delete, Some(value), None, &mut seen).await?
            }
            _ => {
                let next = shared.values.fetch_add(1, Ordering::SeqCst) + 1;
                let create = Write::Create(shared.record(&id, next)?);
                make(store, shared, create, None, Some(next), &mut seen).await?
            }
        };
        Yield(false).await;
        let ended = shared.tick();
        shared.change(|run| match did {
            Came::Of(did) => run.history.push(Operation { key: id, begun, ended, did }),
            Came::Nothing => {}
            Came::Away => run.unavailable += 1,
        });
    }
    Ok(())
}

/// What came of an operation.
enum Came {
    Of(Did),
    /// An answer that says nothing about what the key holds.
    Nothing,
    /// The store is away, and nothing was done.
    Away,
}

/// Reads a key.
async fn look<D: Datastore>(
    store: &D,
    shared: &Shared<'_>,
    id: &str,
    seen: &mut BTreeMap<String, (u32, Version)>,
) -> Result<Came, String> {
    let key = shared.record(id, 1)?.key();
    match store.get(&key).await {
        Ok(Some(stored)) => {
            let held = value_of(&stored.record).ok_or_else(|| format!("{key} holds {:?}", stored.record))?;
            seen.insert(id.to_owned(), (held, stored.version));
            Ok(Came::Of(Did::Read(Some(held))))
        }
        Ok(None) => {
            seen.remove(id);
            Ok(Came::Of(Did::Read(None)))
        }
        Err(ReadError::Unavailable { .. }) => Ok(Came::Away),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes a write.
async fn make<D: Datastore>(
    store: &D,
    shared: &Shared<'_>,
    write: Write,
    expected: Held,
    to: Held,
    seen: &mut BTreeMap<String, (u32, Version)>,
) -> Result<Came, String> {
    let key = write.key();
    let Key::Handle(id) = key.clone() else { return Err(format!("{key} is no handle")) };
    match store.commit(&[], &[write]).await {
        Ok(versions) => {
            match (to, versions.into_iter().next()) {
                (Some(value), Some(version)) => {
                    let at = version.revision;
                    shared.change(|run| {
                        run.written.insert(at, (key, value));
                    });
                    seen.insert(id, (value, version));
                }
                _ => {
                    seen.remove(&id);
                }
            }
            Ok(Came::Of(Did::Wrote { expected, to }))
        }
        Err(CommitError::Conflict { .. }) => {
            seen.remove(&id);
            let proves = shared.deletes == Deletes::AtOnce || expected.is_some();
            Ok(if proves { Came::Of(Did::Refused { expected }) } else { Came::Nothing })
        }
        Err(CommitError::Unknown { .. }) => {
            seen.remove(&id);
            Ok(Came::Of(Did::Unknown { expected, to }))
        }
        Err(CommitError::Unavailable { .. }) => Ok(Came::Away),
        Err(error) => Err(error.to_string()),
    }
}

/// The history of eight clients is one that a store could have made that does one thing after another.
///
/// # Errors
/// The operation that cannot have been.
pub async fn concurrent_history_is_linearizable<D: Datastore>(store: &D) -> Result<(), String> {
    history_is_linearizable(&[store; 8], 800, Deletes::InPhases).await
}

/// As [`concurrent_history_is_linearizable`], of these clients and as many operations.
///
/// # Errors
/// The operation that cannot have been.
pub async fn history_is_linearizable<D: Datastore>(
    clients: &[&D],
    operations: usize,
    deletes: Deletes,
) -> Result<(), String> {
    let name = "conformance.history";
    let run = run_clients(clients, name, operations, 7, deletes).await?;
    expect(run.unavailable == 0, "a store that can be reached", run.unavailable)?;
    judge(&run.history)?;
    let wrote = run.history.iter().filter(|operation| matches!(operation.did, Did::Wrote { .. })).count();
    let refused = run.history.iter().filter(|operation| matches!(operation.did, Did::Refused { .. })).count();
    expect(wrote > operations / 10 && refused > 0, "writes and conflicts", (wrote, refused))?;
    match clients.first() {
        Some(store) => clean(*store, name).await,
        None => Ok(()),
    }
}

async fn clean<D: Datastore>(store: &D, name: &str) -> Result<(), String> {
    for number in 0..KEYS {
        remove(store, &Key::Handle(format!("{name}.{number}"))).await?;
    }
    Ok(())
}

/// A watch tells every write of eight clients once, in the order of revisions, and after a delete nothing older.
///
/// # Errors
/// What is missing, too much, or out of order.
pub async fn watch_is_complete_and_in_order<D: Datastore>(store: &D) -> Result<(), String> {
    let name = "conformance.watched";
    let scope = Scope::All(Kind::Handle);
    let from = store.list(&scope).await.map_err(|error| error.to_string())?.revision;
    let mut watch = store.watch(&scope, from).await.map_err(|error| error.to_string())?;
    let run = run_clients(&[store; 8], name, 400, 11, Deletes::InPhases).await?;
    judge(&run.history)?;
    let last = handle("conformance.watched.last", 1)?;
    let end = write(store, Write::Create(last.clone())).await?;
    let (mut told, mut at) = (BTreeMap::new(), from);
    loop {
        let event = match watch.next().await {
            Some(Ok(event)) => event,
            other => return Err(format!("events up to {end:?}, but found {other:?} after {at:?}")),
        };
        let (key, revision) = match &event {
            Event::Put(stored) => (stored.record.key(), stored.version.revision),
            Event::Deleted(key, revision) | Event::Unreadable(key, revision) => (key.clone(), *revision),
            Event::Progress(revision) => {
                expect(*revision >= at, "progress that does not go back", (at, revision))?;
                continue;
            }
        };
        expect(revision >= at, "revisions in order", (at, &event))?;
        at = revision;
        if let Event::Put(stored) = &event {
            if key == last.key() {
                break;
            }
            let value = value_of(&stored.record).ok_or_else(|| format!("{key} holds {:?}", stored.record))?;
            let twice = told.insert(revision, (key, value));
            expect(twice.is_none(), "each write told once", &event)?;
        }
    }
    expect(told == run.written, "every write and nothing else", difference(&told, &run.written))?;
    remove(store, &last.key()).await?;
    clean(store, name).await
}

/// Entries that only one of two has.
fn difference<'a>(
    left: &'a BTreeMap<Revision, (Key, u32)>,
    right: &'a BTreeMap<Revision, (Key, u32)>,
) -> Vec<&'a Revision> {
    let (left, right): (BTreeSet<_>, BTreeSet<_>) = (left.keys().collect(), right.keys().collect());
    left.symmetric_difference(&right).copied().collect()
}

/// Two records that are always written together are never seen apart, neither in a list nor one after the other.
///
/// # Errors
/// What was seen apart.
pub async fn records_written_together_are_seen_together<D: Datastore>(store: &D) -> Result<(), String> {
    if !store.capabilities().atomic_commit {
        return Ok(());
    }
    let ids = ["conformance.left", "conformance.right"];
    let both =
        |value: u32| -> Result<[Record; 2], String> { Ok([handle(ids[0], value)?, handle(ids[1], value)?]) };
    let [left, right] = both(1)?;
    let (left_key, right_key) = (left.key(), right.key());
    let create = [Write::Create(left), Write::Create(right)];
    store.commit(&[], &create).await.map_err(|error| error.to_string())?;
    let values = AtomicU32::new(1);
    let writing = async {
        for _ in 0..40 {
            let (first, second) = (must_read(store, &left_key).await?, must_read(store, &right_key).await?);
            Yield(false).await;
            let [left, right] = both(values.fetch_add(1, Ordering::SeqCst) + 1)?;
            let update = [Write::Update(left, first.version), Write::Update(right, second.version)];
            match store.commit(&[], &update).await {
                Ok(versions) => expect(versions.len() == 2, "two versions", &versions)?,
                Err(CommitError::Conflict { written: 0, .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    };
    let also_writing = async {
        for _ in 0..40 {
            Yield(false).await;
            let first = must_read(store, &left_key).await?;
            let second = must_read(store, &right_key).await?;
            let [left, right] = both(values.fetch_add(1, Ordering::SeqCst) + 1)?;
            let update = [Write::Update(right, second.version), Write::Update(left, first.version)];
            match store.commit(&[], &update).await {
                Ok(_) | Err(CommitError::Conflict { written: 0, .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    };
    let listing = async {
        for _ in 0..40 {
            Yield(false).await;
            let listing = store.list(&Scope::All(Kind::Handle)).await.map_err(|error| error.to_string())?;
            let found: Vec<Held> = listing
                .items
                .iter()
                .filter(|stored| [&left_key, &right_key].contains(&&stored.record.key()))
                .map(|stored| value_of(&stored.record))
                .collect();
            expect(found.len() == 2 && found[0] == found[1], "both records of one commit", &found)?;
        }
        Ok(())
    };
    let (first, second, third) = futures::join!(writing, also_writing, listing);
    first.and(second).and(third)?;
    for key in [left_key, right_key] {
        expect(read(store, &key).await?.is_some(), "the record", &key)?;
        remove(store, &key).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use futures::executor::block_on;

    fn recorded() -> Vec<Operation> {
        let store = Memory::new();
        let run = block_on(run_clients(&[&store; 8], "r", 2000, 3, Deletes::AtOnce)).unwrap();
        assert_eq!(judge(&run.history), Ok(()));
        run.history
    }

    /// Whether something that ended before `operation` began made `held` a thing of the past for ever.
    fn is_past(history: &[Operation], operation: &Operation, held: u32) -> bool {
        history.iter().any(|other| {
            other.key == operation.key
                && other.ended < operation.begun
                && matches!(other.did, Did::Wrote { expected, .. } if expected == Some(held))
        })
    }

    #[test]
    fn every_stale_read_put_into_a_recorded_history_is_found() {
        let history = recorded();
        let mut tried = 0;
        for at in 0..history.len() {
            let Did::Read(read) = history[at].did else { continue };
            let stale = history.iter().find_map(|other| match other.did {
                Did::Wrote { to: Some(value), .. }
                    if other.key == history[at].key
                        && Some(value) != read
                        && is_past(&history, &history[at], value) =>
                {
                    Some(value)
                }
                _ => None,
            });
            let Some(stale) = stale else { continue };
            if tried == 40 {
                break;
            }
            tried += 1;
            let mut corrupted = history.clone();
            corrupted[at].did = Did::Read(Some(stale));
            assert!(judge(&corrupted).is_err(), "{} passed", corrupted[at]);
        }
        assert_eq!(tried, 40);
    }

    #[test]
    fn a_write_that_others_saw_cannot_be_taken_out_of_a_recorded_history() {
        let history = recorded();
        let seen = |value: u32| {
            history.iter().any(|other| matches!(other.did, Did::Read(Some(read)) if read == value))
        };
        let mut tried = 0;
        for at in 0..history.len() {
            let Did::Wrote { to: Some(value), .. } = history[at].did else { continue };
            if !seen(value) || tried == 40 {
                continue;
            }
            tried += 1;
            let mut corrupted = history.clone();
            corrupted.remove(at);
            assert!(judge(&corrupted).is_err(), "without {}", history[at]);
        }
        assert_eq!(tried, 40);
    }

    #[test]
    fn a_long_history_over_memory_is_linearizable() {
        let store = Memory::new();
        assert_eq!(block_on(history_is_linearizable(&[&store; 8], 10_000, Deletes::AtOnce)), Ok(()));
    }

    #[test]
    fn the_same_seed_makes_the_same_history() {
        assert_eq!(recorded(), recorded());
    }
}
