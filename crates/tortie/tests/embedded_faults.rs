//! The Kubernetes driver over the embedded API server, a process that is killed, stopped in its tracks, cut off, and whose disk
//! is full.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../datastore/tests/etcd/link.rs"]
mod link;
#[path = "../../dataplane/tests/namespace/mod.rs"]
mod namespace;

use api::Handle;
use datastore::conformance::concurrent::Deletes;
use datastore::conformance::faults::{Disturbance, history_is_linearizable_under};
use datastore::follow::{Change, follow};
use datastore::kubernetes::Kubernetes;
use datastore::{CommitError, Datastore as _, Key, Kind, Record, Scope, Write};
use futures::StreamExt as _;
use link::{ADDRESS, Link, beside_a_host, fill, small_disk};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long something may take on a machine that does much else, which is less than what it would take by itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server on the host beside. Its data outlives its process.
struct Server {
    link: Link,
    data: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn start(link: Link, data: &Path) -> Self {
        let mut server = Self { link, data: data.to_owned(), child: None };
        server.run();
        server
    }

    fn run(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tortie"));
        let listen = format!("{ADDRESS}:6443");
        command.env_remove("LISTEN_FDS").args(["apiserver", "--listen", &listen, "--data"]).arg(&self.data);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.link.host.run(|| command.spawn().unwrap());
        // Said when its certificates are there.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("export KUBECONFIG=/"), "{line}");
        self.child = Some(child);
    }

    fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap()).unwrap()
    }

    fn pause(&self) {
        kill_process(self.process(), Signal::STOP).unwrap();
        let stopped = waitpid(Some(self.process()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "it does not stand still");
    }

    fn resume(&self) {
        kill_process(self.process(), Signal::CONT).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A driver with connections of its own.
    async fn driver(&self) -> Kubernetes {
        Kubernetes::connect(Some(&self.data.join("admin.kubeconfig"))).await.unwrap()
    }

    /// A driver of a server that serves, with the definitions that the lesson installs.
    async fn installed(&self) -> Kubernetes {
        let store = self.driver().await;
        ready(&store).await;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/operator-crds.yaml");
        for document in std::fs::read_to_string(path).unwrap().split("\n---\n").skip(1) {
            let definition: Value = serde_saphyr::from_str(document).unwrap();
            store.define(&definition).await.unwrap();
        }
        store
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the server answers.
async fn ready(store: &Kubernetes) {
    while let Err(error) = store.get(&Key::Node("nobody".to_owned())).await {
        eprintln!("not yet: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn handle(id: &str, count: u32) -> Record {
    let blocks = BTreeMap::from([("10.0.0.0/26".parse().unwrap(), count)]);
    Record::Handle(Handle { id: id.to_owned(), blocks, deleted: false })
}

impl Disturbance for Server {
    async fn begin(&mut self, round: usize) -> bool {
        match round % 3 {
            0 => {
                self.kill();
                self.run();
            }
            1 => self.pause(),
            _ => self.link.cut(),
        }
        !round.is_multiple_of(3)
    }

    async fn end(&mut self, round: usize) {
        match round % 3 {
            0 => {}
            1 => self.resume(),
            _ => self.link.mend(),
        }
    }
}

#[test]
fn the_history_stays_linearizable_while_the_server_is_killed_paused_and_cut_off() {
    let name = "the_history_stays_linearizable_while_the_server_is_killed_paused_and_cut_off";
    beside_a_host(name, async |link| {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::start(link, folder.path());
        server.installed().await;
        let deadline = Duration::from_millis(1000);
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(server.driver().await.with_deadline(deadline));
        }
        let patient = server.driver().await.with_deadline(deadline * 2);
        let clients: Vec<&Kubernetes> = clients.iter().collect();
        let how = (6, Deletes::InPhases);
        let outcome =
            history_is_linearizable_under(&mut server, &clients, &patient, 4000, how).await.unwrap();
        assert!(outcome.unknown > 0, "no write was left without an answer");
        assert!(outcome.written > 300, "{outcome:?}");
    });
}

#[test]
fn a_follower_hears_that_the_path_died_without_a_word_and_goes_on_when_it_is_back() {
    let name = "a_follower_hears_that_the_path_died_without_a_word_and_goes_on_when_it_is_back";
    beside_a_host(name, async |link| {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(link, folder.path());
        let store = server.installed().await;
        let mut changes = follow(server.driver().await, Scope::All(Kind::Handle));
        assert!(matches!(changes.next().await, Some(Change::Reset(_))));
        store.commit(&[], &[Write::Create(handle("before", 1))]).await.unwrap();
        assert!(matches!(changes.next().await, Some(Change::Put(_))));
        server.link.cut();
        let lost = async { while !matches!(changes.next().await, Some(Change::Lost(_))) {} };
        tokio::time::timeout(PATIENCE, lost).await.expect("nothing is heard of a watch that is dead");
        server.link.mend();
        ready(&store).await;
        let after = store.commit(&[], &[Write::Create(handle("after", 1))]).await.unwrap().remove(0);
        loop {
            match changes.next().await.unwrap() {
                Change::Put(stored) if stored.version == after => break,
                Change::Reset(listing) if listing.revision >= after.revision => break,
                _ => {}
            }
        }
    });
}

/// A handle of some dozens of kilobytes.
fn big(number: u32) -> Record {
    let blocks = (0..3000_u32).map(|at| (format!("10.{}.{}.0/24", at / 256, at % 256).parse().unwrap(), 1));
    Record::Handle(Handle { id: format!("h{number}"), blocks: blocks.collect(), deleted: false })
}

#[test]
fn what_was_answered_survives_a_disk_that_is_full_and_writes_go_on_when_there_is_room_again() {
    let name = "what_was_answered_survives_a_disk_that_is_full_and_writes_go_on_when_there_is_room_again";
    beside_a_host(name, async |link| {
        let disk = tempfile::tempdir().unwrap();
        small_disk(disk.path(), 48);
        let data = disk.path().join("data");
        let mut server = Server::start(link, &data);
        let store = server.installed().await;
        let create = async |record: Record| {
            store.commit(&[], &[Write::Create(record)]).await.map(|mut versions| versions.remove(0))
        };
        let first = handle("first", 1);
        let mut answered = vec![(first.key(), create(first).await.unwrap())];
        let ballast = disk.path().join("ballast");
        fill(&ballast);
        let mut last = 0;
        let failed = loop {
            assert!(last < 2000, "the disk is never full");
            last += 1;
            match create(big(last)).await {
                Ok(version) => answered.push((big(last).key(), version)),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&failed, CommitError::Unavailable { .. } | CommitError::Unknown { .. }),
            "{failed:?}"
        );
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
        create(handle("after", 1)).await.unwrap();
    });
}
