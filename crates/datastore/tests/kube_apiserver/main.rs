//! The Kubernetes driver against a real kube-apiserver, which the tests start and stop where there is one.

#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
#[path = "../etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;
mod faults;
mod history;
mod server;

use api::wire::Group;
use api::{AffinityNaming, Handle, Node, Pool};
use datastore::conformance;
use datastore::kubernetes::Kubernetes;
use datastore::{CommitError, Datastore, Key, Kind, Record, Scope, Version, Write};
use serde_json::{Value, json};
use server::{KubeApiserver, RESOURCES, create, define_newer_group, define_older_group};
use std::collections::BTreeMap;

fn handle(id: &str, count: u32) -> Record {
    let blocks = BTreeMap::from([("10.0.0.0/26".parse().unwrap(), count)]);
    Record::Handle(Handle { id: id.to_owned(), blocks, deleted: false })
}

async fn one(store: &Kubernetes, write: Write) -> Result<Version, CommitError> {
    store.commit(&[], &[write]).await.map(|mut versions| versions.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_in_both_groups_and_under_both_names_of_affinities() {
    let Some(server) = KubeApiserver::start().await else { return };
    let store = server.driver("admin").await;
    define_newer_group(&store).await;
    let store = server.driver("admin").await;
    conformance::run(&store).await.unwrap();
    let version = one(&store, Write::Create(handle("Newer.group", 1))).await.unwrap();
    let newer = Kubernetes::with_client(store.client()).with_group(Group::V3);
    assert_eq!(newer.get(&handle("Newer.group", 1).key()).await.unwrap().unwrap().version, version);

    define_older_group(&store).await;
    let store = server.driver("admin").await;
    conformance::run(&store).await.unwrap();
    assert_eq!(store.get(&handle("Newer.group", 1).key()).await, Ok(None), "both served: the older is meant");
    assert!(!store.capabilities().atomic_commit);

    let naming = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tortie-datastore"},
        "data": {"affinityNaming": "per-block"}});
    create(&store, "/api/v1/namespaces/kube-system/configmaps", naming.to_string()).await;
    let store = server.driver("admin").await;
    assert_eq!(store.naming().await, Ok(AffinityNaming::PerBlock));
    conformance::run(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_conformance_suite_does_not_write_is_kept_too() {
    let Some(server) = KubeApiserver::start().await else { return };
    let store = server.driver("admin").await;
    define_older_group(&store).await;

    // A pool with labels of others keeps them when it is updated.
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
        "metadata": {"name": "p", "labels": {"team": "a"}, "annotations": {"note": "b"}, "finalizers": ["example.org/hold"]},
        "spec": {"cidr": "10.0.0.0/16", "blockSize": 26, "ipipMode": "Never", "vxlanMode": "Always", "natOutgoing": true,
            "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"]}});
    let made = create(&store, "/apis/crd.projectcalico.org/v1/ippools", pool.to_string()).await;
    let seen = store.get(&Key::Pool("p".to_owned())).await.unwrap().unwrap();
    let Record::Pool(pool) = seen.record else { panic!("a pool") };
    let disabled = Pool { disabled: true, ..pool };
    one(&store, Write::Update(Record::Pool(disabled.clone()), seen.version)).await.unwrap();
    let get = http::Request::get("/apis/crd.projectcalico.org/v1/ippools/p").body(Vec::new()).unwrap();
    let after: Value = store.client().request(get).await.unwrap();
    for field in ["labels", "annotations", "finalizers", "uid", "creationTimestamp"] {
        assert_eq!(after["metadata"][field], made["metadata"][field], "{field}");
    }
    assert_eq!(after["spec"]["disabled"], true);
    let again = store.get(&Key::Pool("p".to_owned())).await.unwrap().unwrap();
    assert_eq!(again.record, Record::Pool(disabled));

    // Of a node only annotations change, and nobody makes one.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": {"drop": "1", "keep": "2"}},
        "spec": {"podCIDR": "10.1.0.0/24"}});
    create(&store, "/api/v1/nodes", node.to_string()).await;
    let seen = store.get(&Key::Node("n".to_owned())).await.unwrap().unwrap();
    let Record::Node(node) = seen.record else { panic!("a node") };
    let annotations = [("keep", "2"), ("new", "3")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let changed = Node { annotations: annotations.into_iter().collect(), ..node };
    one(&store, Write::Update(Record::Node(changed.clone()), seen.version.clone())).await.unwrap();
    let stale = one(&store, Write::Update(Record::Node(changed.clone()), seen.version)).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })), "{stale:?}");
    assert_eq!(store.get(&Key::Node("n".to_owned())).await.unwrap().unwrap().record, Record::Node(changed));
    let refused = one(&store, Write::Create(Record::Node(Node::default()))).await;
    assert!(matches!(refused, Err(CommitError::Refused { .. })), "{refused:?}");

    // The definitions keep every field that Calico writes.
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/golden/v1");
    let mut files = 0;
    for file in std::fs::read_dir(golden).unwrap() {
        let object: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        let text = |pointer: &str| object.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let (_, plural) = RESOURCES.iter().find(|(known, _)| *known == kind).unwrap();
        let collection = format!("/apis/crd.projectcalico.org/v1/{plural}");
        let made = create(&store, &collection, object.to_string()).await;
        assert_eq!(made["spec"], object["spec"], "{kind} {name}");
        let delete = http::Request::delete(format!("{collection}/{name}")).body(Vec::new()).unwrap();
        let _: Value = store.client().request(delete).await.unwrap();
        files += 1;
    }
    assert_eq!(files, 13);

    // Ids that are no names of objects are found again as they were.
    for id in ["k8s-pod-network.ABC", "Virt.Machine.x", "vxlan-tunnel-addr-N.example.org"] {
        one(&store, Write::Create(handle(id, 1))).await.unwrap();
        assert_eq!(store.get(&handle(id, 1).key()).await.unwrap().unwrap().record, handle(id, 1));
    }
    assert_eq!(store.list(&Scope::All(Kind::Handle)).await.unwrap().items.len(), 3);
}
