//! What every driver must do, as checks that run over any of them.
//!
//! A check makes its own records, in the documentation's address ranges, and takes them away again, so that the suite
//! can run against a store in use by nobody else but not necessarily empty.

pub mod concurrent;
pub mod faults;
pub mod history;

use crate::{Check, CommitError, Datastore, Event, Key, Kind, Record, Scope, Stored, Version, Write};
use api::{Affinity, AffinityState, Attribute, Block, Cidr, Handle, Owner};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Runs every check; the first that fails says what it expected.
///
/// # Errors
/// The name of the check and what was found instead.
pub async fn run<D: Datastore>(store: &D) -> Result<(), String> {
    macro_rules! all {
        ($($check:ident),* $(,)?) => {
            $($check(store).await.map_err(|error| format!("{}: {error}", stringify!($check)))?;)*
        };
    }
    all![
        created_record_reads_back,
        create_is_refused_where_the_record_exists,
        update_needs_the_version_it_replaces,
        delete_needs_the_version_it_deletes,
        successor_of_a_deleted_record_is_not_mistaken_for_it,
        absent_record_reads_as_none,
        writes_of_one_commit_are_all_there,
        refused_write_leaves_nothing_where_commits_are_atomic,
        failed_check_leaves_nothing,
        passing_record_ends_as_its_last_and_is_undone_by_a_failed_check,
        listing_is_in_key_order,
        affinities_are_listed_by_owner,
        watch_tells_every_change_after_its_revision,
        listing_and_watch_leave_no_gap,
    ];
    use concurrent::{
        concurrent_history_is_linearizable, records_written_together_are_seen_together,
        watch_is_complete_and_in_order,
    };
    all![
        concurrent_history_is_linearizable,
        watch_is_complete_and_in_order,
        records_written_together_are_seen_together,
    ];
    Ok(())
}

fn cidr(text: &str) -> Result<Cidr, String> {
    text.parse().map_err(|error| format!("{error}"))
}

pub(crate) fn block(text: &str, node: &str) -> Result<Record, String> {
    let attribute = Attribute {
        handle_id: Some("conformance.Pod".to_owned()),
        secondary: BTreeMap::from([("node".to_owned(), node.to_owned())]),
        ..Attribute::default()
    };
    Ok(Record::Block(Block {
        cidr: cidr(text)?,
        affinity: Some(Owner::host(node)),
        claim_time: None,
        allocations: vec![Some(0), None, None, None].into(),
        unallocated: vec![3, 1, 2],
        attributes: vec![attribute.into()].into(),
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: BTreeMap::from([(0, 1_785_579_330_123_456_789)]).into(),
        deleted: false,
        legacy_host_affinity: None,
    }))
}

fn handle(id: &str, count: u32) -> Result<Record, String> {
    Ok(Record::Handle(Handle {
        id: id.to_owned(),
        blocks: BTreeMap::from([(cidr("192.0.2.0/30")?, count)]),
        deleted: false,
    }))
}

fn affinity(node: &str, text: &str, state: AffinityState) -> Result<Record, String> {
    Ok(Record::Affinity(Affinity { owner: Owner::host(node), cidr: cidr(text)?, state, deleted: false }))
}

fn expect(holds: bool, what: &str, found: impl Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what}, but found {found:?}")) }
}

async fn write<D: Datastore>(store: &D, write: Write) -> Result<Version, String> {
    let key = write.key();
    let versions = store.commit(&[], &[write]).await.map_err(|error| error.to_string())?;
    versions.into_iter().next().ok_or_else(|| format!("no version for the write of {key}"))
}

async fn read<D: Datastore>(store: &D, key: &Key) -> Result<Option<Stored>, String> {
    store.get(key).await.map_err(|error| error.to_string())
}

async fn must_read<D: Datastore>(store: &D, key: &Key) -> Result<Stored, String> {
    read(store, key).await?.ok_or_else(|| format!("{key} is not there"))
}

async fn remove<D: Datastore>(store: &D, key: &Key) -> Result<(), String> {
    if let Some(stored) = read(store, key).await? {
        write(store, Write::Delete(stored.record, stored.version)).await?;
    }
    Ok(())
}

fn is_conflict(result: &Result<Vec<Version>, CommitError>, on: &Key) -> bool {
    matches!(result, Err(CommitError::Conflict { key, .. }) if key == on)
}

