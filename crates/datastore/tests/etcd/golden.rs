//! Golden files: keys and values as Calico writes them. What the driver reads and writes again is the same to the byte.

use crate::server::{Plan, Server, ready};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use datastore::copy::{Options, copy};
use datastore::etcd::Etcd;
use datastore::{Datastore, Kind, Record, Scope, Write};
use futures::StreamExt;
use serde_json::json;
use std::path::Path;

/// The value at a key, as it stands in the server.
pub(crate) async fn value_of(server: &Server, key: &str) -> String {
    let answer = server.post("/v3/kv/range", json!({"key": BASE64_STANDARD.encode(key)})).await;
    let value = answer.pointer("/kvs/0/value").unwrap().as_str().unwrap();
    String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap()
}

pub(crate) async fn put(server: &Server, key: &str, value: &str) {
    let body = json!({"key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value)});
    server.post("/v3/kv/put", body).await;
}

fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcd/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let text = std::fs::read_to_string(file).unwrap();
        let (key, value) = text.trim_end().split_once('\n').unwrap();
        (key.to_owned(), value.to_owned())
    };
    files.iter().map(read).collect()
}

#[tokio::test]
async fn every_golden_file_is_read_and_written_again_to_the_byte() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let files = files();
    for (key, value) in &files {
        put(&server, key, value).await;
    }
    let kinds = [
        Kind::Pool,
        Kind::Block,
        Kind::Affinity,
        Kind::Handle,
        Kind::Config,
        Kind::Reservation,
        Kind::Node,
        Kind::ClusterInformation,
    ];
    let mut found = 0;
    for kind in kinds {
        for stored in store.list(&Scope::All(kind)).await.unwrap().items {
            found += 1;
            assert_eq!(store.get(&stored.record.key()).await.unwrap(), Some(stored.clone()));
            // Written over what stands.
            let update = Write::Update(stored.record.clone(), stored.version);
            let version = store.commit(&[], &[update]).await.unwrap().remove(0);
            for (key, value) in &files {
                assert_eq!(&value_of(&server, key).await, value);
            }
            // Deleted and, where all of the record is in the value, made anew.
            if matches!(kind, Kind::Block | Kind::Affinity | Kind::Handle | Kind::Config) {
                store.commit(&[], &[Write::Delete(stored.record.clone(), version)]).await.unwrap();
                store.commit(&[], &[Write::Create(stored.record)]).await.unwrap();
                for (key, value) in &files {
                    assert_eq!(&value_of(&server, key).await, value);
                }
            }
        }
    }
    assert_eq!(found, files.len());
}

/// What stands at keys in clusters that are older or newer than us, and what an update of ours makes of it.
#[tokio::test]
async fn values_of_other_times_are_read_and_what_the_record_does_not_own_stays() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcd/golden_old");
    let mut wanted = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let [key, read, written] = *text.lines().collect::<Vec<&str>>() else { panic!("{}", path.display()) };
        put(&server, key, read).await;
        wanted.push((path, key.to_owned(), written.to_owned()));
    }
    assert_eq!(wanted.len(), 11);
    let mut found = 0;
    for kind in [
        Kind::Pool,
        Kind::Block,
        Kind::Affinity,
        Kind::Handle,
        Kind::Config,
        Kind::Node,
        Kind::ClusterInformation,
    ] {
        let listing = store.list(&Scope::All(kind)).await.unwrap();
        assert_eq!(listing.unreadable, []);
        for stored in listing.items {
            found += 1;
            store.commit(&[], &[Write::Update(stored.record, stored.version)]).await.unwrap();
        }
    }
    assert_eq!(found, wanted.len());
    for (path, key, written) in wanted {
        assert_eq!(value_of(&server, &key).await, written, "{}", path.display());
    }
}

#[tokio::test]
async fn what_a_peer_has_half_deleted_is_absent_to_readers_and_lists() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let block = r#"{"cidr":"10.0.0.0/31","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":[],"deleted":true}"#;
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-31", block).await;
    put(&server, "/calico/ipam/v2/handle/net.a", r#"{"block":{},"deleted":true}"#).await;
    put(&server, "/calico/ipam/v2/host/n/ipv4/block/10.0.0.0-31", r#"{"state":"confirmed","deleted":true}"#)
        .await;
    for kind in [Kind::Block, Kind::Handle, Kind::Affinity] {
        let listing = store.list(&Scope::All(kind)).await.unwrap();
        assert_eq!((listing.items, listing.unreadable), (Vec::new(), Vec::new()), "{kind}");
    }
    assert_eq!(store.get(&datastore::Key::Handle("net.a".to_owned())).await, Ok(None));
}

#[tokio::test]
async fn a_copy_into_another_etcd_is_the_same_and_is_made_in_requests_of_the_size_that_it_takes() {
    let small = Plan { arguments: &["--max-request-bytes", "1500"], ..Plan::default() };
    let (Some(server), Some(other)) = (Server::start(&Plan::default()), Server::start(&small)) else {
        return;
    };
    let source = server.driver();
    let target = other.driver();
    ready(&source).await;
    ready(&target).await;
    let files = files();
    for (key, value) in &files {
        put(&server, key, value).await;
    }
    let options = Options { unlocked: true, ..Options::default() };
    let report = copy(&source, &target, options, |_| {}).await.unwrap();
    assert_eq!(report.kinds.values().map(|count| count.copied).sum::<usize>(), files.len());
    for (key, value) in files.iter().filter(|(key, _)| !key.contains("/clusterinformations/")) {
        assert_eq!(&value_of(&other, key).await, value, "{key}");
    }
    for kind in [Kind::Pool, Kind::Reservation] {
        let records = async |store: &Etcd| -> Vec<Record> {
            let listing = store.list(&Scope::All(kind)).await.unwrap();
            listing.items.into_iter().map(|stored| stored.record).collect()
        };
        assert_eq!(records(&source).await, records(&target).await);
    }
    let again = copy(&source, &target, options, |_| {}).await.unwrap();
    assert!(again.kinds.values().all(|count| count.copied == 0), "{again:?}");
}

#[tokio::test]
async fn foreign_nonsense_beside_the_records_is_passed_over() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    put(&server, "/calico/ipam/v2/host/worker-1", "{}").await;
    put(&server, "/calico/ipam/v2/host/worker-1/ipv4/block/10.0.0.0-26", "").await;
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", "{\"cidr\":").await;
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/nonsense", "{}").await;
    let blocks = store.list(&Scope::All(Kind::Block)).await.unwrap();
    assert!(blocks.items.is_empty());
    assert_eq!(blocks.unreadable, [datastore::Key::Block("10.0.0.0/26".parse().unwrap())]);
    assert_eq!(store.list(&Scope::All(Kind::Affinity)).await.unwrap().items.len(), 1);
    let key = datastore::Key::Block("10.0.0.0/26".parse().unwrap());
    assert!(matches!(store.get(&key).await, Err(datastore::ReadError::Malformed { .. })));
    // So a watch tells it, not as deleted.
    let mut watch = store.watch(&Scope::All(Kind::Block), blocks.revision).await.unwrap();
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", "{").await;
    loop {
        match watch.next().await.unwrap().unwrap() {
            datastore::Event::Progress(_) => {}
            event => {
                assert!(
                    matches!(&event, datastore::Event::Unreadable(found, _) if found == &key),
                    "{event:?}"
                );
                break;
            }
        }
    }
}
