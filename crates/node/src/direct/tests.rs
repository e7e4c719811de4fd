//! Requests without an agent over a store in memory: the same attachment, other interfaces, old handles, both families.

use super::{add, del, first_word, serve, status, unlocked};
use api::attachment::{AddRequest, Attachment, DelRequest, ErrorReply, StatusRequest};
use api::direct::DirectCall;
use api::{ClusterInformation, Node, Pool};
use datastore::gate::Gate;
use datastore::memory::Memory;
use datastore::{Datastore as _, Record, Write};
use ipam::clock::FixedClock;
use ipam::query::addresses_of;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

async fn store(pools: &[(&str, &str)]) -> Memory {
    let store = Memory::new();
    let mut records = vec![Record::Node(Node { name: "n1".to_owned(), ..Node::default() })];
    records.extend(
        pools.iter().map(|(name, cidr)| Record::Pool(Pool::with_defaults(*name, cidr.parse().unwrap()))),
    );
    for record in records {
        store.commit(&[], &[Write::Create(record)]).await.unwrap();
    }
    store
}

fn attachment(container: &str, interface: &str) -> Attachment {
    let (container, interface) = (container.to_owned(), interface.to_owned());
    Attachment { network: "net".to_owned(), container, interface }
}

fn request(container: &str, interface: &str) -> AddRequest {
    AddRequest {
        attachment: attachment(container, interface),
        ipv4: 1,
        ipv6: 0,
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        requested: None,
        attributes: BTreeMap::new(),
        namespace: None,
    }
}

async fn ask(store: &Memory, request: &AddRequest) -> Result<Vec<String>, ErrorReply> {
    add::add(store, &CLOCK, "n1", request, BTreeMap::new()).await.map(|reply| reply.addresses)
}

async fn give_back(store: &Memory, container: &str, interface: &str, answered: &[String]) {
    let attachment = attachment(container, interface);
    let request = DelRequest { attachment, legacy_handle: Some(format!("default.{container}")) };
    del::del(store, &CLOCK, &request, answered).await.unwrap();
}

async fn held(store: &Memory, handle: &str) -> usize {
    addresses_of(store, handle, None).await.unwrap().len()
}

#[tokio::test]
async fn the_same_attachment_is_answered_the_same_and_each_interface_goes_by_itself() {
    let store = store(&[("p", "10.0.0.0/24")]).await;
    let first = ask(&store, &request("c", "eth0")).await.unwrap();
    assert!(first[0].ends_with("/26"), "{first:?}");
    assert_eq!(ask(&store, &request("c", "eth0")).await.unwrap(), first);
    let second = ask(&store, &request("c", "net1")).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(held(&store, "net.c").await, 2);
    give_back(&store, "c", "net1", &second).await;
    assert_eq!(held(&store, "net.c").await, 1);
    assert_eq!(ask(&store, &request("c", "eth0")).await.unwrap(), first);
    // Believed to be in a block that it is not in, and repeated.
    give_back(&store, "c", "eth0", &["10.0.0.255/32".to_owned()]).await;
    give_back(&store, "c", "eth0", &first).await;
    assert_eq!(held(&store, "net.c").await, 0);
}

#[tokio::test]
async fn both_families_are_answered_together_or_not_at_all() {
    let store = store(&[("p", "10.0.0.0/24")]).await;
    let both = AddRequest { ipv6: 1, ..request("c", "eth0") };
    let error = ask(&store, &both).await.unwrap_err();
    assert!(error.code == 100 && error.message.contains("IPv6"), "{error:?}");
    assert_eq!(held(&store, "net.c").await, 0);
    let six = Pool::with_defaults("six", "fd00::/64".parse().unwrap());
    store.commit(&[], &[Write::Create(Record::Pool(six))]).await.unwrap();
    let answer = ask(&store, &both).await.unwrap();
    assert!(answer[0].starts_with("10.0.0.") && answer[1].starts_with("fd00:"), "{answer:?}");
    assert_eq!(ask(&store, &both).await.unwrap(), answer);
}

