//! Records that no careful hand wrote, met by every way to an address: without an agent, with one, and by the collector. Each is
//! tolerated as data model §14.5 says or left alone, told with its name, and nothing panics.
//!
//! Blocks across each other have a file of their own, `crossed_blocks.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;

use api::{Affinity, AffinityNaming, AffinityState, Cidr, Handle, IpVersion, Owner, Pool, Use};
use datastore::follow::Change;
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore as _, Kind, Scope};
use fake::Fake;
use ipam::agent::{self, Agent, Demand, Reply, RequestId, Surrender};
use ipam::assign::{AssignRequest, assign};
use ipam::clock::FixedClock;
use ipam::collect::{self, Cluster, Collector, Records, carry_out};
use ipam::plan::Want;
use ipam::release::release_by_handle;
use ipam::seen::{self, Seen};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const GROUP: &str = "/apis/crd.projectcalico.org/v1";
const NODE: &str = "worker-1";
const BLOCK: &str = "ipamblocks/10-0-0-0-30";
const AFFINITY: &str = "blockaffinities/worker-1-10-0-0-0-30";

/// What becomes of an ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Add {
    /// It gets an address, not of the block where that is not in order.
    Elsewhere,
    /// It gets an address of the node's block.
    Served,
    /// It is refused, and the record is named.
    Refused,
}

/// One malformed record beside others that are in order.
struct Row {
    what: &'static str,
    /// Where it stands.
    path: &'static str,
    object: Value,
    /// Name by which it is told; `None`: there is nothing to tell.
    told: Option<&'static str>,
    add: Add,
    /// Nobody ever writes it.
    untouched: bool,
}

fn block(changes: Value) -> Value {
    let mut spec = json!({"cidr":"10.0.0.0/30","affinity":"host:worker-1","allocations":[0,null,null,null],
        "unallocated":[1,2,3],"attributes":[{"handle_id":"h"}],"sequenceNumber":9,
        "sequenceNumberForAllocation":{"0":3},"deleted":false,"strictAffinity":false});
    for (field, value) in changes.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMBlock","spec":spec})
}

fn rows() -> Vec<Row> {
    let row = |what, path, object, told, add, untouched| Row { what, path, object, told, add, untouched };
    let spec =
        |kind: &str, spec: Value| json!({"apiVersion":"crd.projectcalico.org/v1","kind":kind,"spec":spec});
    vec![
        row("in order", BLOCK, block(json!({})), None, Add::Served, false),
        row(
            "an index that no attribute has",
            BLOCK,
            block(json!({"allocations":[0,9,null,null],"unallocated":[2,3]})),
            Some("10.0.0.0/30"),
            Add::Served,
            false,
        ),
        row(
            "null arrays",
            BLOCK,
            block(json!({"allocations":[null,null,null,null],"unallocated":null,"attributes":null,
                "sequenceNumberForAllocation":null})),
            Some("10.0.0.0/30"),
            Add::Served,
            false,
        ),
        row(
            "an address both allocated and queued",
            BLOCK,
            block(json!({"unallocated":[0,1,2,3]})),
            Some("10.0.0.0/30"),
            Add::Served,
            false,
        ),
        row(
            "no stamps and no sequence number",
            BLOCK,
            block(json!({"sequenceNumber":null,"sequenceNumberForAllocation":null})),
            None,
            Add::Served,
            false,
        ),
        row(
            "a handle with a carriage return",
            BLOCK,
            block(json!({"attributes":[{"handle_id":"h\r\u{0}junk"}]})),
            None,
            Add::Served,
            false,
        ),
        row(
            "a block whose owner is of an unknown type",
            BLOCK,
            block(json!({"affinity":"@:worker-1"})),
            Some("10.0.0.0/30"),
            Add::Elsewhere,
            true,
        ),
        row(
            "a block with too few allocations",
            BLOCK,
            block(json!({"allocations":[null]})),
            Some("10.0.0.0/30"),
            Add::Elsewhere,
            true,
        ),
        row(
            "an affinity of an unknown type",
            AFFINITY,
            spec(
                "BlockAffinity",
                json!({"state":"confirmed","node":NODE,"type":"@","cidr":"10.0.0.0/30","deleted":"false"}),
            ),
            Some("10.0.0.0/30"),
            Add::Elsewhere,
            true,
        ),
        row(
            "the handle that an address is wanted for",
            "ipamhandles/new",
            spec("IPAMHandle", json!({"handleID":"new","block":[]})),
            Some("new"),
            Add::Refused,
            true,
        ),
        row(
            "a handle of somebody else",
            "ipamhandles/other",
            spec("IPAMHandle", json!({"handleID":"other","block":{"10.0.0.0":1}})),
            Some("other"),
            Add::Served,
            true,
        ),
        row(
            "a reservation",
            "ipreservations/keep",
            spec("IPReservation", json!({"reservedCIDRs":"10.0.0.0/30"})),
            Some("keep"),
            Add::Refused,
            true,
        ),
        row(
            "an entry of a reservation",
            "ipreservations/keep",
            spec("IPReservation", json!({"reservedCIDRs":["10.0.0.0-10.0.0.3","10.0.0.2/32"]})),
            Some("keep"),
            Add::Served,
            true,
        ),
        row(
            "the configuration",
            "ipamconfigs/default",
            spec("IPAMConfig", json!({"strictAffinity":"yes"})),
            Some("configuration"),
            Add::Refused,
            true,
        ),
        row(
            "a pool",
            "ippools/z",
            spec("IPPool", json!({"cidr":"10.0.0.0/64"})),
            Some("z"),
            Add::Served,
            true,
        ),
    ]
}

