//! The agent over the Kubernetes driver: how many requests of which kind it sends, counted at the server.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;

use api::{IpVersion, Pool};
use datastore::follow::{Change, follow};
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore as _, Kind};
use fake::Fake;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt as _};
use ipam::agent::{Agent, Demand, Effect, Event, Reply, RequestId, Surrender};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;

const GROUP: &str = "/apis/crd.projectcalico.org/v1";
const NODE: &str = "node-1";

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
    let store = Kubernetes::with_client(fake.client());
    (fake, store)
}

/// An agent with what drives it.
struct Node {
    fake: Fake,
    store: Kubernetes,
    agent: Agent,
    feeds: SelectAll<BoxStream<'static, (Kind, Change)>>,
    under_way: FuturesUnordered<BoxFuture<'static, Event>>,
    replies: BTreeMap<u64, Reply>,
    requests: u64,
    /// Lists and watches that the server was asked for.
    followed: Vec<String>,
}

impl Node {
    /// An agent that has listed everything.
    async fn start(fake: &Fake, store: &Kubernetes) -> Self {
        store.naming().await.unwrap();
        let agent = Agent::new(NODE);
        let feeds = futures::stream::select_all(agent.scopes().into_iter().map(|scope| {
            let kind = scope.kind();
            follow(store.clone(), scope).map(move |change| (kind, change)).boxed()
        }));
        let mut node = Self {
            fake: fake.clone(),
            store: store.clone(),
            agent,
            feeds,
            under_way: FuturesUnordered::new(),
            replies: BTreeMap::new(),
            requests: 0,
            followed: Vec::new(),
        };
        while !node.agent.view().is_complete() {
            let (kind, change) = node.feeds.next().await.unwrap();
            node.tell(vec![Event::Changed(kind, change)]);
        }
        node.followed = fake.requests();
        node
    }

    fn tell(&mut self, events: Vec<Event>) {
        for effect in self.agent.steps(Timestamp::UNIX_EPOCH, events) {
            let store = self.store.clone();
            match effect {
                Effect::Commit { ticket, checks, writes } => self.under_way.push(
                    async move { Event::Committed(ticket, store.commit(&checks, &writes).await) }.boxed(),
                ),
                Effect::Read { ticket, key } => {
                    self.under_way.push(async move { Event::Read(ticket, store.get(&key).await) }.boxed());
                }
                Effect::List { ticket, scope } => self
                    .under_way
                    .push(async move { Event::Listed(ticket, store.list(&scope).await) }.boxed()),
                Effect::Reply { request, reply } => {
                    self.replies.insert(request.0, reply);
                }
                Effect::Note(_) => {}
            }
        }
    }

    /// Hands in these requests together, and waits for all answers. Answers the requests that the server had for them:
    /// lists and watches are not counted.
    async fn ask(&mut self, asked: Vec<Ask>) -> Vec<String> {
        let events = asked
            .into_iter()
            .map(|ask| {
                self.requests += 1;
                match ask {
                    Ask::Add(demand) => Event::Add(RequestId(self.requests), demand),
                    Ask::Del(surrender) => Event::Del(RequestId(self.requests), surrender),
                }
            })
            .collect();
        self.tell(events);
        while self.agent.waiting() > 0 {
            tokio::select! {
                Some(event) = self.under_way.next() => self.tell(vec![event]),
                Some((kind, change)) = self.feeds.next() => self.tell(vec![Event::Changed(kind, change)]),
            }
        }
        let is_record = |request: &String| {
            !request.starts_with("GET") || !COLLECTIONS.iter().any(|collection| request.ends_with(collection))
        };
        let (records, followed) = self.fake.requests().into_iter().partition(is_record);
        self.followed.extend::<Vec<String>>(followed);
        records
    }
}

/// What lists and watches are of.
const COLLECTIONS: [&str; 7] = [
    "/ippools",
    "/ipamblocks",
    "/blockaffinities",
    "/ipamconfigs",
    "/ipreservations",
    "/nodes",
    "/clusterinformations",
];

