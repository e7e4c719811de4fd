//! Records that go into etcd and out of it are the same.

use crate::server::{Plan, Server, ready};
use api::{Affinity, AffinityState, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use datastore::copy::{CopyError, Options, copy};
use datastore::memory::Memory;
use datastore::{Datastore, Kind, Record, Scope, Write};
use std::collections::BTreeMap;

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
        allocations: std::iter::once(Some(0)).chain((1..64).map(|_| None)).collect(),
        unallocated: (1..64).rev().collect(),
        attributes: vec![attribute.into()],
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: BTreeMap::from([(0, 1_785_579_330_123_456_789)]),
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
