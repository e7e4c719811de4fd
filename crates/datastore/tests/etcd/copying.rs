//! Records that go into etcd and out of it are the same.

use crate::fake::Fake;
use crate::golden::value_of;
use crate::server::{Plan, Server, ready};
use api::wire::Group;
use api::{Affinity, AffinityState, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use datastore::copy::{CopyError, Options, copy};
use datastore::kubernetes::Kubernetes;
use datastore::memory::Memory;
use datastore::{Datastore, Key, Kind, Record, Scope, Write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn records() -> Vec<Record> {
    let cidr = "10.0.0.64/26".parse().unwrap();
    let owner = Owner::host("n1");
    let mut block = ipam_like_block(cidr, &owner);
    block.claim_time = "2026-08-01T10:15:30Z".parse().ok();
    let affinity = Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false };
    let mut all = vec![
        Record::ClusterInformation(ClusterInformation {
            cluster_guid: "guid".to_owned(),
            ..ClusterInformation::default()
        }),
        Record::Config(IpamConfig {
            strict_affinity: true,
            ip_cooldown_seconds: 30,
            ..IpamConfig::default()
        }),
        Record::Pool(Pool::with_defaults("p4", "10.0.0.0/16".parse().unwrap())),
        Record::Pool(Pool::with_defaults("p6", "fd00:10::/64".parse().unwrap())),
        Record::Reservation(Reservation {
            name: "r".to_owned(),
            cidrs: vec!["10.0.0.1/32".parse().unwrap()],
        }),
        Record::Node(Node {
            name: "n1".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            ..Node::default()
        }),
        Record::Block(block),
        Record::Affinity(affinity),
    ];
    all.extend((0..200).map(|number| {
        let blocks = BTreeMap::from([(cidr, 1)]);
        Record::Handle(Handle { id: format!("net.C{number}"), blocks, deleted: false })
    }));
    all
}

fn ipam_like_block(cidr: api::Cidr, owner: &Owner) -> api::Block {
    let attribute = api::Attribute {
        handle_id: Some("net.C0".to_owned()),
        secondary: BTreeMap::from([("node".to_owned(), "n1".to_owned())]),
        ..api::Attribute::default()
    };
    api::Block {
        cidr,
        affinity: Some(owner.clone()),
        claim_time: None,
        allocations: Arc::new(std::iter::once(Some(0)).chain((1..64).map(|_| None)).collect()),
        unallocated: (1..64).rev().collect(),
        attributes: vec![attribute.into()].into(),
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: BTreeMap::from([(0, 1_785_579_330_123_456_789)]).into(),
        deleted: false,
        legacy_host_affinity: None,
    }
}

async fn everything<D: Datastore>(store: &D) -> Vec<Record> {
    let mut all = Vec::new();
    for kind in [
        Kind::ClusterInformation,
        Kind::Config,
        Kind::Pool,
        Kind::Reservation,
        Kind::Node,
        Kind::Block,
        Kind::Handle,
        Kind::Affinity,
    ] {
        let items = store.list(&Scope::All(kind)).await.unwrap().items;
        all.extend(items.into_iter().map(|stored| stored.record));
    }
    all
}

#[tokio::test]
async fn everything_that_was_copied_into_etcd_and_out_of_it_is_the_same() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let etcd = server.driver();
    ready(&etcd).await;
    let from = Memory::new();
    let writes: Vec<Write> = records().into_iter().map(Write::Create).collect();
    from.commit(&[], &writes).await.unwrap();
    let options = Options::default();
    copy(&from, &etcd, options, |_| {}).await.unwrap();
    let to = Memory::new();
    copy(&etcd, &to, options, |_| {}).await.unwrap();
    assert_eq!(everything(&to).await, everything(&from).await);
    // Once more finds nothing to do.
    let again = copy(&from, &etcd, options, |_| {}).await.unwrap();
    assert!(again.kinds.values().all(|count| count.copied == 0 && count.same > 0), "{again:?}");
}

