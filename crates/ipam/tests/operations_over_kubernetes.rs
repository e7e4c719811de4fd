//! The operations beside assigning and releasing, over the Kubernetes driver: objects and requests.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;

use api::{Block, Cidr, IpVersion, IpamConfig, Owner, Pool, Use};
use datastore::kubernetes::Kubernetes;
use fake::{Fake, Fault};
use ipam::administration::{claim_affinity, release_affinities_of, release_block_affinity};
use ipam::affinity::ReleaseTerms;
use ipam::assign::{AssignRequest, assign, ensure_block};
use ipam::block::{self, Release, Take};
use ipam::clock::FixedClock;
use ipam::cold::{Pass, collect_cold};
use ipam::config;
use ipam::host::{remove_host, upgrade_host};
use ipam::host_reserved::HostReserved;
use ipam::owner_attributes::{Change, OwnerUpdate, set_owner_attributes};
use ipam::plan::Want;
use ipam::release::{release_addresses, release_by_handle};
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const GROUP: &str = "/apis/crd.projectcalico.org/v1";
const NODE: &str = "worker-1";

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Calico's naming, one node, one pool of four blocks of four addresses.
async fn lab() -> (Fake, Kubernetes) {
    let fake = Fake::new();
    let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
    pool.block_size = 30;
    fake.put(&format!("{GROUP}/ippools/p"), pool.to_v1());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    fake.put(&format!("/api/v1/nodes/{NODE}"), node);
    let store = Kubernetes::with_client(fake.client()).with_group(api::wire::Group::V1);
    store.naming().await.unwrap();
    fake.requests();
    (fake, store)
}

/// A block of the node in which `h` holds one address, and its affinity.
async fn lab_with_block() -> (Fake, Kubernetes, Seen<Block>) {
    let (fake, store) = lab().await;
    claim_affinity(&store, &CLOCK, cidr("10.0.0.0/30"), &Owner::host(NODE)).await.unwrap();
    let mut block = seen::block(&store, cidr("10.0.0.0/30")).await.unwrap().unwrap().value;
    let request = Take {
        count: 1,
        handle: Some("h"),
        attributes: &BTreeMap::new(),
        reserved: &ipam::ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    block::take(&mut block, &request).unwrap();
    fake.put(&format!("{GROUP}/ipamblocks/10-0-0-0-30"), block.to_v1());
    let seen = seen::block(&store, cidr("10.0.0.0/30")).await.unwrap().unwrap();
    fake.requests();
    (fake, store, seen)
}

/// Requests since the last time: reads, writes.
fn spent(fake: &Fake) -> (usize, usize) {
    let requests = fake.requests();
    let reads = requests.iter().filter(|request| request.starts_with("GET")).count();
    (reads, requests.len() - reads)
}

fn labels(fake: &Fake, name: &str) -> Value {
    fake.object(&format!("{GROUP}/blockaffinities/{name}")).unwrap()["metadata"]["labels"].clone()
}

#[tokio::test]
async fn affinities_of_old_releases_get_the_labels_by_which_they_are_listed() {
    let (fake, store) = lab().await;
    for (node, cidr, labelled) in [
        (NODE, "10.0.0.0/30", json!({})),
        // Calico's own upgrade copies a missing type into the label (quirk Q21).
        (NODE, "10.0.0.4/30", json!({"projectcalico.org/affinity-type": ""})),
        ("worker-2", "10.0.0.8/30", json!({})),
    ] {
        let name = format!("{node}-{}", cidr.replace(['.', '/'], "-"));
        let object = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity",
            "metadata": {"name": name, "labels": labelled, "annotations": {"somebody": "else"}},
            "spec": {"cidr": cidr, "node": node, "state": "confirmed", "deleted": "false"}});
        fake.put(&format!("{GROUP}/blockaffinities/{name}"), object);
    }
    let scope = datastore::Scope::AffinitiesOf(Owner::host(NODE));
    let listed = async || seen::list::<api::Affinity, _>(&store, &scope).await.unwrap().len();
    assert_eq!(listed().await, 0);
    fake.requests();
    assert_eq!(upgrade_host(&store, NODE).await, Ok(2));
    assert_eq!(spent(&fake), (2, 2));
    assert_eq!(listed().await, 2);
    let expected = json!({
        "projectcalico.org/hostname-hash": "CPU5J3TPSNHFA66J45DG4Z5C3PSJAZ36LD46JZLYEGZSTAWBUCUA",
        "projectcalico.org/affinity-type": "host", "projectcalico.org/ip-version": "4"});
    assert_eq!(labels(&fake, "worker-1-10-0-0-0-30"), expected);
    assert_eq!(labels(&fake, "worker-1-10-0-0-4-30"), expected);
    assert_eq!(labels(&fake, "worker-2-10-0-0-8-30"), json!({}), "another node's are its own matter");
    let object = fake.object(&format!("{GROUP}/blockaffinities/worker-1-10-0-0-0-30")).unwrap();
    assert_eq!(
        (object["spec"]["type"].clone(), object["metadata"]["annotations"].clone()),
        (json!("host"), json!({"somebody": "else"}))
    );
    fake.requests();
    assert_eq!(upgrade_host(&store, NODE).await, Ok(0));
    assert_eq!(spent(&fake), (2, 0));
}