#[tokio::test]
async fn one_particular_address_is_answered_alone_and_repeatedly() {
    let store = store(&[("p", "10.0.0.0/24")]).await;
    let wanted = |container: &str| AddRequest {
        requested: Some("10.0.0.77".parse().unwrap()),
        ..request(container, "eth0")
    };
    for _ in 0..2 {
        assert_eq!(ask(&store, &wanted("c")).await.unwrap(), ["10.0.0.77/32"]);
    }
    assert_eq!(ask(&store, &wanted("d")).await.unwrap_err().code, 100);
    give_back(&store, "c", "eth0", &[]).await;
    assert_eq!(ask(&store, &wanted("d")).await.unwrap(), ["10.0.0.77/32"]);
}

#[tokio::test]
async fn one_particular_address_is_not_for_two_interfaces_of_a_container() {
    let store = store(&[("p", "10.0.0.0/24")]).await;
    let wanted = |interface: &str| AddRequest {
        requested: Some("10.0.0.77".parse().unwrap()),
        ..request("c", interface)
    };
    assert_eq!(ask(&store, &wanted("eth0")).await.unwrap(), ["10.0.0.77/32"]);
    assert_eq!(ask(&store, &wanted("net1")).await.unwrap_err().code, 100);
    // The second one's failed ADD is followed by its DEL.
    give_back(&store, "c", "net1", &[]).await;
    assert_eq!(held(&store, "net.c").await, 1);
    assert_eq!(ask(&store, &wanted("eth0")).await.unwrap(), ["10.0.0.77/32"]);
}

#[tokio::test]
async fn pools_are_named_by_name_or_cidr_and_a_wrong_name_is_told() {
    let store = store(&[("p", "10.0.0.0/24"), ("q", "10.1.0.0/24")]).await;
    for (number, name) in ["q", "10.1.0.0/24"].into_iter().enumerate() {
        let named =
            AddRequest { ipv4_pools: vec![name.to_owned()], ..request(&format!("c{number}"), "eth0") };
        assert!(ask(&store, &named).await.unwrap()[0].starts_with("10.1.0."));
    }
    for name in ["r", "10.9.0.0/24"] {
        let named = AddRequest { ipv4_pools: vec![name.to_owned()], ..request("d", "eth0") };
        let error = ask(&store, &named).await.unwrap_err();
        assert!(error.code == 7 && error.message.contains(name), "{error:?}");
    }
}

#[tokio::test]
async fn the_handle_of_old_releases_is_released_too() {
    let store = store(&[("p", "10.0.0.0/24")]).await;
    let old = ipam::plan::AddressRequest::new(
        api::Owner::host("n1"),
        "10.0.0.5".parse().unwrap(),
        Some("default.c"),
    );
    ipam::assign_address::assign_address(&store, &CLOCK, &old).await.unwrap();
    give_back(&store, "c", "eth0", &[]).await;
    assert_eq!(held(&store, "default.c").await, 0);
}

#[tokio::test]
async fn a_locked_datastore_is_left_alone_and_a_node_without_pools_is_told() {
    let store = store(&[]).await;
    let wanted = StatusRequest { ipv4: 1, ..StatusRequest::default() };
    assert_eq!(status::status(&store, "n1", &wanted).await.unwrap_err().code, 50);
    assert_eq!(status::status(&store, "elsewhere", &wanted).await.unwrap_err().code, 50);
    let pool = Pool::with_defaults("p", "10.0.0.0/24".parse().unwrap());
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
    status::status(&store, "n1", &wanted).await.unwrap();
    assert!(!first_word(&store).await.unwrap());
    let locked = ClusterInformation { datastore_ready: false, ..ClusterInformation::default() };
    store.commit(&[], &[Write::Create(Record::ClusterInformation(locked))]).await.unwrap();
    assert_eq!(unlocked(&store).await.unwrap_err().code, 11);
    let directory = tempfile::tempdir().unwrap();
    let gate = Gate::new(store);
    for (path, body, code) in
        [("/v1/status", json!({"ipv4": 1}), 50), ("/v1/add", json!(request("c", "eth0")), 11)]
    {
        let call = DirectCall {
            path: path.to_owned(),
            body,
            node: "n1".to_owned(),
            variables: BTreeMap::new(),
            lock_file: directory.path().join("ipam.lock"),
            answered: Vec::new(),
        };
        assert_eq!(serve(&gate, None, &call).await.unwrap_err().code, code, "{path}");
    }
}