/// Puts a value past the driver.
async fn put(server: &Server, key: &str, value: &str) {
    let body = json!({"key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value)});
    server.post("/v3/kv/put", body).await;
}

#[tokio::test]
async fn a_damaged_block_refuses_a_copy_and_the_target_stays_as_it_was() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let etcd = server.driver();
    ready(&etcd).await;
    let writes: Vec<Write> = records().into_iter().map(Write::Create).collect();
    etcd.commit(&[], &writes[..20]).await.unwrap();
    assert_eq!(etcd.stranger_among_blocks().await, Ok(None));
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/10.9.0.0-26", "{\"cidr\":").await;
    put(&server, "/calico/ipam/v2/assignment/ipv4/block/10.9.0.1-26", "{}").await;
    let target = Memory::new();
    for dry_run in [true, false] {
        let refused = copy(&etcd, &target, Options { dry_run, ..Options::default() }, |_| {}).await;
        let key = Key::Block("10.9.0.0/26".parse().unwrap());
        assert_eq!(refused, Err(CopyError::Unreadable { key }));
    }
    assert_eq!(target.revision(), Memory::new().revision());
    // A key that names no block is told by itself.
    let stranger = etcd.stranger_among_blocks().await.unwrap();
    assert_eq!(stranger.as_deref(), Some("/calico/ipam/v2/assignment/ipv4/block/10.9.0.1-26"));
}

#[tokio::test]
async fn labels_and_fields_that_no_record_has_go_from_kubernetes_to_etcd_and_back() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let etcd = server.driver();
    ready(&etcd).await;
    let (fake, root) = (Fake::new(), "/apis/crd.projectcalico.org/v1");
    let pool = json!({"kind": "IPPool", "metadata": {"labels": {"team": "a"},
        "annotations": {"projectcalico.org/metadata": "{\"labels\":{\"kept\":\"b\"}}"}},
        "spec": {"cidr": "10.0.0.0/16", "ipipMode": "Never", "vxlanMode": "Always", "ofTheFuture": {"x": 1}}});
    fake.put(&format!("{root}/ippools/p"), pool);
    // What makes no sense here may make sense to another release.
    let reservation =
        json!({"kind": "IPReservation", "spec": {"reservedCIDRs": ["10.0.0.1", "the gateways"]}});
    fake.put(&format!("{root}/ipreservations/r"), reservation);
    fake.put(
        &format!("{root}/clusterinformations/default"),
        json!({"spec": {"datastoreReady": false, "clusterGUID": "g"}}),
    );
    let annotations = json!({"projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.64", "kubeadm.alpha.kubernetes.io/cri-socket": "x"});
    fake.put("/api/v1/nodes/worker", json!({"metadata": {"annotations": annotations}}));
    let from = Kubernetes::with_client(fake.client()).with_group(Group::V1);
    let (options, place) = (Options::default(), "/calico/resources/v3/projectcalico.org");
    copy(&from, &etcd, options, |_| {}).await.unwrap();
    let value = async |kind_and_name: &str| -> Value {
        serde_json::from_str(&value_of(&server, &format!("{place}/{kind_and_name}")).await).unwrap()
    };
    let pool = value("ippools/p").await;
    assert_eq!(pool["metadata"]["labels"], json!({"team": "a", "kept": "b"}));
    assert_eq!(pool["spec"]["ofTheFuture"], json!({"x": 1}));
    assert!(pool["metadata"]["uid"].is_string() && pool["metadata"]["creationTimestamp"].is_string());
    assert_eq!(value("ipreservations/r").await["spec"]["reservedCIDRs"], json!(["10.0.0.1", "the gateways"]));
    let node = value("nodes/worker").await;
    assert_eq!(node["spec"]["orchRefs"], json!([{"nodeName": "worker", "orchestrator": "k8s"}]));
    assert_eq!(node["spec"]["ipv4VXLANTunnelAddr"], "10.0.0.64");
    assert_eq!(node["metadata"].get("annotations"), None, "what others wrote on the node stays there");
    let again = copy(&from, &etcd, options, |_| {}).await.unwrap();
    assert!(again.kinds.values().all(|count| count.copied == 0), "{again:?}");

    let back = Fake::new();
    let to = Kubernetes::with_client(back.client()).with_group(Group::V1);
    copy(&etcd, &to, options, |_| {}).await.unwrap();
    let pool = back.object(&format!("{root}/ippools/p")).unwrap();
    assert_eq!(pool["metadata"]["labels"], json!({"team": "a", "kept": "b"}));
    assert_eq!(pool["spec"]["ofTheFuture"], json!({"x": 1}));
    let reservation = back.object(&format!("{root}/ipreservations/r")).unwrap();
    assert_eq!(reservation["spec"]["reservedCIDRs"], json!(["10.0.0.1", "the gateways"]));
}

#[tokio::test]
async fn a_copy_without_its_target_says_so_and_is_finished_when_it_is_back() {
    let Some(mut server) = Server::start(&Plan::default()) else { return };
    let etcd = server.driver();
    ready(&etcd).await;
    let from = Memory::new();
    let writes: Vec<Write> = records().into_iter().map(Write::Create).collect();
    from.commit(&[], &writes).await.unwrap();
    let mut commits = 0;
    let result = copy(&from, &etcd, Options::default(), |_| {
        commits += 1;
        // In the middle of the handles, after the blocks.
        if commits == 6 {
            server.kill();
        }
    })
    .await;
    assert!(matches!(result, Err(CopyError::Write(_) | CopyError::Read(_))), "{result:?}");
    server.run();
    ready(&etcd).await;
    copy(&from, &etcd, Options::default(), |_| {}).await.unwrap();
    assert_eq!(everything(&etcd).await, everything(&from).await);
}
