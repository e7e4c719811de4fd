//! A server that is killed or paused.

use crate::server::{KubeApiserver, define_older_group};
use crate::{handle, one};
use datastore::follow::{Change, follow};
use datastore::{CommitError, Datastore, Key, Kind, ReadError, Scope, Write};
use futures::StreamExt;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_makes_writes_unknown_and_a_killed_one_keeps_what_it_answered() {
    let Some(mut server) = KubeApiserver::start().await else { return };
    let store = server.driver("admin").await;
    define_older_group(&store).await;
    let hasty = store.clone().with_deadline(Duration::from_millis(500));
    let key = Key::Handle("h".to_owned());
    let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
    assert!(matches!(changes.next().await, Some(Change::Reset(_))));
    let version = one(&store, Write::Create(handle("h", 1))).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Put(_))));

    server.pause();
    let write = one(&hasty, Write::Update(handle("h", 2), version)).await;
    assert!(matches!(write, Err(CommitError::Unknown { .. })), "{write:?}");
    let read = hasty.get(&key).await;
    assert!(matches!(read, Err(ReadError::Unavailable { .. })), "{read:?}");
    server.resume();
    // Whether the write took effect, reading tells, after a conditional write has moved the record.
    let last = loop {
        let stored = store.get(&key).await.unwrap().unwrap();
        assert!(stored.record == handle("h", 1) || stored.record == handle("h", 2));
        match one(&store, Write::Update(handle("h", 3), stored.version)).await {
            Ok(version) => break version.revision,
            Err(CommitError::Conflict { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    loop {
        match changes.next().await.unwrap() {
            Change::Put(stored) if stored.version.revision == last => break,
            Change::Reset(listing) if listing.revision >= last => break,
            _ => {}
        }
    }

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
    server.ready().await;
    for (key, version) in &answered {
        assert_eq!(store.get(key).await.unwrap().unwrap().version, *version);
    }
    let version = one(&store, Write::Create(handle("after", 1))).await.unwrap();
    loop {
        match changes.next().await.unwrap() {
            Change::Put(stored) if stored.version == version => break,
            Change::Reset(listing) if listing.revision >= version.revision => break,
            _ => {}
        }
    }
}
