//! The etcd driver against a real etcd, which the tests start and stop.

#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
mod copying;
#[path = "../fake/mod.rs"]
mod fake;
mod faults;
mod golden;
mod isolated;
mod link;
#[path = "../../../dataplane/tests/namespace/mod.rs"]
mod namespace;
mod server;

use api::{Affinity, AffinityState, Block, Handle, IpamConfig, Owner, Pool};
use datastore::conformance;
use datastore::etcd::Etcd;
use datastore::follow::{Change, follow};
use datastore::{
    Check, CommitError, Datastore, Event, Key, Kind, ReadError, Record, Revision, Scope, Version, Write,
};
use futures::StreamExt;
use serde_json::json;
use server::{Plan, Server, ready};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn handle(id: &str, count: u32) -> Record {
    let blocks = BTreeMap::from([("10.0.0.0/26".parse().unwrap(), count)]);
    Record::Handle(Handle { id: id.to_owned(), blocks, deleted: false })
}

/// Writes that create affinities, which a commit makes together.
fn affinities(count: u32) -> Vec<Write> {
    let affinity = |at| {
        let cidr = format!("10.{at}.0.0/26").parse().unwrap();
        let state = AffinityState::Pending;
        Write::Create(Record::Affinity(Affinity { owner: Owner::host("n"), cidr, state, deleted: false }))
    };
    (0..count).map(affinity).collect()
}

async fn one(store: &Etcd, write: Write) -> Result<Version, CommitError> {
    store.commit(&[], &[write]).await.map(|mut versions| versions.remove(0))
}

#[tokio::test]
async fn keeps_the_contract() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    conformance::run(&store).await.unwrap();
}

#[tokio::test]
async fn an_affinity_that_passes_through_a_state_is_written_once_as_its_last() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let affinity = |state| {
        let cidr = "10.0.0.64/26".parse().unwrap();
        Record::Affinity(Affinity { owner: Owner::host("n"), cidr, state, deleted: false })
    };
    let passing = Box::new(affinity(AffinityState::Pending));
    let last = affinity(AffinityState::Confirmed);
    let before = store.list(&Scope::All(Kind::Affinity)).await.unwrap().revision;
    let version = one(&store, Write::Pass { passing, last: last.clone(), seen: None }).await.unwrap();
    assert_eq!(version.revision, Revision(before.0 + 1));
    assert_eq!(store.get(&last.key()).await.unwrap().unwrap().record, last);
}

#[tokio::test]
async fn an_update_of_a_pool_keeps_its_identity_and_what_others_wrote_in_it() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let (store, other) = (server.driver(), server.driver());
    ready(&store).await;
    let mut pool = Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
    let version = one(&store, Write::Create(Record::Pool(pool.clone()))).await.unwrap();
    let key = Key::Pool("p".to_owned());
    let created = golden::value_of(&server, "/calico/resources/v3/projectcalico.org/ippools/p").await;
    pool.disabled = true;
    // Another driver, which has not read it.
    let version = one(&other, Write::Update(Record::Pool(pool.clone()), version)).await.unwrap();
    let changed = golden::value_of(&server, "/calico/resources/v3/projectcalico.org/ippools/p").await;
    let metadata = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["metadata"].clone();
    assert_eq!(metadata(&created), metadata(&changed));
    assert!(metadata(&created)["uid"].is_string() && metadata(&created)["creationTimestamp"].is_string());
    let stored = store.get(&key).await.unwrap().unwrap();
    assert_eq!((stored.record, stored.version), (Record::Pool(pool), version));
    assert!(stored.created.is_some());
}

#[tokio::test]
async fn a_list_longer_than_a_page_shows_one_revision() {
    let Some(server) = Server::start(&Plan { arguments: &["--max-txn-ops", "3000"], ..Plan::default() })
    else {
        return;
    };
    let mut settings = server.settings();
    settings.operations = 3000;
    let store = Etcd::new(settings).unwrap();
    ready(&store).await;
    let writes: Vec<Write> = (0..2500).map(|at| Write::Create(handle(&format!("h{at}"), 1))).collect();
    let versions = store.commit(&[], &writes).await.unwrap();
    assert!(versions.iter().all(|version| version == &versions[0]));
    let listing = store.list(&Scope::All(Kind::Handle)).await.unwrap();
    assert_eq!(listing.items.len(), 2500);
    assert!(listing.items.is_sorted_by_key(|stored| stored.record.key()));
    assert_eq!(listing.revision, versions[0].revision);
}

