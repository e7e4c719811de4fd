//! The stores that are measured: started here, filled with nodes and a pool, stopped at the end.

use crate::etcd::{Plan, Server, ready};
use crate::measure::{self, NODES, Place};
use crate::raw::{self, Raw};
use crate::server::{self, KubeApiserver};
use api::wire::Group;
use api::{IpamConfig, Node, Pool};
use datastore::etcd::Etcd;
use datastore::kubernetes::{self, Kubernetes};
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Listing, ReadError, Record, Revision, Scope,
    Stored, Version, Write,
};
use futures::future::join_all;
use futures::stream::BoxStream;
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Measures the stores that are named, or all.
pub(crate) async fn figures(which: &[&str]) {
    let wanted = |name: &str| which.is_empty() || which.contains(&name);
    if wanted("etcd") {
        over_etcd().await;
    }
    if wanted("kube-apiserver") {
        over_kube_apiserver().await;
    }
    if wanted("embedded") {
        over_embedded().await;
    }
}

/// Names of the nodes: agents', Calico's, and those on which calls are counted.
fn names() -> (Vec<String>, Vec<String>, [String; 2]) {
    let numbered = |what: &str| (0..NODES).map(|number| format!("{what}-{number}")).collect();
    (numbered("node"), numbered("peer"), ["counted-node".to_owned(), "counted-peer".to_owned()])
}

fn records() -> Vec<Record> {
    let config = IpamConfig { max_blocks_per_host: 1000, ..IpamConfig::default() };
    vec![Record::Config(config), Record::Pool(Pool::with_defaults("pool", "10.0.0.0/16".parse().unwrap()))]
}

async fn over_etcd() {
    let Some(server) = Server::start(&Plan::default()) else { return };
    let store = server.driver();
    ready(&store).await;
    let (nodes, peers, counted) = names();
    let every = nodes.iter().chain(&peers).chain(&counted);
    let nodes_of = every.map(|name| Record::Node(Node { name: name.clone(), ..Node::default() }));
    let writes: Vec<Write> = nodes_of.chain(records()).map(Write::Create).collect();
    store.commit(&[], &writes).await.unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let driver = |calls: &Arc<AtomicU64>| Counting { store: server.driver(), calls: Arc::clone(calls) };
    let nothing = Arc::default();
    let with = |names: Vec<String>| names.into_iter().map(|name| (name, driver(&nothing))).collect();
    let place = Place {
        name: "etcd",
        raw_name: "raw transactions",
        agents: with(nodes),
        peers: with(peers),
        raw: join_all((0..16).map(|number| Raw::etcd(&server.endpoint, number))).await,
        counted: counted.map(|name| (name, driver(&calls))),
        calls: Arc::clone(&calls),
    };
    measure::figures(place).await;
}

async fn over_kube_apiserver() {
    let Some(server) = KubeApiserver::start().await else { return };
    let kubeconfig = server.kubeconfig("admin");
    server::define_older_group(&Kubernetes::connect(Some(&kubeconfig)).await.unwrap()).await;
    over_api("kube-apiserver", &kubeconfig, Some(Group::V1)).await;
}

/// Our own server as a process of its own.
struct Embedded(Child);

impl Drop for Embedded {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn over_embedded() {
    let folder = tempfile::tempdir().unwrap();
    server::certificates(folder.path());
    let child = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Embedded(child);
    let port = loop {
        match std::fs::read_to_string(folder.path().join("port")) {
            Ok(port) => break port.parse().unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(server.0.try_wait().unwrap().is_none(), "the embedded server ended");
    };
    let kubeconfig = server::kubeconfig(folder.path(), port, "admin");
    server::define_older_group(&Kubernetes::connect(Some(&kubeconfig)).await.unwrap()).await;
    over_api("embedded", &kubeconfig, Some(Group::V1)).await;
    drop(server);
}

/// Is the embedded server of `folder`, which has its certificates; says in a file where it listens.
pub(crate) async fn serve(folder: &Path) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let written = folder.join("port.new");
    std::fs::write(&written, port.to_string()).unwrap();
    std::fs::rename(written, folder.join("port")).unwrap();
    let options = apiserver::Options {
        data_file: folder.join("store"),
        pki_dir: folder.to_owned(),
        listeners: vec![listener],
        kubelet_socket_dir: folder.join("kubelet"),
        service_cidr: "10.96.0.0/16".to_owned(),
        server_version: "v1.28.0".to_owned(),
        advertise: None,
        guards: Vec::new(),
    };
    apiserver::run(options).await.unwrap();
}

/// A client of its own connection that counts its requests.
fn counting(client: kube::Client, calls: &Arc<AtomicU64>) -> kube::Client {
    let calls = Arc::clone(calls);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let client = client.clone();
        calls.fetch_add(1, Ordering::SeqCst);
        async move { client.send(request).await }
    });
    kube::Client::new(service, "default")
}

async fn over_api(name: &'static str, kubeconfig: &Path, group: Option<Group>) {
    let client = async || kubernetes::client(Some(kubeconfig)).await.unwrap();
    let driver = |client: kube::Client| match group {
        Some(group) => Kubernetes::with_client(client).with_group(group),
        None => Kubernetes::with_client(client),
    };
    let store = driver(client().await);
    let (nodes, peers, counted) = names();
    for name in nodes.iter().chain(&peers).chain(&counted) {
        server::create(&store, "/api/v1/nodes", json!({"metadata": {"name": name}}).to_string()).await;
    }
    let writes: Vec<Write> = records().into_iter().map(Write::Create).collect();
    store.commit(&[], &writes).await.unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let with = async |names: Vec<String>| {
        let mut all = Vec::new();
        for name in names {
            all.push((name, driver(client().await)));
        }
        all
    };
    store.define(&raw::definition()).await.unwrap();
    let mut raw = Vec::new();
    for number in 0..16 {
        raw.push(Raw::object(client().await, number).await);
    }
    let [first, second] = counted;
    let place = Place {
        name,
        raw_name: "raw updates",
        agents: with(nodes).await,
        peers: with(peers).await,
        raw,
        counted: [
            (first, driver(counting(client().await, &calls))),
            (second, driver(counting(client().await, &calls))),
        ],
        calls: Arc::clone(&calls),
    };
    measure::figures(place).await;
}

/// A driver of etcd whose calls are counted: each is one request, but for lists longer than a page, which the bench has none of.
#[derive(Clone)]
struct Counting {
    store: Etcd,
    calls: Arc<AtomicU64>,
}

impl Counting {
    fn count(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }
}

impl Datastore for Counting {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.count();
        self.store.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.count();
        self.store.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        self.count();
        self.store.commit(checks, writes).await
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.store.watch(scope, from).await
    }
}
