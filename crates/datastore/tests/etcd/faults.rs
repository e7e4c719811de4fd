//! Concurrent clients against an etcd that is killed, paused and loses its leader.

use crate::server::{Plan, Server, ready};
use crate::{handle, one};
use api::Handle;
use datastore::conformance::concurrent::{Deletes, history_is_linearizable};
use datastore::conformance::faults::{Disturbance, history_is_linearizable_under};
use datastore::etcd::{Etcd, Settings};
use datastore::follow::{Change, follow};
use datastore::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Version, Write};
use futures::StreamExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[tokio::test]
async fn ten_thousand_operations_of_eight_clients_are_linearizable() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let clients: Vec<Etcd> = (0..8).map(|_| server.driver()).collect();
    ready(&clients[0]).await;
    history_is_linearizable(&clients.iter().collect::<Vec<_>>(), 10_000, Deletes::AtOnce).await.unwrap();
}

#[tokio::test]
async fn a_full_quota_makes_writes_unknown_with_what_to_do_and_reads_go_on() {
    let arguments = ["--quota-backend-bytes", "4000000"];
    let Some(server) = Server::start(&Plan { arguments: &arguments, ..Plan::default() }) else { return };
    let settings = Settings { deadline: Duration::from_secs(60), ..server.settings() };
    let store = Etcd::new(settings).unwrap();
    ready(&store).await;
    let big = |writer: u32, number: u32| {
        let blocks =
            (0..3000_u32).map(|at| (format!("10.{}.{}.0/24", at / 256, at % 256).parse().unwrap(), 1));
        Record::Handle(Handle { id: format!("w{writer}.{number}"), blocks: blocks.collect(), deleted: false })
    };
    // Several at once: one may be carried out though others used up the quota after it was let in, and then it is told of the
    // quota nevertheless.
    let write_until_full = |writer: u32| {
        let store = &store;
        async move {
            let mut answered = Vec::new();
            for number in 0..100 {
                let record = big(writer, number);
                match one(store, Write::Create(record.clone())).await {
                    Ok(version) => answered.push((record.key(), version)),
                    Err(error) => return (answered, error),
                }
            }
            panic!("the quota is never reached");
        }
    };
    let ended = futures::future::join_all((0..8).map(write_until_full)).await;
    for (answered, full) in ended {
        assert!(
            matches!(&full, CommitError::Unknown { reason, .. } if reason.contains("NOSPACE")),
            "{full:?}"
        );
        for (key, version) in answered {
            assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
        }
    }
}

/// Killed and started again, and stopped in its tracks, in turns.
struct KilledAndPaused(Server);

impl Disturbance for KilledAndPaused {
    async fn begin(&mut self, round: usize) -> bool {
        if round.is_multiple_of(2) {
            self.0.kill();
            self.0.run();
            return false;
        }
        self.0.pause();
        true
    }

    async fn end(&mut self, round: usize) {
        if !round.is_multiple_of(2) {
            self.0.resume();
        }
    }
}

#[tokio::test]
async fn the_history_stays_linearizable_while_the_server_is_killed_and_paused() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let settings = Settings { deadline: Duration::from_millis(400), ..server.settings() };
    let clients: Vec<Etcd> = (0..8).map(|_| Etcd::new(settings.clone()).unwrap()).collect();
    let patient = Etcd::new(Settings { deadline: settings.deadline * 2, ..settings }).unwrap();
    ready(&patient).await;
    let clients: Vec<&Etcd> = clients.iter().collect();
    let mut server = KilledAndPaused(server);
    let how = (4, Deletes::AtOnce);
    let outcome = history_is_linearizable_under(&mut server, &clients, &patient, 4000, how).await.unwrap();
    assert!(outcome.unknown > 0, "no write was left without an answer");
    assert!(outcome.written > 300, "{outcome:?}");
}

/// Which member leads, as `member` knows.
async fn leader_of(member: &Server) -> Option<String> {
    let status = member.post("/v3/maintenance/status", json!({})).await;
    let leader = status.get("leader").and_then(|leader| leader.as_str());
    leader.filter(|leader| *leader != "0").map(str::to_owned)
}

/// The member that leads, once there is one.
async fn leader(members: &[Server]) -> usize {
    loop {
        for (at, member) in members.iter().enumerate() {
            let status = member.post("/v3/maintenance/status", json!({})).await;
            let id = status.pointer("/header/member_id").and_then(|id| id.as_str());
            if id.is_some() && id == status.get("leader").and_then(|leader| leader.as_str()) {
                return at;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Makes a write until it is made: what is not known is read.
async fn insist(store: &Etcd, id: &str) -> Version {
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < Duration::from_secs(60), "no progress");
        match one(store, Write::Create(handle(id, 1))).await {
            Ok(version) => return version,
            Err(CommitError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            // An earlier try of this loop.
            Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {
                if let Ok(Some(stored)) = store.get(&Key::Handle(id.to_owned())).await {
                    return stored.version;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_go_on_without_their_leader_and_nothing_that_was_answered_is_lost() {
    let Some(mut members) = Server::cluster(3, &Plan::default()) else { return };
    for member in &members {
        ready(&member.driver()).await;
    }
    for round in 0..2 {
        let leading = leader(&members).await;
        // The member that it is connected to is the one that will be missing.
        let order = (0..3).map(|step| members[(leading + step) % 3].endpoint.clone());
        let store = Etcd::new(Settings::of(order)).unwrap();
        let mut changes = follow(store.clone(), Scope::All(Kind::Handle));
        assert!(matches!(changes.next().await, Some(Change::Reset(_))));
        let mut answered = BTreeMap::new();
        let paused = round == 1;
        if paused {
            members[leading].pause();
        } else {
            members[leading].kill();
        }
        let since = Instant::now();
        for at in 0..10 {
            let id = format!("r{round}.{at}");
            let version = insist(&store, &id).await;
            answered.insert(Key::Handle(id), version);
            if at == 0 {
                eprintln!(
                    "{}: progress after {:?}",
                    if paused { "paused" } else { "killed" },
                    since.elapsed()
                );
            }
        }
        if paused {
            members[leading].resume();
        } else {
            members[leading].run();
        }
        for member in &members {
            ready(&member.driver()).await;
        }
        for (key, version) in &answered {
            assert_eq!(&store.get(key).await.unwrap().unwrap().version, version);
        }
        let mut told = BTreeMap::new();
        while told != answered {
            match changes.next().await.unwrap() {
                Change::Put(stored) => {
                    let again = told.insert(stored.record.key(), stored.version);
                    assert_eq!(again, None, "each write is told once");
                }
                Change::Reset(_) => panic!("a watch goes on where it was"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_ends_its_watches_and_is_passed_over_for_one_that_has_one() {
    let Some(mut pair) = Server::cluster(2, &Plan::default()) else { return };
    let Some(other) = Server::start(&Plan::default()) else { return };
    let alone = pair[0].driver();
    for store in [&alone, &pair[1].driver(), &other.driver()] {
        ready(store).await;
    }
    let scope = Scope::All(Kind::Handle);
    let from = alone.list(&scope).await.unwrap().revision;
    let mut watch = alone.watch(&scope, from).await.unwrap();
    pair[1].kill();
    // Nothing more can come from this member, and it says so, or this waits for ever.
    let ended = loop {
        match watch.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&ended, ReadError::Unavailable { .. }), "{ended:?}");
    while leader_of(&pair[0]).await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The first write already goes to the other.
    let both = Etcd::new(Settings::of([&pair[0].endpoint, &other.endpoint])).unwrap();
    one(&both, Write::Create(handle("h", 1))).await.unwrap();
}