#[tokio::test]
async fn more_handles_than_a_transaction_takes_go_before_their_block() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let mut writes: Vec<Write> = (0..256).map(|at| Write::Create(handle(&format!("h{at}"), 1))).collect();
    writes.push(Write::Create(Record::Config(IpamConfig::default())));
    let versions = store.commit(&[Check::Absent(Key::Handle("guard".to_owned()))], &writes).await.unwrap();
    assert_eq!(versions.len(), 257);
    assert!(versions.is_sorted_by_key(|version| version.revision));
    for (write, version) in writes.iter().zip(&versions).step_by(50) {
        assert_eq!(&store.get(&write.key()).await.unwrap().unwrap().version, version);
    }
    // Affinities belong to the rest and are not taken apart.
    let refused = store.commit(&[], &affinities(200)).await;
    assert!(
        matches!(&refused, Err(CommitError::Refused { reason, written: 0, .. }) if reason.contains("--max-txn-ops")),
        "{refused:?}"
    );
    assert!(store.list(&Scope::All(Kind::Affinity)).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_request_larger_than_the_server_takes_is_refused_with_what_to_do() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let blocks = (0..120_000_u32)
        .map(|at| (format!("10.{}.{}.{}/32", at / 65_536, at / 256 % 256, at % 256).parse().unwrap(), 1));
    let huge = Record::Handle(Handle { id: "huge".to_owned(), blocks: blocks.collect(), deleted: false });
    let refused = one(&store, Write::Create(huge.clone())).await;
    assert!(
        matches!(&refused, Err(CommitError::Refused { reason, .. }) if reason.contains("--max-request-bytes")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_larger_request_is_made_where_the_server_takes_it() {
    let arguments = ["--max-request-bytes", "4000000", "--max-txn-ops", "1024"];
    let Some(server) = Server::start(&Plan { arguments: &arguments, ..Plan::default() }) else { return };
    let store = server.driver();
    ready(&store).await;
    let blocks = (0..70_000_u32)
        .map(|at| (format!("10.{}.{}.{}/32", at / 65_536, at / 256 % 256, at % 256).parse().unwrap(), 1));
    let large = Record::Handle(Handle { id: "large".to_owned(), blocks: blocks.collect(), deleted: false });
    one(&store, Write::Create(large)).await.unwrap();
    // Nobody told the driver that this server takes more, and affinities are not taken apart.
    let versions = store.commit(&[], &affinities(200)).await.unwrap();
    assert!(versions.iter().all(|version| version == &versions[0]));
}

#[tokio::test]
async fn a_server_that_takes_fewer_operations_is_asked_for_fewer() {
    let Some(server) = Server::start(&Plan { arguments: &["--max-txn-ops", "16"], ..Plan::default() }) else {
        return;
    };
    let store = server.driver();
    ready(&store).await;
    let guard = Record::Config(IpamConfig::default());
    let handles = |count: u32| (0..100).map(move |at| (format!("h{at}"), count));
    let mut writes: Vec<Write> = handles(1).map(|(id, count)| Write::Create(handle(&id, count))).collect();
    writes.push(Write::Create(guard.clone()));
    let versions = store.commit(&[Check::Absent(Key::ClusterInformation)], &writes).await.unwrap();
    assert_eq!(versions.len(), 101);
    for (write, version) in writes.iter().zip(&versions).step_by(20) {
        assert_eq!(&store.get(&write.key()).await.unwrap().unwrap().version, version);
    }
    // What belongs together is not cut, and nothing of it is made.
    let refused = store.commit(&[], &affinities(40)).await;
    assert!(
        matches!(&refused, Err(CommitError::Refused { reason, written: 0, .. }) if reason.contains("--max-txn-ops")),
        "{refused:?}"
    );
    // A part that meets a conflict after others were made says how many changes stand.
    one(&store, Write::Update(handle("h99", 7), versions[99].clone())).await.unwrap();
    let mut deletes = vec![Write::Update(guard, versions[100].clone())];
    deletes.extend(
        handles(1)
            .zip(&versions)
            .map(|((id, count), version)| Write::Delete(handle(&id, count), version.clone())),
    );
    let conflict = store.commit(&[], &deletes).await;
    let Err(CommitError::Conflict { key, written }) = conflict else { panic!("{conflict:?}") };
    assert_eq!(key, Key::Handle("h99".to_owned()));
    let left = store.list(&Scope::All(Kind::Handle)).await.unwrap().items.len();
    assert!(written > 1 && left == 100 - (written - 1), "{written} written, {left} handles left");
}

#[tokio::test]
async fn names_that_are_no_keys_are_refused() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let slash = handle("a/b", 1);
    assert!(matches!(one(&store, Write::Create(slash.clone())).await, Err(CommitError::Refused { .. })));
    assert!(matches!(store.get(&slash.key()).await, Err(ReadError::Malformed { .. })));
}

#[tokio::test]
async fn compacted_history_expires_a_watch_and_a_follower_lists_again() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let scope = Scope::All(Kind::Handle);
    // One that has listed and not watched yet.
    let mut changes = follow(store.clone(), scope.clone());
    assert!(matches!(changes.next().await, Some(Change::Reset(listing)) if listing.items.is_empty()));
    let from = store.list(&scope).await.unwrap().revision;
    let first = one(&store, Write::Create(handle("h", 1))).await.unwrap();
    let last = one(&store, Write::Update(handle("h", 2), first)).await.unwrap();
    server.post("/v3/kv/compaction", json!({"revision": last.revision.0.to_string()})).await;
    let watch = store.watch(&scope, from).await;
    let expired = match watch {
        Err(error) => error,
        Ok(mut watch) => {
            let error = watch.next().await.unwrap().unwrap_err();
            assert!(watch.next().await.is_none(), "a watch that failed ends");
            error
        }
    };
    assert!(matches!(expired, ReadError::Expired { .. }), "{expired:?}");
    let told = changes.next().await;
    assert!(
        matches!(&told, Some(Change::Reset(listing)) if listing.items.len() == 1 && listing.items[0].version == last),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_paused_server_makes_writes_unknown_and_reads_unavailable_and_a_follower_goes_on_after_it() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let mut settings = server.settings();
    settings.deadline = Duration::from_millis(500);
    let store = Etcd::new(settings).unwrap();
    ready(&store).await;
    let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
    assert!(matches!(changes.next().await, Some(Change::Reset(_))));
    let version = one(&store, Write::Create(handle("h", 1))).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Put(_))));
    server.pause();
    let write = one(&store, Write::Update(handle("h", 2), version.clone())).await;
    assert!(matches!(write, Err(CommitError::Unknown { .. })), "{write:?}");
    let read = store.get(&Key::Handle("h".to_owned())).await;
    assert!(matches!(read, Err(ReadError::Unavailable { .. })), "{read:?}");
    server.resume();
    ready(&store).await;
    // Whether the write took effect, reading tells; the next one is conditional on what was read.
    let stored = store.get(&Key::Handle("h".to_owned())).await.unwrap().unwrap();
    assert!(stored.record == handle("h", 1) || stored.record == handle("h", 2));
    let told = one(&store, Write::Update(handle("h", 3), stored.version)).await;
    let last = match told {
        Ok(version) => version.revision,
        // The paused write took effect in between.
        Err(CommitError::Conflict { .. }) => {
            let stored = store.get(&Key::Handle("h".to_owned())).await.unwrap().unwrap();
            one(&store, Write::Update(handle("h", 3), stored.version)).await.unwrap().revision
        }
        other => panic!("{other:?}"),
    };
    loop {
        match changes.next().await.unwrap() {
            Change::Put(stored) if stored.version.revision == last => break,
            Change::Reset(listing) if listing.revision >= last => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_the_server_is_killed() {
    let Some(mut server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
    assert!(matches!(changes.next().await, Some(Change::Reset(_))));
    let mut answered = Vec::new();
    for at in 0..20 {
        let record = handle(&format!("h{at}"), 1);
        answered.push((record.key(), one(&store, Write::Create(record)).await.unwrap()));
    }
    server.kill();
    let write = one(&store, Write::Create(handle("late", 1))).await;
    assert!(matches!(write, Err(CommitError::Unavailable { .. } | CommitError::Unknown { .. })), "{write:?}");
    // Nothing is connected now, so nothing was sent.
    let write = one(&store, Write::Create(handle("later", 1))).await;
    assert!(matches!(write, Err(CommitError::Unavailable { .. })), "{write:?}");
    server.run();
    ready(&store).await;
    for (key, version) in &answered {
        assert_eq!(store.get(key).await.unwrap().unwrap().version, *version);
    }
    let version = one(&store, Write::Create(handle("after", 1))).await.unwrap();
    let mut seen = 0;
    loop {
        match changes.next().await.unwrap() {
            Change::Put(stored) if stored.version == version => break,
            Change::Put(_) => seen += 1,
            Change::Reset(_) => panic!("a watch goes on where it was"),
            _ => {}
        }
    }
    assert_eq!(seen, answered.len());
}

#[tokio::test]
async fn a_block_comes_back_by_its_writers_watch_as_it_was_and_by_anothers_as_it_is_written() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let (writer, other) = (server.driver(), server.driver());
    ready(&writer).await;
    let block = |claimed: &str| {
        Record::Block(Block {
            cidr: "10.0.0.0/30".parse().unwrap(),
            affinity: Some(Owner::host("n")),
            claim_time: claimed.parse().ok(),
            allocations: vec![None; 4].into(),
            unallocated: (0..4).collect(),
            attributes: Arc::default(),
            sequence_number: 1,
            sequence_for_allocation: Arc::default(),
            deleted: false,
            legacy_host_affinity: None,
        })
    };
    let scope = Scope::All(Kind::Block);
    let from = writer.list(&scope).await.unwrap().revision;
    let mut watches = [writer.watch(&scope, from).await.unwrap(), other.watch(&scope, from).await.unwrap()];
    // The text has whole seconds.
    let (exact, written) = (block("2026-08-01T10:15:30.25Z"), block("2026-08-01T10:15:30Z"));
    let version = one(&writer, Write::Create(exact.clone())).await.unwrap();
    for (watch, wanted) in watches.iter_mut().zip([exact, written.clone()]) {
        let Some(Ok(Event::Put(stored))) = watch.next().await else { panic!("a block") };
        assert_eq!((stored.record, stored.version), (wanted, version.clone()));
    }
    // What somebody else writes is read, by whoever watches.
    let changed = block("2026-08-02T10:15:30Z");
    let version = one(&other, Write::Update(changed.clone(), version)).await.unwrap();
    let Some(Ok(Event::Put(stored))) = watches[0].next().await else { panic!("a block") };
    assert_eq!((stored.record, stored.version), (changed, version));
}