/// A node with one block in which `h` holds an address, room for more blocks, and the row's record in the place of what is
/// in order.
async fn lab(row: &Row) -> (Fake, Kubernetes) {
    let fake = Fake::new();
    let cidr: Cidr = "10.0.0.0/30".parse().unwrap();
    let mut pool = Pool::with_defaults("p", "10.0.0.0/28".parse().unwrap());
    pool.block_size = 30;
    let affinity =
        Affinity { owner: Owner::host(NODE), cidr, state: AffinityState::Confirmed, deleted: false };
    let handle = Handle { id: "h".to_owned(), blocks: BTreeMap::from([(cidr, 1)]), deleted: false };
    for (path, object) in [
        ("ippools/p", pool.to_v1()),
        (BLOCK, block(json!({}))),
        (AFFINITY, affinity.to_v1(AffinityNaming::PerNode)),
        ("ipamhandles/h", handle.to_v1()),
        (row.path, row.object.clone()),
    ] {
        fake.put(&format!("{GROUP}/{path}"), object);
    }
    let node = json!({"apiVersion":"v1","kind":"Node","metadata":{"name":NODE}});
    fake.put(&format!("/api/v1/nodes/{NODE}"), node);
    let store = Kubernetes::with_client(fake.client()).with_group(api::wire::Group::V1);
    store.naming().await.unwrap();
    (fake, store)
}

/// An agent, each of whose effects is carried out at once.
struct Served {
    store: Kubernetes,
    agent: Agent,
    replies: Vec<Reply>,
}

impl Served {
    async fn of(store: &Kubernetes) -> Self {
        let mut served = Self { store: store.clone(), agent: Agent::new(NODE), replies: Vec::new() };
        for scope in served.agent.scopes() {
            let change = Change::Reset(store.list(&scope).await.unwrap());
            served.tell(agent::Event::Changed(scope.kind(), change)).await;
        }
        served
    }

    async fn tell(&mut self, event: agent::Event) {
        let mut waiting = vec![event];
        while let Some(event) = waiting.pop() {
            for effect in self.agent.step(CLOCK.0, event) {
                waiting.extend(match effect {
                    agent::Effect::Commit { ticket, checks, writes } => {
                        Some(agent::Event::Committed(ticket, self.store.commit(&checks, &writes).await))
                    }
                    agent::Effect::Read { ticket, key } => {
                        Some(agent::Event::Read(ticket, self.store.get(&key).await))
                    }
                    agent::Effect::List { ticket, scope } => {
                        Some(agent::Event::Listed(ticket, self.store.list(&scope).await))
                    }
                    agent::Effect::Reply { reply, .. } => {
                        self.replies.push(reply);
                        None
                    }
                    agent::Effect::Note(_) => None,
                });
            }
        }
    }
}

/// Names of everything that lists say is not in order.
async fn told(store: &Kubernetes) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for kind in [Kind::Pool, Kind::Block, Kind::Affinity, Kind::Handle, Kind::Config, Kind::Reservation] {
        let listing = store.list(&Scope::All(kind)).await.unwrap();
        told.extend(
            listing
                .unreadable
                .iter()
                .chain(listing.mended.iter().map(|(key, _)| key))
                .map(ToString::to_string),
        );
    }
    told
}

/// What stands at the row's path is as it was, or is in order now.
fn judge(row: &Row, fake: &Fake, way: &str) {
    let now = fake.object(&format!("{GROUP}/{}", row.path)).unwrap();
    let what = format!("{}, {way}: {now}", row.what);
    if now["spec"] == row.object["spec"] {
        return;
    }
    assert!(!row.untouched, "{what}");
    assert_eq!(api::Block::mending(&now["spec"]), None, "{what}");
}

