//! The protocols over the Kubernetes driver: which objects come of them, and in how many requests (invariant 10).

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;

use api::{Cidr, IpVersion, Owner, Pool, Use};
use datastore::kubernetes::Kubernetes;
use fake::{Fake, Fault};
use ipam::administration::release_affinities_of;
use ipam::affinity::ReleaseTerms;
use ipam::assign::{AssignRequest, Assigned, assign};
use ipam::clock::FixedClock;
use ipam::plan::Want;
use ipam::release::{release_by_handle, release_by_handle_in};
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const GROUP: &str = "/apis/crd.projectcalico.org/v1";
const NODE: &str = "calico-ipam-control-plane";

fn lab() -> (Fake, Kubernetes) {
    let fake = Fake::new();
    fake.put(
        "/api/v1/namespaces/kube-system/configmaps/tortie-datastore",
        json!({"data": {"affinityNaming": "per-block"}}),
    );
    let pool = Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap());
    fake.put(&format!("{GROUP}/ippools/default-ipv4-ippool"), pool.to_v1());
    fake.put(
        &format!("/api/v1/nodes/{NODE}"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}),
    );
    let store = Kubernetes::with_client(fake.client()).with_group(api::wire::Group::V1);
    (fake, store)
}

async fn ask(store: &Kubernetes, handle: &str) -> Assigned {
    let want = Want {
        count: 1,
        handle: Some(handle.to_owned()),
        attributes: [("node".to_owned(), NODE.to_owned())].into(),
    };
    let request = AssignRequest::new(Owner::host(NODE), IpVersion::V4, Use::Workload, want);
    assign(store, &CLOCK, &request).await.unwrap()
}

fn count(requests: &[String], method: &str) -> usize {
    requests.iter().filter(|request| request.starts_with(method)).count()
}

#[tokio::test]
async fn an_address_leaves_the_objects_that_a_peer_expects() {
    let (fake, store) = lab();
    let assigned = ask(&store, "k8s-pod-network.4F2C").await;
    assert_eq!(assigned.taken[0].with_block_prefix(), "192.168.18.64/26");
    let affinity =
        fake.object(&format!("{GROUP}/blockaffinities/ipam-block-affinity-192-168-18-64-26")).unwrap();
    assert_eq!(
        affinity["spec"],
        json!({"cidr": "192.168.18.64/26", "deleted": "false", "node": NODE, "state": "confirmed", "type": "host"})
    );
    let block = fake.object(&format!("{GROUP}/ipamblocks/192-168-18-64-26")).unwrap();
    assert_eq!(block["spec"]["affinity"], format!("host:{NODE}"));
    assert_eq!(block["spec"]["allocations"][0], 0);
    assert_eq!(block["spec"]["attributes"][0]["handle_id"], "k8s-pod-network.4F2C");
    let handle = fake.object(&format!("{GROUP}/ipamhandles/k8s-pod-network.4f2c")).unwrap();
    assert_eq!(handle["spec"]["block"], json!({"192.168.18.64/26": 1}));
}

#[tokio::test]
async fn an_address_costs_as_many_requests_as_its_documentation_says() {
    let (fake, store) = lab();
    store.naming().await.unwrap();
    fake.requests();
    ask(&store, "first").await;
    let cold = fake.requests();
    // Affinity pending, handle, block; affinity confirmed. And the check of the pool's revision after the block.
    assert_eq!((count(&cold, "POST"), count(&cold, "PUT"), count(&cold, "GET")), (3, 1, 8), "{cold:?}");
    ask(&store, "second").await;
    let warm = fake.requests();
    assert_eq!((count(&warm, "POST"), count(&warm, "PUT"), count(&warm, "GET")), (1, 1, 7), "{warm:?}");
    assert_eq!(release_by_handle(&store, &CLOCK, "second").await.unwrap(), 1);
    let release = fake.requests();
    // The block, then the handle.
    assert_eq!((count(&release, "PUT"), count(&release, "DELETE")), (1, 1), "{release:?}");
}

/// Requests under way, and how often one was sent while none was.
#[derive(Default)]
struct Trips {
    in_flight: AtomicUsize,
    made: AtomicUsize,
}

/// A request until it is answered or given up.
struct UnderWay(Arc<Trips>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client of the fake that counts trips: a request is answered only when those sent with it have been sent.
fn counting(fake: &Fake) -> (Arc<Trips>, kube::Client) {
    let trips = Arc::new(Trips::default());
    let (inner, counted) = (fake.client(), Arc::clone(&trips));
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        if counted.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            counted.made.fetch_add(1, Ordering::Relaxed);
        }
        let (inner, counted) = (inner.clone(), Arc::clone(&counted));
        let under_way = UnderWay(Arc::clone(&counted));
        async move {
            let _under_way = under_way;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            inner.send(request).await
        }
    });
    (trips, kube::Client::new(service, "default"))
}