#[tokio::test]
async fn a_block_with_what_its_host_keeps_is_written_as_windows_nodes_expect_it() {
    let (fake, store) = lab().await;
    let kept = HostReserved { start: 1, end: 1, ..HostReserved::windows() };
    let made = ensure_block(&store, &CLOCK, NODE, IpVersion::V4, &kept).await.unwrap().block;
    let object = fake.object(&format!("{GROUP}/ipamblocks/{}", made.name())).unwrap();
    assert_eq!(object["spec"]["allocations"], json!([0, null, null, 0]));
    assert_eq!(
        object["spec"]["attributes"],
        json!([{"handle_id": "windows-reserved-ipam-handle", "secondary": {"note": "windows host rsvd"}}])
    );
    assert_eq!(object["spec"]["sequenceNumberForAllocation"], json!({}));
    // The reads, then affinity pending, block, pool, affinity confirmed.
    let (reads, writes) = spent(&fake);
    assert!(reads <= 9 && writes <= 3, "{reads} {writes}");
    ensure_block(&store, &CLOCK, NODE, IpVersion::V4, &kept).await.unwrap();
    let (reads, writes) = spent(&fake);
    assert!(reads <= 6 && writes == 0, "{reads} {writes}");
}

#[tokio::test]
async fn operations_cost_as_many_requests_as_their_documentation_says() {
    let (fake, store, seen) = lab_with_block().await;
    let update = OwnerUpdate {
        active: Change::Set(BTreeMap::from([("pod".to_owned(), "web-0".to_owned())])),
        ..OwnerUpdate::default()
    };
    set_owner_attributes(&store, &CLOCK, "10.0.0.0".parse().unwrap(), "h", &update).await.unwrap();
    assert_eq!(spent(&fake), (3, 1));
    assert_eq!(collect_cold(&store, &CLOCK, 0, &seen).await, Ok(Pass::Nothing));
    assert_eq!(spent(&fake), (0, 0));
    config::change(&store, |before| IpamConfig { ip_cooldown_seconds: 9, ..before.clone() }).await.unwrap();
    assert_eq!(spent(&fake), (1, 1));
    config::change(&store, |before| IpamConfig { ip_cooldown_seconds: 0, ..before.clone() }).await.unwrap();
    assert_eq!(spent(&fake), (1, 1));
    let block = seen::block(&store, seen.value.cidr).await.unwrap().unwrap().value;
    fake.requests();
    assert_eq!(release_block_affinity(&store, &CLOCK, &block, false).await, Ok(true));
    // Affinity, configuration, block. Affinity pendingDeletion, block without owner, affinity marked and deleted.
    let (reads, writes) = spent(&fake);
    assert!(reads <= 3 && writes <= 4, "{reads} {writes}");
    assert_eq!(remove_host(&store, &CLOCK, NODE).await, Ok(0));
    let (reads, writes) = spent(&fake);
    assert!(reads <= 2 && writes == 0, "{reads} {writes}");
}

#[tokio::test]
async fn a_lost_answer_at_any_request_of_a_removal_leaves_nothing_behind() {
    for lost in 0..6 {
        let (fake, store, _) = lab_with_block().await;
        let mut number = 0;
        fake.fail(move |method, _| {
            number += usize::from(method != "GET");
            (method != "GET" && number == lost + 1).then_some(Fault::AnswerLost)
        });
        assert!(remove_host(&store, &CLOCK, NODE).await.is_ok(), "{lost}");
        assert_eq!(fake.object(&format!("{GROUP}/blockaffinities/worker-1-10-0-0-0-30")), None, "{lost}");
        let block = seen::block(&store, cidr("10.0.0.0/30")).await.unwrap().unwrap().value;
        assert_eq!((block.affinity.clone(), block::count_of(&block, "h")), (None, 1), "{lost}");
    }
}

