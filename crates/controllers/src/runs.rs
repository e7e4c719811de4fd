//! The controllers' loops against an API in the test's own process: from a change to what comes of it.

use crate::etcd::{Plan, Server, ready};
use crate::fake::{Fake, Fault};
use crate::kube_controllers::{self, Reach};
use crate::operator;
use api::{AffinityNaming, AffinityState, Owner, Pool};
use datastore::backend::Backend;
use datastore::etcd::Etcd;
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore, Key, Record, Write};
use ipam::block::{self, Take};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const CALICO: &str = "/apis/crd.projectcalico.org/v1";
const OPERATOR: &str = "/apis/operator.tigera.io/v1";

/// Runs `work` until the test's own `task` is done.
async fn beside<F: Future<Output = ()>>(work: impl Future<Output = ()>, task: F) {
    tokio::select! {
        () = work => panic!("a controller's loop ended"),
        () = task => {}
    }
}

fn options() -> operator::Options {
    operator::Options {
        kubeconfig: std::path::PathBuf::new(),
        node_networks: Vec::new(),
        affinity_naming: AffinityNaming::PerBlock,
    }
}

#[tokio::test(start_paused = true)]
async fn installation_is_carried_out_although_requests_fail() {
    let fake = Fake::new();
    fake.put("/api/v1/nodes/a", json!({}));
    let mut requests = 0;
    fake.fail(move |method, _| {
        requests += 1;
        (method != "GET" && requests % 3 == 0).then_some(match requests % 2 {
            0 => Fault::AnswerLost,
            _ => Fault::Refused(503),
        })
    });
    let watched = fake.clone();
    beside(operator::drive(fake.client(), options()), async move {
        let ready = |fake: &Fake| {
            [
                "apis/apps/v1/namespaces/calico-system/daemonsets/calico-node",
                "apis/apps/v1/namespaces/calico-apiserver/deployments/calico-apiserver",
            ]
            .iter()
            .all(|path| fake.object(&format!("/{path}")).is_some())
        };
        let installation = json!({"spec": {"calicoNetwork": {"ipPools": [{"cidr": "192.168.0.0/16"}]}}});
        watched.put(&format!("{OPERATOR}/installations/default"), installation);
        watched.put(&format!("{OPERATOR}/apiservers/default"), json!({"spec": {}}));
        watched.until(ready).await;
        assert!(watched.object(&format!("{CALICO}/ippools/default-ipv4-ippool")).is_some());
        let status = format!("{OPERATOR}/tigerastatuses/calico");
        watched
            .until(|fake| {
                fake.object(&status).is_some_and(|object| {
                    object["status"]["conditions"][2]["status"] == "True"
                        && object["status"]["conditions"][2]["type"] == "Progressing"
                })
            })
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn deleted_node_loses_its_addresses_and_blocks_and_the_living_one_keeps_all() {
    let fake = Fake::new();
    let store = Kubernetes::with_client(fake.client());
    fake.put("/api/v1/nodes/alive", json!({}));
    fake.put("/api/v1/nodes/doomed", json!({}));
    let pool = Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
    for (node, cidr) in [("alive", "10.0.0.0/26"), ("doomed", "10.0.0.64/26")] {
        own_block(&store, node, cidr.parse().unwrap()).await;
    }
    let watched = fake.clone();
    let block = |name: &str| format!("{CALICO}/ipamblocks/{name}");
    let reach = Reach::new(Backend::Kubernetes(store), fake.client());
    beside(kube_controllers::drive(reach), async move {
        watched.until(|fake| fake.object(&format!("{CALICO}/clusterinformations/default")).is_some()).await;
        watched.remove("/api/v1/nodes/doomed");
        watched
            .until(|fake| fake.object(&format!("{CALICO}/blockaffinities/doomed-10-0-0-64-26")).is_none())
            .await;
        assert_eq!(watched.object(&block("10-0-0-64-26")), None);
        assert_eq!(watched.object(&format!("{CALICO}/ipamhandles/vxlan-tunnel-addr-doomed")), None);
        assert!(watched.object(&block("10-0-0-0-26")).is_some());
        assert!(watched.object(&format!("{CALICO}/blockaffinities/alive-10-0-0-0-26")).is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_released_while_the_datastore_is_locked_and_all_of_it_afterwards() {
    let fake = Fake::new();
    let store = Kubernetes::with_client(fake.client());
    fake.put("/api/v1/nodes/alive", json!({}));
    let cluster = format!("{CALICO}/clusterinformations/default");
    fake.put(&cluster, json!({"spec": {"clusterGUID": "g", "datastoreReady": false}}));
    let pool = Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
    own_block(&store, "gone", "10.0.0.64/26".parse().unwrap()).await;
    let watched = fake.clone();
    let records = |line: &String| !line.starts_with("GET ") && line.contains("/ipam");
    let reach = Reach::new(Backend::Kubernetes(store), fake.client());
    beside(kube_controllers::drive(reach), async move {
        // The controllers' own configuration is made first; a verdict would follow at once.
        let configuration = format!("{CALICO}/kubecontrollersconfigurations/default");
        watched.until(|fake| fake.object(&configuration).is_some()).await;
        watched.requests();
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        let written: Vec<String> = watched.requests().into_iter().filter(records).collect();
        assert!(written.is_empty(), "{written:?}");
        watched.put(&cluster, json!({"spec": {"clusterGUID": "g", "datastoreReady": true}}));
        watched
            .until(|fake| fake.object(&format!("{CALICO}/blockaffinities/gone-10-0-0-64-26")).is_none())
            .await;
        assert!(watched.requests().iter().any(records));
    })
    .await;
}

#[tokio::test]
async fn in_etcd_a_node_loses_its_record_and_then_its_blocks_only_after_its_node_of_kubernetes() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let fake = Fake::new();
    for node in ["alive", "doomed"] {
        fake.put(&format!("/api/v1/nodes/{node}"), json!({}));
    }
    let node = |name: &str, kubernetes_name: Option<&str>| {
        let kubernetes_name = kubernetes_name.map(str::to_owned);
        Write::Create(Record::Node(api::Node {
            name: name.to_owned(),
            kubernetes_name,
            ..api::Node::default()
        }))
    };
    // A node's name may be another than that of its Node; and one may be no node of Kubernetes at all.
    let nodes = [node("alive", Some("alive")), node("doomed.example", Some("doomed")), node("alone", None)];
    store.commit(&[], &nodes).await.unwrap();
    let pool = Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
    let blocks = [("alive", "10.0.0.0/26"), ("doomed.example", "10.0.0.64/26"), ("alone", "10.0.0.128/26")];
    for (node, cidr) in blocks {
        own_block(&store, node, cidr.parse().unwrap()).await;
    }
    let reach = Reach::new(Backend::Etcd(store.clone()), fake.client());
    beside(kube_controllers::drive(reach), async {
        // Made where there is none, and the sign that everything is followed.
        until_gone_or_there(&store, &Key::ClusterInformation, true).await;
        fake.remove("/api/v1/nodes/doomed");
        until_gone_or_there(&store, &Key::Block("10.0.0.64/26".parse().unwrap()), false).await;
        for (key, there) in [
            (Key::Node("doomed.example".to_owned()), false),
            (Key::Handle("vxlan-tunnel-addr-doomed.example".to_owned()), false),
            (Key::Node("alone".to_owned()), true),
            (Key::Block("10.0.0.128/26".parse().unwrap()), true),
            (Key::Block("10.0.0.0/26".parse().unwrap()), true),
        ] {
            assert_eq!(store.get(&key).await.unwrap().is_some(), there, "{key}");
        }
    })
    .await;
}

/// Waits until a record is there, or is not.
async fn until_gone_or_there(store: &Etcd, key: &Key, there: bool) {
    while store.get(key).await.unwrap().is_some() != there {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Gives `node` the block `cidr` with its tunnel address in it.
async fn own_block<D: Datastore>(store: &D, node: &str, cidr: api::Cidr) {
    let owner = Owner::host(node);
    let handle = format!("vxlan-tunnel-addr-{node}");
    let mut made = block::new_block(cidr, &owner, jiff::Timestamp::UNIX_EPOCH);
    let attributes = [("node", node), ("type", "vxlanTunnelAddress")];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    let request = Take {
        count: 1,
        handle: Some(&handle),
        attributes: &attributes,
        reserved: &ipam::ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    block::take(&mut made, &request).unwrap();
    let affinity = api::Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false };
    let handle = api::Handle { id: handle.clone(), blocks: BTreeMap::from([(cidr, 1)]), deleted: false };
    let records = [Record::Affinity(affinity), Record::Handle(handle), Record::Block(made)];
    store.commit(&[], &records.map(Write::Create)).await.unwrap();
}