/// A record that passes through a state is answered and read as its last one, and is not left in either by a check that
/// fails.
pub async fn passing_record_ends_as_its_last_and_is_undone_by_a_failed_check<D: Datastore>(
    store: &D,
) -> Result<(), String> {
    let last = affinity("n1", "192.0.2.0/30", AffinityState::Confirmed)?;
    let pass = |seen| {
        let passing = Box::new(affinity("n1", "192.0.2.0/30", AffinityState::Pending)?);
        Ok::<_, String>(Write::Pass { passing, last: last.clone(), seen })
    };
    let key = last.key();
    let (absent, other) = (handle("conformance.Absent", 1)?, handle("conformance.Pass", 1)?);
    let untrue = [Check::Unchanged(absent.key(), crate::Revision(1))];
    let refused = store.commit(&untrue, &[pass(None)?, Write::Create(other.clone())]).await;
    expect(is_conflict(&refused, &absent.key()), "a conflict on the check", &refused)?;
    let left = (read(store, &key).await?, read(store, &other.key()).await?);
    expect(left == (None, None), "neither record", &left)?;
    let truth = [Check::Absent(absent.key())];
    let made = store.commit(&truth, &[pass(None)?, Write::Create(other.clone())]).await;
    let versions = made.map_err(|error| error.to_string())?;
    let stored = must_read(store, &key).await?;
    expect(stored.record == last, "the last state", &stored.record)?;
    expect(Some(&stored.version) == versions.first(), "the version that the commit answered", &versions)?;
    let again = write(store, pass(Some(stored.version.clone()))?).await?;
    let stale = store.commit(&[], &[pass(Some(stored.version))?]).await;
    expect(is_conflict(&stale, &key), "a conflict on the version that it replaces", &stale)?;
    write(store, Write::Delete(last.clone(), again)).await?;
    remove(store, &other.key()).await
}

/// What was created is read back whole, under the version that the commit answered.
pub async fn created_record_reads_back<D: Datastore>(store: &D) -> Result<(), String> {
    for record in [
        block("192.0.2.0/30", "n1")?,
        handle("conformance.Mixed-Case", 2)?,
        affinity("n1", "192.0.2.0/30", AffinityState::Pending)?,
    ] {
        let version = write(store, Write::Create(record.clone())).await?;
        let stored = must_read(store, &record.key()).await?;
        expect(stored.record == record, "the record as written", &stored.record)?;
        expect(stored.version == version, "the version that the commit answered", &stored.version)?;
        remove(store, &record.key()).await?;
    }
    Ok(())
}

/// A record is created once.
pub async fn create_is_refused_where_the_record_exists<D: Datastore>(store: &D) -> Result<(), String> {
    let record = handle("conformance.twice", 1)?;
    write(store, Write::Create(record.clone())).await?;
    let second = store.commit(&[], &[Write::Create(handle("conformance.twice", 2)?)]).await;
    expect(is_conflict(&second, &record.key()), "a conflict", &second)?;
    let stored = must_read(store, &record.key()).await?;
    expect(stored.record == record, "the first record", &stored.record)?;
    remove(store, &record.key()).await
}

/// An update from an old version is refused, from the current one it is made.
pub async fn update_needs_the_version_it_replaces<D: Datastore>(store: &D) -> Result<(), String> {
    let key = handle("conformance.update", 1)?.key();
    let first = write(store, Write::Create(handle("conformance.update", 1)?)).await?;
    let second = write(store, Write::Update(handle("conformance.update", 2)?, first.clone())).await?;
    expect(second.revision > first.revision, "a later revision", (&first, &second))?;
    let stale = store.commit(&[], &[Write::Update(handle("conformance.update", 3)?, first)]).await;
    expect(is_conflict(&stale, &key), "a conflict", &stale)?;
    let stored = must_read(store, &key).await?;
    expect(stored.record == handle("conformance.update", 2)?, "the second record", &stored.record)?;
    remove(store, &key).await
}

/// A delete from an old version is refused; a deleted record is gone, and gone a second delete is refused.
pub async fn delete_needs_the_version_it_deletes<D: Datastore>(store: &D) -> Result<(), String> {
    for (first, second) in [
        (handle("conformance.delete", 1)?, handle("conformance.delete", 2)?),
        (block("192.0.2.0/30", "n1")?, block("192.0.2.0/30", "n2")?),
        (
            affinity("n1", "192.0.2.0/30", AffinityState::Pending)?,
            affinity("n1", "192.0.2.0/30", AffinityState::Confirmed)?,
        ),
    ] {
        let key = first.key();
        let old = write(store, Write::Create(first.clone())).await?;
        let new = write(store, Write::Update(second.clone(), old.clone())).await?;
        let stale = store.commit(&[], &[Write::Delete(first, old)]).await;
        expect(is_conflict(&stale, &key), "a conflict", &stale)?;
        write(store, Write::Delete(second.clone(), new.clone())).await?;
        let gone = read(store, &key).await?;
        expect(gone.is_none(), "nothing", &gone)?;
        let again = store.commit(&[], &[Write::Delete(second, new)]).await;
        expect(is_conflict(&again, &key), "a conflict", &again)?;
    }
    Ok(())
}