/// What an ADD came to: the address, or what it was told.
fn judge_add(row: &Row, added: Result<String, String>, way: &str) {
    let what = format!("{}, {way}: {added:?}", row.what);
    let block: Cidr = "10.0.0.0/30".parse().unwrap();
    match (added, row.add) {
        (Ok(address), Add::Served) => {
            let address: std::net::IpAddr = address.parse().unwrap();
            let held = row.what != "null arrays" && address.to_string() == "10.0.0.0";
            assert!(block.contains(address) && !held, "{what}");
            assert!(!row.what.contains("index") || address.to_string() != "10.0.0.1", "{what}");
        }
        (Ok(address), Add::Elsewhere) => assert!(!block.contains(address.parse().unwrap()), "{what}"),
        (Err(message), Add::Refused) => assert!(message.contains(row.told.unwrap()), "{what}"),
        _ => panic!("{what}"),
    }
}

#[tokio::test]
async fn malformed_records_are_tolerated_or_left_alone_by_requests_without_an_agent() {
    for row in rows() {
        let (fake, store) = lab(&row).await;
        let want = Want { count: 1, handle: Some("new".to_owned()), attributes: BTreeMap::new() };
        let request = AssignRequest::new(Owner::host(NODE), IpVersion::V4, Use::Workload, want);
        let added = match assign(&store, &CLOCK, &request).await {
            Ok(assigned) => Ok(assigned.taken[0].address.to_string()),
            Err(refused) => {
                let cause = std::error::Error::source(&*refused).map(ToString::to_string).unwrap_or_default();
                Err(format!("{refused}: {cause}"))
            }
        };
        judge_add(&row, added, "direct ADD");
        judge(&row, &fake, "direct ADD");
        // What cannot be understood holds what it holds.
        let released = release_by_handle(&store, &CLOCK, "h").await;
        // Without the configuration it is not known how long a released address has to rest.
        let fails = row.path.starts_with("ipamconfigs/") || (row.path == BLOCK && row.untouched);
        assert_eq!(released.is_err(), fails, "{}: {released:?}", row.what);
        judge(&row, &fake, "direct DEL");
    }
}

#[tokio::test]
async fn malformed_records_are_tolerated_or_left_alone_by_the_agent() {
    for row in rows() {
        let (fake, store) = lab(&row).await;
        let mut served = Served::of(&store).await;
        let demand = Demand::new("new", vec![IpVersion::V4], BTreeMap::new());
        served.tell(agent::Event::Add(RequestId(1), demand)).await;
        let added = match served.replies.pop() {
            Some(Reply::Added(taken)) => Ok(taken[0].address.to_string()),
            Some(Reply::Failed(error)) => Err(error.message),
            other => panic!("{}: {other:?}", row.what),
        };
        judge_add(&row, added, "agent's ADD");
        judge(&row, &fake, "agent's ADD");
        let surrender = Surrender { handle: "h".to_owned(), interface: None, legacy_handle: None };
        served.tell(agent::Event::Del(RequestId(2), surrender)).await;
        let deleted = served.replies.pop();
        let failed = matches!(deleted, Some(Reply::Failed(_)));
        assert_eq!(failed, row.path == BLOCK && row.untouched, "{}: {deleted:?}", row.what);
        judge(&row, &fake, "agent's DEL");
    }
}

#[tokio::test]
async fn malformed_records_are_told_by_name_and_left_alone_by_the_collector() {
    for row in rows() {
        let (fake, store) = lab(&row).await;
        let told = told(&store).await;
        assert_eq!(told.len(), usize::from(row.told.is_some()), "{}: {told:?}", row.what);
        assert!(told.iter().all(|name| name.contains(row.told.unwrap())), "{}: {told:?}", row.what);
        let mut collector = Collector::default();
        for pass in 0..3 {
            let now = CLOCK.0 + SignedDuration::from_hours(pass);
            let grace = Some(SignedDuration::from_mins(15));
            let blocks = seen::blocks(&store).await.unwrap();
            let handles: Vec<Seen<Handle>> = seen::list(&store, &Scope::All(Kind::Handle)).await.unwrap();
            let records = Records {
                blocks: blocks.into_iter().map(|seen| (seen.value.cidr, seen)).collect(),
                affinities: seen::list(&store, &Scope::All(Kind::Affinity)).await.unwrap(),
                handles: Some(handles.into_iter().map(|seen| (seen.value.id.clone(), seen)).collect()),
                cooldown_seconds: 0,
            };
            let cluster = Cluster { nodes: BTreeSet::from([NODE.to_owned()]), ..Cluster::default() };
            collector.step(now, collect::Event::Begin { handles: true, grace });
            collector.step(now, collect::Event::Records(Arc::new(records)));
            for effect in collector.step(now, collect::Event::Cluster(cluster)) {
                if let collect::Effect::Do(task) = effect {
                    let _ = carry_out(&store, &FixedClock(now), &task).await;
                }
            }
            judge(&row, &fake, "collector");
        }
        // What a block holds that nobody understands is not taken for gone.
        for path in [AFFINITY, "ipamhandles/h"].iter().filter(|_| row.path == BLOCK && row.untouched) {
            assert!(fake.object(&format!("{GROUP}/{path}")).is_some(), "{}: {path}", row.what);
        }
    }
}