#[tokio::test]
async fn direct_mode_keeps_to_its_trips_on_the_wire() {
    let (fake, _) = lab();
    let (trips, client) = counting(&fake);
    // As a plugin begins: it knows neither the group of the records nor how affinities are named.
    let store = Kubernetes::with_client(client);
    let made = || (trips.made.swap(0, Ordering::Relaxed), fake.requests().len());
    ask(&store, "first").await;
    // The groups, the naming of affinities and six reads; blocks; affinity and handle; block; pool; affinity.
    assert_eq!(made(), (6, 14));
    ask(&store, "second").await;
    // Six reads; block; handle; block.
    assert_eq!(made(), (4, 9));
    let block = "192.168.18.64/26".parse().unwrap();
    ask(&store, "third").await;
    made();
    release_by_handle_in(&store, &CLOCK, "third", &[block]).await.unwrap();
    // Three reads and the block; the block is written; the handle is deleted.
    assert_eq!(made(), (3, 6));
    release_by_handle(&store, &CLOCK, "second").await.unwrap();
    // The block is only known from the handle.
    assert_eq!(made(), (4, 6));
    release_by_handle(&store, &CLOCK, "second").await.unwrap();
    assert_eq!(made(), (1, 3));
    release_by_handle_in(&store, &CLOCK, "second", &[block]).await.unwrap();
    assert_eq!(made(), (1, 4));
}

#[tokio::test]
async fn a_fresh_process_keeps_to_its_trips_too() {
    let (fake, store) = lab();
    ask(&store, "first").await;
    let block = "192.168.18.64/26".parse().unwrap();
    let fresh = || {
        let (trips, client) = counting(&fake);
        (trips, Kubernetes::with_client(client))
    };
    let (trips, store) = fresh();
    ask(&store, "second").await;
    assert_eq!(trips.made.load(Ordering::Relaxed), 4);
    let (trips, store) = fresh();
    release_by_handle_in(&store, &CLOCK, "second", &[block]).await.unwrap();
    assert_eq!(trips.made.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_plugin_that_was_told_the_single_address_gives_it_back_in_three_trips() {
    let (fake, store) = lab();
    ask(&store, "first").await;
    let given = ask(&store, "second").await.taken[0].address;
    let (trips, client) = counting(&fake);
    let store = Kubernetes::with_client(client);
    // As the container has it, and as a runtime therefore tells a DEL.
    let answered = [Cidr::containing(given, 32).unwrap()];
    let released = release_by_handle_in(&store, &CLOCK, "second", &answered).await.unwrap();
    assert_eq!((released.addresses, trips.made.load(Ordering::Relaxed)), (1, 3));
}

#[tokio::test]
async fn what_is_given_back_leaves_no_object() {
    let (fake, store) = lab();
    ask(&store, "h").await;
    release_by_handle(&store, &CLOCK, "h").await.unwrap();
    let given_up = release_affinities_of(&store, &CLOCK, &Owner::host(NODE), ReleaseTerms::default()).await;
    assert_eq!(given_up, Ok(1));
    for path in [
        "blockaffinities/ipam-block-affinity-192-168-18-64-26",
        "ipamblocks/192-168-18-64-26",
        "ipamhandles/h",
    ] {
        assert_eq!(fake.object(&format!("{GROUP}/{path}")), None, "{path}");
    }
}

#[tokio::test]
async fn a_pool_that_changes_during_a_claim_undoes_the_claim() {
    let (fake, store) = lab();
    let mut smaller = Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap());
    smaller.block_size = 28;
    let path = format!("{GROUP}/ippools/default-ipv4-ippool");
    let mut meddled = false;
    fake.fail(move |method, at| {
        (method == "POST" && at.ends_with("/ipamblocks") && !std::mem::replace(&mut meddled, true))
            .then(|| Fault::Meddled { path: path.clone(), object: smaller.to_v1() })
    });
    let assigned = ask(&store, "h").await;
    assert_eq!(assigned.taken[0].block.prefix(), 28, "the address is of a block of the new size");
    assert_eq!(fake.object(&format!("{GROUP}/ipamblocks/192-168-18-64-26")), None);
    assert_eq!(ipam::seen::blocks(&store).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_is_looked_up_and_not_repeated() {
    for lost in ["/ipamblocks", "/ipamhandles", "/blockaffinities"] {
        let (fake, store) = lab();
        let mut done = false;
        fake.fail(move |method, at| {
            (method == "POST" && at.ends_with(lost) && !std::mem::replace(&mut done, true))
                .then_some(Fault::AnswerLost)
        });
        let assigned = ask(&store, "h").await;
        assert_eq!(assigned.taken.len(), 1, "{lost}");
        let held = ipam::query::addresses_of(&store, "h", None).await.unwrap();
        assert_eq!(held, [assigned.taken[0].address], "{lost}");
        let counted = ipam::query::utilization_of(&store).await.unwrap().0;
        assert_eq!(counted.pools[0].count.in_use, 1, "{lost}");
    }
}

#[tokio::test]
async fn a_pool_that_changes_while_the_answer_is_lost_undoes_the_claim() {
    let (fake, store) = lab();
    let mut smaller = Pool::with_defaults("default-ipv4-ippool", "192.168.0.0/16".parse().unwrap());
    smaller.block_size = 28;
    let path = format!("{GROUP}/ippools/default-ipv4-ippool");
    let (mut lost, mut meddled) = (false, false);
    fake.fail(move |method, at| {
        if method == "POST" && at.ends_with("/ipamblocks") && !std::mem::replace(&mut lost, true) {
            return Some(Fault::AnswerLost);
        }
        // The first look at the block, by which the claim finds out that it was made.
        (method == "GET" && at.ends_with("/192-168-18-64-26") && !std::mem::replace(&mut meddled, true))
            .then(|| Fault::Meddled { path: path.clone(), object: smaller.to_v1() })
    });
    let assigned = ask(&store, "h").await;
    assert_eq!(assigned.taken[0].block.prefix(), 28);
    assert_eq!(fake.object(&format!("{GROUP}/ipamblocks/192-168-18-64-26")), None);
    assert_eq!(ipam::seen::blocks(&store).await.unwrap().len(), 1);
}