/// A version of a deleted record neither updates nor deletes its successor of the same name.
pub async fn successor_of_a_deleted_record_is_not_mistaken_for_it<D: Datastore>(
    store: &D,
) -> Result<(), String> {
    let record = handle("conformance.successor", 1)?;
    let old = write(store, Write::Create(record.clone())).await?;
    write(store, Write::Delete(record.clone(), old.clone())).await?;
    write(store, Write::Create(record.clone())).await?;
    for change in [Write::Update(record.clone(), old.clone()), Write::Delete(record.clone(), old)] {
        let result = store.commit(&[], &[change]).await;
        expect(is_conflict(&result, &record.key()), "a conflict", &result)?;
    }
    must_read(store, &record.key()).await?;
    remove(store, &record.key()).await
}

/// Reading what is not there is no failure, updating it is a conflict.
pub async fn absent_record_reads_as_none<D: Datastore>(store: &D) -> Result<(), String> {
    let record = handle("conformance.absent", 1)?;
    let found = read(store, &record.key()).await?;
    expect(found.is_none(), "nothing", &found)?;
    let version = Version { revision: crate::Revision(1), uid: None };
    let result = store.commit(&[], &[Write::Update(record.clone(), version)]).await;
    expect(is_conflict(&result, &record.key()), "a conflict", &result)
}

/// A commit of several writes answers a version for each, in order.
pub async fn writes_of_one_commit_are_all_there<D: Datastore>(store: &D) -> Result<(), String> {
    let (first, second) = (handle("conformance.pair", 1)?, block("192.0.2.4/30", "n1")?);
    let versions = store
        .commit(
            &[Check::Absent(first.key()), Check::Absent(second.key())],
            &[Write::Create(first.clone()), Write::Create(second.clone())],
        )
        .await
        .map_err(|error| error.to_string())?;
    expect(versions.len() == 2, "two versions", &versions)?;
    for (record, version) in [&first, &second].into_iter().zip(&versions) {
        let stored = must_read(store, &record.key()).await?;
        expect(stored.version == *version, "the version that the commit answered", &stored.version)?;
        remove(store, &record.key()).await?;
    }
    Ok(())
}

/// Where commits are atomic, a refused write takes the others with it; elsewhere the error counts what was written.
pub async fn refused_write_leaves_nothing_where_commits_are_atomic<D: Datastore>(
    store: &D,
) -> Result<(), String> {
    let (first, second) = (handle("conformance.first", 1)?, handle("conformance.taken", 1)?);
    write(store, Write::Create(second.clone())).await?;
    let result = store.commit(&[], &[Write::Create(first.clone()), Write::Create(second.clone())]).await;
    expect(is_conflict(&result, &second.key()), "a conflict on the second", &result)?;
    let done = usize::from(!store.capabilities().atomic_commit);
    expect(
        matches!(result, Err(CommitError::Conflict { written, .. }) if written == done),
        "the number of writes done",
        &result,
    )?;
    let found = read(store, &first.key()).await?;
    expect(found.is_some() == (done == 1), "the first record as the error says", &found)?;
    remove(store, &first.key()).await?;
    remove(store, &second.key()).await
}

/// A check that does not hold refuses the commit, and none of its writes stays.
pub async fn failed_check_leaves_nothing<D: Datastore>(store: &D) -> Result<(), String> {
    let guard = handle("conformance.guard", 1)?;
    let old = write(store, Write::Create(guard.clone())).await?;
    write(store, Write::Update(handle("conformance.guard", 2)?, old.clone())).await?;
    let kept = handle("conformance.kept", 1)?;
    let kept_version = write(store, Write::Create(kept.clone())).await?;
    let created = block("192.0.2.8/30", "n1")?;
    for check in [Check::Unchanged(guard.key(), old.revision), Check::Absent(guard.key())] {
        let version = must_read(store, &kept.key()).await?.version;
        let writes =
            [Write::Create(created.clone()), Write::Update(handle("conformance.kept", 7)?, version.clone())];
        let result = store.commit(&[check], &writes).await;
        expect(is_conflict(&result, &guard.key()), "a conflict on the check", &result)?;
        let found = read(store, &created.key()).await?;
        expect(found.is_none(), "no block", &found)?;
        let stored = must_read(store, &kept.key()).await?;
        expect(stored.record == kept, "the record of before", &stored.record)?;
    }
    expect(kept_version.revision.0 > 0, "a revision", &kept_version)?;
    remove(store, &kept.key()).await?;
    remove(store, &guard.key()).await
}