enum Ask {
    Add(Demand),
    Del(Surrender),
}

fn add(handle: &str) -> Ask {
    let attributes = [("node".to_owned(), NODE.to_owned())].into();
    Ask::Add(Demand::new(handle, vec![IpVersion::V4], attributes))
}

fn del(handle: &str) -> Ask {
    Ask::Del(Surrender { handle: handle.to_owned(), interface: None, legacy_handle: None })
}

/// The requests without the names of objects that they carry.
fn kinds(requests: &[String]) -> Vec<String> {
    let short = |request: &String| {
        let (method, path) = request.split_once(' ').unwrap();
        let path = path.trim_start_matches(GROUP).trim_start_matches('/');
        format!("{method} {}", path.split('/').next().unwrap())
    };
    requests.iter().map(short).collect()
}

#[tokio::test]
async fn cold_add_is_four_writes_and_one_read_and_a_warm_one_two_writes() {
    let (fake, store) = lab();
    let mut node = Node::start(&fake, &store).await;
    let cold = node.ask(vec![add("first")]).await;
    assert_eq!(
        kinds(&cold),
        ["POST blockaffinities", "POST ipamhandles", "POST ipamblocks", "GET ippools", "PUT blockaffinities"]
    );
    let warm = node.ask(vec![add("second")]).await;
    assert_eq!(kinds(&warm), ["POST ipamhandles", "PUT ipamblocks"]);
    let release = node.ask(vec![del("second")]).await;
    assert_eq!(kinds(&release), ["PUT ipamblocks", "DELETE ipamhandles"]);
    assert!(node.replies.values().all(|reply| !matches!(reply, Reply::Failed(_))), "{:?}", node.replies);
}

#[tokio::test]
async fn each_collection_is_listed_and_watched_once_so_that_an_event_is_read_once() {
    let (fake, store) = lab();
    let mut node = Node::start(&fake, &store).await;
    for number in 0..20 {
        node.ask(vec![add(&format!("pod{number}"))]).await;
    }
    let blocks = format!("GET {GROUP}/ipamblocks");
    assert_eq!(node.followed.iter().filter(|request| **request == blocks).count(), 2, "one list, one watch");
    for collection in COLLECTIONS {
        let asked = node.followed.iter().filter(|request| request.ends_with(collection)).count();
        assert!((1..=2).contains(&asked), "{collection}: {asked} requests");
    }
}

#[tokio::test]
async fn thirty_two_waiting_requests_are_their_handles_and_one_write_of_the_block() {
    let (fake, store) = lab();
    let mut node = Node::start(&fake, &store).await;
    node.ask(vec![add("warm")]).await;
    let requests = node.ask((0..32).map(|number| add(&format!("pod{number}"))).collect()).await;
    let kinds = kinds(&requests);
    assert_eq!(kinds.len(), 33, "{kinds:?}");
    assert!(kinds[..32].iter().all(|kind| kind == "POST ipamhandles"), "{kinds:?}");
    assert_eq!(kinds[32], "PUT ipamblocks");
    let requests = node.ask((0..32).map(|number| del(&format!("pod{number}"))).collect()).await;
    let blocks = requests.iter().filter(|request| request.contains("ipamblocks")).count();
    assert_eq!((blocks, requests.len()), (1, 33), "one write of the block, one request a handle");
}

#[tokio::test]
async fn restarted_agent_reads_the_handle_once_before_it_renews_or_releases() {
    let (fake, store) = lab();
    Node::start(&fake, &store).await.ask(vec![add("first")]).await;
    let mut after = Node::start(&fake, &store).await;
    let again = after.ask(vec![add("first")]).await;
    assert_eq!(kinds(&again), ["GET ipamhandles", "PUT ipamblocks"]);
    let mut last = Node::start(&fake, &store).await;
    let release = last.ask(vec![del("first")]).await;
    assert_eq!(kinds(&release), ["GET ipamhandles", "PUT ipamblocks", "DELETE ipamhandles"]);
}