#[tokio::test]
async fn a_stale_cold_pass_never_removes_a_block_that_was_made_anew() {
    let (fake, store, seen) = lab_with_block().await;
    let mut empty = block::new_block(seen.value.cidr, &Owner::host(NODE), Timestamp::UNIX_EPOCH);
    empty.affinity = None;
    fake.put(&format!("{GROUP}/ipamblocks/10-0-0-0-30"), empty.to_v1());
    let seen = seen::block(&store, seen.value.cidr).await.unwrap().unwrap();
    release_affinities_of(&store, &CLOCK, &Owner::host(NODE), ReleaseTerms::default()).await.unwrap();
    claim_affinity(&store, &CLOCK, cidr("10.0.0.0/30"), &Owner::host(NODE)).await.unwrap();
    assert_eq!(collect_cold(&store, &CLOCK, 0, &seen).await, Ok(Pass::Changed));
    let owner = seen::block(&store, seen.value.cidr).await.unwrap().unwrap().value.affinity;
    assert_eq!(owner, Some(Owner::host(NODE)));
}

/// One address for the node: the block it is of, and what was tried.
async fn one_address(store: &Kubernetes, handle: &str) -> (Cidr, String) {
    let want = Want { count: 1, handle: Some(handle.to_owned()), attributes: BTreeMap::new() };
    let request = AssignRequest::new(Owner::host(NODE), IpVersion::V4, Use::Workload, want);
    let assigned = assign(store, &CLOCK, &request).await.unwrap();
    (assigned.taken[0].block, serde_json::to_string(&assigned.explain).unwrap())
}

#[tokio::test]
async fn a_block_that_cannot_be_understood_is_left_alone_and_costs_nobody_an_address() {
    let (_, store) = lab().await;
    let first = one_address(&store, "h").await.0;

    let (fake, store) = lab().await;
    let path = |cidr: Cidr| format!("{GROUP}/ipamblocks/{}", cidr.name());
    let affinity = |cidr: Cidr| format!("{GROUP}/blockaffinities/{NODE}-{}", cidr.name());
    let strange = |cidr: Cidr| {
        let mut object = block::new_block(cidr, &Owner::host(NODE), Timestamp::UNIX_EPOCH).to_v1();
        object["spec"]["affinity"] = json!("@:worker-9");
        object
    };
    fake.put(&path(first), strange(first));
    let before = fake.object(&path(first));
    let second = one_address(&store, "a").await.0;
    assert_ne!(second, first);
    assert_eq!(fake.object(&affinity(first)), None);
    let claimed = claim_affinity(&store, &CLOCK, first, &Owner::host(NODE)).await.unwrap();
    assert_eq!((claimed.claimed.len(), claimed.failed), (0, vec![first]));

    // Its own block is edited by hand: the node goes on with another, and the edited one waits to be mended.
    fake.put(&path(second), strange(second));
    let edited = fake.object(&path(second));
    let held = fake.object(&affinity(second));
    for handle in ["b", "c"] {
        let (third, explained) = one_address(&store, handle).await;
        assert!(third != first && third != second);
        assert!(handle == "c" || explained.contains(&second.to_string()), "{explained}");
    }
    assert_eq!(fake.object(&path(first)), before);
    assert_eq!(fake.object(&path(second)), edited);
    assert_eq!(fake.object(&affinity(second)), held);
    let asked = seen::block(&store, second).await.unwrap_err().to_string();
    assert!(asked.contains("@:worker-9") && asked.contains(&second.name()), "{asked}");
}

#[tokio::test]
async fn a_release_leaves_alone_what_is_in_a_block_that_cannot_be_understood() {
    let (fake, store, seen) = lab_with_block().await;
    let want = Want { count: 4, handle: Some("h".to_owned()), attributes: BTreeMap::new() };
    let request = AssignRequest::new(Owner::host(NODE), IpVersion::V4, Use::Workload, want);
    assert_eq!(assign(&store, &CLOCK, &request).await.unwrap().taken.len(), 4);
    let path = format!("{GROUP}/ipamblocks/{}", seen.value.cidr.name());
    let mut strange = fake.object(&path).unwrap();
    strange["spec"]["affinity"] = json!("@:worker-9");
    fake.put(&path, strange);
    let before = fake.object(&path);
    assert!(release_by_handle(&store, &CLOCK, "h").await.is_err(), "not all is released");
    assert_eq!(fake.object(&path), before);
    let handle = fake.object(&format!("{GROUP}/ipamhandles/h")).unwrap();
    let left: Vec<&String> = handle["spec"]["block"].as_object().unwrap().keys().collect();
    assert_eq!(left, [&seen.value.cidr.to_string()], "the other block is released, this one is remembered");
    let named = Release { address: "10.0.0.0".parse().unwrap(), handle: None, sequence: None };
    let outcome = release_addresses(&store, &CLOCK, &[named]).await.unwrap();
    assert_eq!((outcome.not_allocated.len(), outcome.failed.len()), (0, 1));
}