/// A listing holds every record of its kind, in key order.
pub async fn listing_is_in_key_order<D: Datastore>(store: &D) -> Result<(), String> {
    let records = ["192.0.2.100/30", "192.0.2.12/30", "192.0.2.20/30"].map(|text| block(text, "n1"));
    let records = records.into_iter().collect::<Result<Vec<_>, _>>()?;
    for record in &records {
        write(store, Write::Create(record.clone())).await?;
    }
    let listing = store.list(&Scope::All(Kind::Block)).await.map_err(|error| error.to_string())?;
    let keys: Vec<Key> = listing.items.iter().map(|stored| stored.record.key()).collect();
    expect(keys.is_sorted(), "keys in order", &keys)?;
    for record in &records {
        expect(keys.contains(&record.key()), "every block", &keys)?;
        remove(store, &record.key()).await?;
    }
    Ok(())
}

/// The affinities of one owner are listed without those of others.
pub async fn affinities_are_listed_by_owner<D: Datastore>(store: &D) -> Result<(), String> {
    let mine = affinity("conformance-a", "192.0.2.16/30", AffinityState::Confirmed)?;
    let other = affinity("conformance-b", "192.0.2.20/30", AffinityState::Confirmed)?;
    write(store, Write::Create(mine.clone())).await?;
    write(store, Write::Create(other.clone())).await?;
    let scope = Scope::AffinitiesOf(Owner::host("conformance-a"));
    let listing = store.list(&scope).await.map_err(|error| error.to_string())?;
    let found: Vec<&Record> = listing.items.iter().map(|stored| &stored.record).collect();
    expect(found == [&mine], "the owner's affinity alone", &found)?;
    remove(store, &mine.key()).await?;
    remove(store, &other.key()).await
}

/// A watch tells creations, changes and deletes after its revision in order, and nothing of before.
pub async fn watch_tells_every_change_after_its_revision<D: Datastore>(store: &D) -> Result<(), String> {
    let record = block("192.0.2.24/30", "n1")?;
    let changed = block("192.0.2.24/30", "n2")?;
    let scope = Scope::All(Kind::Block);
    let from = store.list(&scope).await.map_err(|error| error.to_string())?.revision;
    let first = write(store, Write::Create(record.clone())).await?;
    let second = write(store, Write::Update(changed.clone(), first.clone())).await?;
    write(store, Write::Delete(changed.clone(), second.clone())).await?;
    let mut watch = store.watch(&scope, from).await.map_err(|error| error.to_string())?;
    let mut told = Vec::new();
    while told.len() < 3 {
        match watch.next().await {
            Some(Ok(Event::Progress(_))) => {}
            Some(Ok(event)) => told.push(event),
            other => return Err(format!("three changes, but found {told:?} and then {other:?}")),
        }
    }
    let as_expected = match told.as_slice() {
        [Event::Put(created), Event::Put(updated), Event::Deleted(key, at)] => {
            created.record == record
                && created.version == first
                && updated.record == changed
                && updated.version == second
                && *key == record.key()
                && *at > second.revision
        }
        _ => false,
    };
    expect(as_expected, "creation, change and delete", &told)
}

/// A watch from a listing's revision tells exactly what the listing does not show.
pub async fn listing_and_watch_leave_no_gap<D: Datastore>(store: &D) -> Result<(), String> {
    let (before, after) = (handle("conformance.before", 1)?, handle("conformance.after", 1)?);
    write(store, Write::Create(before.clone())).await?;
    let scope = Scope::All(Kind::Handle);
    let listing = store.list(&scope).await.map_err(|error| error.to_string())?;
    expect(
        listing.items.iter().any(|stored| stored.record == before),
        "the earlier record listed",
        &listing.items,
    )?;
    write(store, Write::Create(after.clone())).await?;
    let mut watch = store.watch(&scope, listing.revision).await.map_err(|error| error.to_string())?;
    loop {
        match watch.next().await {
            Some(Ok(Event::Progress(_))) => {}
            Some(Ok(Event::Put(stored))) if stored.record == after => break,
            other => return Err(format!("the later record, but found {other:?}")),
        }
    }
    remove(store, &before.key()).await?;
    remove(store, &after.key()).await
}
