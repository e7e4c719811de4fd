//! An etcd that is cut off from its clients, and one whose disk is full: in namespaces of the test's own, so that links can
//! go down and a small disk be mounted without root.

use crate::link::{self, ADDRESS, Link, fill, small_disk};
use crate::server::{Plan, Server, binary, ready};
use crate::{handle, one};
use api::Handle;
use datastore::conformance::concurrent::Deletes;
use datastore::conformance::faults::{Disturbance, history_is_linearizable_under};
use datastore::etcd::{Etcd, Settings};
use datastore::follow::{Change, follow};
use datastore::{
    CommitError, Datastore, Event, Key, Kind, ReadError, Record, Revision, Scope, Version, Write,
};
use futures::StreamExt;
use std::future::Future;
use std::time::Duration;

/// As [`link::beside_a_host`]; without etcd it runs nothing.
fn beside_a_host<T: Future<Output = ()>>(name: &str, body: impl FnOnce(Link) -> T) {
    if binary().is_some() {
        link::beside_a_host(name, body);
    }
}

fn server_on(link: &Link) -> Server {
    Server::start(&Plan { host: Some((&link.host.0, ADDRESS)), ..Plan::default() }).unwrap()
}

/// What became of a write that was not answered: read, and written again only where it was not made.
async fn resolved(store: &Etcd, id: &str, count: u32) -> Version {
    let found = store.get(&Key::Handle(id.to_owned())).await.unwrap().unwrap();
    if found.record == handle(id, count) {
        return found.version;
    }
    match one(store, Write::Update(handle(id, count), found.version)).await {
        Ok(version) => version,
        // It was still on its way when it was looked for.
        Err(CommitError::Conflict { .. }) => {
            let found = store.get(&Key::Handle(id.to_owned())).await.unwrap().unwrap();
            assert_eq!(found.record, handle(id, count));
            found.version
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_server_that_is_cut_off_makes_writes_unknown_until_they_are_read_and_a_follower_misses_nothing() {
    beside_a_host(
        "isolated::a_server_that_is_cut_off_makes_writes_unknown_until_they_are_read_and_a_follower_misses_nothing",
        async |link| {
            let server = server_on(&link);
            let settings = Settings { deadline: Duration::from_millis(500), ..server.settings() };
            let store = Etcd::new(settings).unwrap();
            ready(&store).await;
            let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
            assert!(matches!(changes.next().await, Some(Change::Reset(_))));
            let version = one(&store, Write::Create(handle("h", 1))).await.unwrap();
            link.cut();
            let write = one(&store, Write::Update(handle("h", 2), version)).await;
            assert!(matches!(write, Err(CommitError::Unknown { .. })), "{write:?}");
            // The connection was given up, and there is no other: nothing is sent any more.
            let write = one(&store, Write::Create(handle("later", 1))).await;
            assert!(matches!(write, Err(CommitError::Unavailable { .. })), "{write:?}");
            let read = store.get(&Key::Handle("h".to_owned())).await;
            assert!(matches!(read, Err(ReadError::Unavailable { .. })), "{read:?}");
            link.mend();
            ready(&store).await;
            let last = resolved(&store, "h", 2).await;
            assert_eq!(store.get(&Key::Handle("later".to_owned())).await.unwrap(), None);
            loop {
                match changes.next().await.unwrap() {
                    Change::Put(stored) if stored.version == last => break,
                    Change::Reset(listing) if listing.items.iter().any(|stored| stored.version == last) => {
                        break;
                    }
                    _ => {}
                }
            }
        },
    );
}

#[test]
fn a_first_endpoint_where_nobody_is_keeps_nobody_from_the_next() {
    beside_a_host("isolated::a_first_endpoint_where_nobody_is_keeps_nobody_from_the_next", async |link| {
        let server = server_on(&link);
        ready(&server.driver()).await;
        // Packets to there are not answered, not even with a refusal.
        let nobody = ["http://10.99.0.77:2379", "http://10.99.0.78:2379"];
        let behind = |count: usize| {
            Etcd::new(Settings::of(nobody[..count].iter().copied().chain([server.endpoint.as_str()])))
                .unwrap()
        };
        let read = behind(1).get(&Key::Config).await;
        assert_eq!(read, Ok(None), "in the time of one read");
        let version = one(&behind(1), Write::Create(handle("h", 1))).await.unwrap();
        let mut watch = behind(1).watch(&Scope::All(Kind::Handle), Revision(1)).await.unwrap();
        assert!(matches!(watch.next().await, Some(Ok(Event::Put(stored))) if stored.version == version));
        // Two of them take up all the time of a write, which is not sent; the next begins where it did not come to.
        let far = behind(2);
        let first = one(&far, Write::Create(handle("far", 1))).await;
        assert!(matches!(first, Ok(_) | Err(CommitError::Unavailable { .. })), "{first:?}");
        ready(&far).await;
    });
}

/// Cut off, and reached again.
struct CutOff(Link);

impl Disturbance for CutOff {
    async fn begin(&mut self, _: usize) -> bool {
        self.0.cut();
        true
    }

    async fn end(&mut self, _: usize) {
        self.0.mend();
    }
}

#[test]
fn the_history_stays_linearizable_while_the_server_is_cut_off_again_and_again() {
    beside_a_host(
        "isolated::the_history_stays_linearizable_while_the_server_is_cut_off_again_and_again",
        async |link| {
            let server = server_on(&link);
            let settings = Settings { deadline: Duration::from_millis(400), ..server.settings() };
            let clients: Vec<Etcd> = (0..8).map(|_| Etcd::new(settings.clone()).unwrap()).collect();
            // Waits longer than they do.
            let patient = Etcd::new(Settings { deadline: settings.deadline * 2, ..settings }).unwrap();
            ready(&patient).await;
            let clients: Vec<&Etcd> = clients.iter().collect();
            let how = (3, Deletes::AtOnce);
            let outcome = history_is_linearizable_under(&mut CutOff(link), &clients, &patient, 3000, how)
                .await
                .unwrap();
            assert!(outcome.unknown > 0, "no write was left without an answer");
            assert!(outcome.written > 300, "{outcome:?}");
        },
    );
}

/// A handle of some dozens of kilobytes.
fn big(number: u32) -> Record {
    let blocks = (0..3000_u32).map(|at| (format!("10.{}.{}.0/24", at / 256, at % 256).parse().unwrap(), 1));
    Record::Handle(Handle { id: format!("h{number}"), blocks: blocks.collect(), deleted: false })
}

#[test]
fn what_was_answered_survives_a_disk_that_is_full_and_writes_go_on_when_there_is_room_again() {
    beside_a_host(
        "isolated::what_was_answered_survives_a_disk_that_is_full_and_writes_go_on_when_there_is_room_again",
        async |link| {
            let disk = tempfile::tempdir().unwrap();
            // The server takes 128 MB at once for its log.
            small_disk(disk.path(), 192);
            let data = disk.path().join("etcd");
            let plan = Plan { host: Some((&link.host.0, ADDRESS)), data: Some(&data), ..Plan::default() };
            let mut server = Server::start(&plan).unwrap();
            let store = server.driver();
            ready(&store).await;
            let mut answered = vec![(
                handle("first", 1).key(),
                one(&store, Write::Create(handle("first", 1))).await.unwrap(),
            )];
            let ballast = disk.path().join("ballast");
            fill(&ballast);
            // The log has room for a while; the records it is to be turned into have none.
            let mut last = 0;
            let failed = loop {
                assert!(last < 2000, "the disk is never full");
                last += 1;
                match one(&store, Write::Create(big(last))).await {
                    Ok(version) => answered.push((big(last).key(), version)),
                    Err(error) => break error,
                }
            };
            assert!(
                matches!(&failed, CommitError::Unavailable { .. } | CommitError::Unknown { .. }),
                "{failed:?}"
            );
            let again = one(&store, Write::Create(handle("meanwhile", 1))).await;
            assert!(again.is_err(), "{again:?}");
            std::fs::remove_file(&ballast).unwrap();
            server.kill();
            server.run();
            ready(&store).await;
            for (key, version) in &answered {
                assert_eq!(&store.get(key).await.unwrap().unwrap().version, version, "{key}");
            }
            // The one without an answer: there as it was sent, or not at all.
            let found = store.get(&big(last).key()).await.unwrap();
            assert!(found.is_none_or(|found| found.record == big(last)));
            one(&store, Write::Create(handle("after", 1))).await.unwrap();
        },
    );
}
