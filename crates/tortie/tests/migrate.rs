//! A cluster moves from etcd to Kubernetes by calicoctl's commands: over a real etcd and the embedded API server, and over a
//! real kube-apiserver where there is one.

#![expect(clippy::unwrap_used, reason = "tests")]

mod embedded;
#[path = "../../datastore/tests/etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;
#[path = "../../datastore/tests/kube_apiserver/server.rs"]
#[expect(dead_code, reason = "what only the tests of the driver need")]
mod server;

use api::{
    Affinity, AffinityState, Attribute, Block, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool,
};
use datastore::etcd::Etcd;
use datastore::kubernetes::Kubernetes;
use datastore::{Datastore, Key, Kind, Record, Scope, Write};
use serde_json::{Value, json};
use server::KubeApiserver;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

const PODS: u32 = 40;

/// Runs calicoctl with a configuration file and this on stdin.
fn calicoctl(config: &Path, words: &str, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tortie"))
        .arg("calicoctl")
        .args(words.split(' '))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not read ends before it is told everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn config(folder: &Path, name: &str, spec: &Value) -> PathBuf {
    let path = folder.join(name);
    let document = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "metadata": {}, "spec": spec});
    std::fs::write(&path, document.to_string()).unwrap();
    path
}

/// Records as they are after the move. In etcd the node has another name.
fn records(node: &str) -> Vec<Record> {
    let cidr = "10.0.0.64/26".parse().unwrap();
    let attribute = |handle: String| Attribute {
        handle_id: Some(handle),
        secondary: BTreeMap::from([("node".to_owned(), node.to_owned())]),
        ..Attribute::default()
    };
    let tunnel = format!("vxlan-tunnel-addr-{node}");
    let handles: Vec<String> =
        (1..PODS).map(|pod| format!("k8s-pod-network.C{pod}")).chain([tunnel]).collect();
    let taken = PODS as usize;
    let block = Block {
        cidr,
        affinity: Some(Owner::host(node)),
        claim_time: "2026-08-01T10:15:30Z".parse().ok(),
        allocations: Arc::new((0..64).map(|at| (at < taken).then_some(at)).collect()),
        unallocated: (PODS..64).collect(),
        attributes: Arc::new(handles.iter().map(|handle| attribute(handle.clone()).into()).collect()),
        sequence_number: 1_785_579_330_123_456_795,
        sequence_for_allocation: Arc::new((0..PODS).map(|at| (at, 1_785_579_330_123_456_789)).collect()),
        deleted: false,
        legacy_host_affinity: None,
    };
    let affinity =
        Affinity { owner: Owner::host(node), cidr, state: AffinityState::Confirmed, deleted: false };
    let mut all = vec![
        Record::Config(IpamConfig { strict_affinity: true, ..IpamConfig::default() }),
        Record::Pool(Pool::with_defaults("p4", "10.0.0.0/16".parse().unwrap())),
        Record::Pool(Pool::with_defaults("p6", "fd00:10::/64".parse().unwrap())),
        Record::Block(block),
        Record::Affinity(affinity),
    ];
    all.extend(
        handles
            .into_iter()
            .map(|id| Record::Handle(Handle { id, blocks: BTreeMap::from([(cidr, 1)]), deleted: false })),
    );
    all
}

async fn fill(store: &Etcd) {
    let cluster = ClusterInformation {
        datastore_ready: true,
        cluster_guid: "guid".to_owned(),
        calico_version: "v3.30.0".to_owned(),
        ..ClusterInformation::default()
    };
    let annotations =
        BTreeMap::from([("projectcalico.org/IPv4VXLANTunnelAddr".to_owned(), "10.0.0.64".to_owned())]);
    let node = Node { name: "in-etcd".to_owned(), annotations, ..Node::default() };
    let mut writes = vec![Record::ClusterInformation(cluster), Record::Node(node)];
    writes.extend(records("in-etcd"));
    let writes: Vec<Write> = writes.into_iter().map(Write::Create).collect();
    store.commit(&[], &writes).await.unwrap();
}

/// Every record that is not a node, and whether the datastore lets writers go on.
async fn everything<D: Datastore>(store: &D) -> Vec<Record> {
    let mut all = Vec::new();
    for kind in [Kind::Config, Kind::Pool, Kind::Reservation, Kind::Block, Kind::Affinity, Kind::Handle] {
        all.extend(
            store.list(&Scope::All(kind)).await.unwrap().items.into_iter().map(|stored| stored.record),
        );
    }
    all
}

async fn is_ready<D: Datastore>(store: &D) -> Option<bool> {
    match store.get(&Key::ClusterInformation).await.unwrap()?.record {
        Record::ClusterInformation(cluster) => {
            assert_eq!(cluster.cluster_guid, "guid");
            assert_eq!(cluster.calico_version, "v3.30.0");
            Some(cluster.datastore_ready)
        }
        record => panic!("{record:?}"),
    }
}

/// Resources that are not about addresses, each with its plural and its name in etcd.
fn others() -> Vec<(&'static str, &'static str, Value)> {
    let resource = |kind: &str, metadata: Value, spec: Value| json!({"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec});
    vec![
        (
            "bgppeers",
            "peer",
            resource("BGPPeer", json!({"name": "peer"}), json!({"peerIP": "192.0.2.1", "asNumber": 64512})),
        ),
        ("tiers", "team", resource("Tier", json!({"name": "team"}), json!({"order": 100.5}))),
        (
            "networkpolicies",
            "default/team.web",
            resource(
                "NetworkPolicy",
                json!({"name": "team.web", "namespace": "default", "labels": {"a": "b"}}),
                json!({"tier": "team", "selector": "all()", "ingress": [{"action": "Allow", "source": {"nets": []}}], "types": ["Ingress"]}),
            ),
        ),
        (
            "felixconfigurations",
            "default",
            resource(
                "FelixConfiguration",
                json!({"name": "default"}),
                json!({"logSeverityScreen": "Info", "bpfEnabled": false}),
            ),
        ),
    ]
}

/// Puts a value into etcd past the driver.
async fn put(etcd: &etcd::Server, key: &str, value: &str) {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let body = json!({"key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value)});
    etcd.post("/v3/kv/put", body).await;
}

async fn moves(target: &Kubernetes, kubeconfig: &Path) {
    let Some(server) = etcd::Server::start(&etcd::Plan::default()) else { return };
    let store = server.driver();
    etcd::ready(&store).await;
    fill(&store).await;
    let folder = tempfile::tempdir().unwrap();
    let from =
        config(folder.path(), "etcd", &json!({"datastoreType": "etcdv3", "etcdEndpoints": server.endpoint}));
    let to = config(
        folder.path(),
        "kubernetes",
        &json!({"datastoreType": "kubernetes", "kubeconfig": kubeconfig}),
    );

    // Only what is locked is exported, and only where every node is one of Kubernetes.
    let open = refused(&calicoctl(&from, "datastore migrate export", ""));
    assert!(
        open.starts_with("datastore is not locked. Run the `calicoctl datastore migrate lock` command"),
        "{open}"
    );
    assert_eq!(succeeded(&calicoctl(&from, "datastore migrate lock", "")), "Datastore locked.\n");
    let stranger = refused(&calicoctl(&from, "datastore migrate export", ""));
    assert!(stranger.contains("in-etcd") && stranger.contains("orchRefs"), "{stranger}");
    let kept = succeeded(&calicoctl(&from, "datastore migrate export --keep-node-names", ""));
    assert!(kept.contains("/calico/ipam/v2/host/in-etcd/"), "{kept}");
    let place = "/calico/resources/v3/projectcalico.org/";
    let node = json!({"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "in-etcd"},
        "spec": {"orchRefs": [{"orchestrator": "k8s", "nodeName": "worker"}], "ipv4VXLANTunnelAddr": "10.0.0.64"}});
    put(&server, &format!("{place}nodes/in-etcd"), &node.to_string()).await;
    let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p4", "labels": {"team": "a"}},
        "spec": Pool::with_defaults("p4", "10.0.0.0/16".parse().unwrap()).spec_v1()});
    put(&server, &format!("{place}ippools/p4"), &pool.to_string()).await;
    put(&server, &format!("{place}futures/x"), r#"{"kind":"Future","metadata":{"name":"x"}}"#).await;
    for (plural, name, resource) in others() {
        put(&server, &format!("{place}{plural}/{name}"), &resource.to_string()).await;
    }
    let exported = calicoctl(&from, "datastore migrate export", "");
    let told = String::from_utf8_lossy(&exported.stderr).into_owned();
    assert!(told.contains("1 of futures"), "{told}");
    let text = succeeded(&exported);

    // What is no export, or not only about addresses, or beside something else, changes nothing.
    let import = "datastore migrate import -f -";
    assert!(refused(&calicoctl(&from, import, &text)).starts_with("invalid datastore type: etcdv3"));
    assert!(
        refused(&calicoctl(&to, "datastore migrate export", ""))
            .starts_with("invalid datastore type: kubernetes")
    );
    let half = &text[..text.len() / 2];
    refused(&calicoctl(&to, import, half));
    let future = format!("kind: Future\nmetadata:\n  name: a\n---\n{text}");
    assert!(refused(&calicoctl(&to, import, &future)).contains("1 Future"));
    let nowhere = text.replacen("\"namespace\": \"default\"", "\"namespace\": \"nowhere\"", 1);
    assert!(refused(&calicoctl(&to, import, &nowhere)).contains("namespace nowhere"));
    let without = text.replacen("\"blocks\": [", "\"blocks\": [], \"others\": [", 1);
    assert!(refused(&calicoctl(&to, import, &without)).contains("others"));
    server::create(target, "/api/v1/nodes", json!({"metadata": {"name": "worker"}}).to_string()).await;
    assert_eq!(target.get(&Key::ClusterInformation).await, Ok(None));

    let done = succeeded(&calicoctl(&to, import, &text));
    assert!(done.starts_with("Datastore information successfully imported."), "{done}");
    // As if it had been cut short, some of it is missing: the next finishes it.
    for key in [records("worker")[3].key(), records("worker")[9].key()] {
        let stored = target.get(&key).await.unwrap().unwrap();
        target.commit(&[], &[Write::Delete(stored.record, stored.version)]).await.unwrap();
    }
    succeeded(&calicoctl(&to, import, &text));
    assert_eq!(everything(target).await, {
        let mut wanted = records("worker");
        wanted.sort_by_key(|record| {
            let order =
                [Kind::Config, Kind::Pool, Kind::Reservation, Kind::Block, Kind::Affinity, Kind::Handle];
            (order.iter().position(|kind| *kind == record.key().kind()), record.key())
        });
        wanted
    });
    assert_eq!(is_ready(target).await, Some(false), "it stays locked");
    let get = http::Request::get("/apis/crd.projectcalico.org/v1/ippools/p4").body(Vec::new()).unwrap();
    let pool: Value = target.client().request(get).await.unwrap();
    assert_eq!(pool["metadata"]["labels"]["team"], "a", "what others wrote on it comes along");
    let worker = target.get(&Key::Node("worker".to_owned())).await.unwrap().unwrap();
    let Record::Node(worker) = worker.record else { panic!("{worker:?}") };
    assert_eq!(worker.annotations["projectcalico.org/IPv4VXLANTunnelAddr"], "10.0.0.64");

    for (plural, _, wanted) in others() {
        let found = target.others(plural).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["spec"], wanted["spec"]);
        assert_eq!(found[0]["metadata"]["labels"], wanted["metadata"]["labels"]);
        assert_eq!(found[0]["metadata"]["namespace"], wanted["metadata"]["namespace"]);
    }

    // Once more finds nothing to do. Beside something that is not in the file it is refused.
    succeeded(&calicoctl(&to, import, &text));
    let other = Record::Pool(Pool::with_defaults("other", "10.9.0.0/16".parse().unwrap()));
    target.commit(&[], &[Write::Create(other)]).await.unwrap();
    assert!(refused(&calicoctl(&to, import, &text)).contains("pool other"));
    let stored = target.get(&Key::Pool("other".to_owned())).await.unwrap().unwrap();
    target.commit(&[], &[Write::Delete(stored.record, stored.version)]).await.unwrap();
    let differs = text.replacen("\"asNumber\": 64512", "\"asNumber\": 64513", 1);
    assert!(refused(&calicoctl(&to, import, &differs)).contains("BGPPeer peer of the datastore differs"));
    let without = text.replacen("\"name\": \"peer\"", "\"name\": \"another\"", 1);
    assert!(refused(&calicoctl(&to, import, &without)).contains("BGPPeer peer of the datastore is not in"));
    assert_eq!(succeeded(&calicoctl(&to, "datastore migrate unlock", "")), "Datastore unlocked.\n");
    assert_eq!(is_ready(target).await, Some(true));
}

/// `tortie datastore copy`, not started yet.
fn copy(from: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tortie"));
    command.args(["datastore", "copy", "--from"]).arg(from).arg("--to").arg(to).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_from_etcd_to_the_embedded_server_and_on_to_etcd_and_is_resumed_after_a_kill() {
    let Some(server) = etcd::Server::start(&etcd::Plan::default()) else { return };
    let Some(third) = etcd::Server::start(&etcd::Plan::default()) else { return };
    let (store, last) = (server.driver(), third.driver());
    etcd::ready(&store).await;
    etcd::ready(&last).await;
    fill(&store).await;
    for batch in 0..5 {
        let handle = |at| {
            let blocks = BTreeMap::from([("10.0.0.64/26".parse().unwrap(), 1)]);
            Write::Create(Record::Handle(Handle { id: format!("more.{batch}.{at}"), blocks, deleted: false }))
        };
        store.commit(&[], &(0..100).map(handle).collect::<Vec<_>>()).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let target = embedded::installed(folder.path()).await;
    let of_etcd = |name, endpoint: &str| {
        config(folder.path(), name, &json!({"datastoreType": "etcdv3", "etcdEndpoints": endpoint}))
    };
    let (from, end) = (of_etcd("from", &server.endpoint), of_etcd("end", &third.endpoint));
    let kubeconfig = folder.path().join("kubeconfig");
    let to = config(folder.path(), "to", &json!({"datastoreType": "kubernetes", "kubeconfig": kubeconfig}));

    let open = refused(&copy(&from, &to, &[]).output().unwrap());
    assert!(open.contains("the source is not locked"), "{open}");
    succeeded(&calicoctl(&from, "datastore migrate lock", ""));
    let text = succeeded(&copy(&from, &to, &["--dry-run"]).output().unwrap());
    assert!(text.contains("handles: 540 to copy, 0 there already"), "{text}");
    assert_eq!(target.get(&Key::ClusterInformation).await, Ok(None));
    assert_eq!(everything(&target).await, []);

    // Killed amid the handles, and finished by the same command.
    let mut child = copy(&from, &to, &[]).spawn().unwrap();
    let progress = BufReader::new(child.stderr.take().unwrap());
    let reached = progress.lines().map(Result::unwrap).find(|line| line.starts_with("handles: "));
    assert_eq!(reached.as_deref(), Some("handles: 64 of 540"));
    child.kill().unwrap();
    child.wait().unwrap();
    let finished = copy(&from, &to, &[]).output().unwrap();
    let told = String::from_utf8_lossy(&finished.stderr).into_owned();
    let text = succeeded(&finished);
    assert!(text.contains("blocks: 0 copied, 1 there already"), "{text}");
    assert!(text.contains("The target is locked"), "{text}");
    assert!(told.is_empty() || told.contains("handles: 540 of 540"), "{told}");
    assert_eq!(everything(&target).await, everything(&store).await);
    assert_eq!(is_ready(&target).await, Some(false));

    succeeded(&copy(&to, &end, &[]).output().unwrap());
    assert_eq!(everything(&last).await, everything(&store).await);
    // Beside something that only the target has it is refused.
    let other = Record::Pool(Pool::with_defaults("other", "10.9.0.0/16".parse().unwrap()));
    last.commit(&[], &[Write::Create(other)]).await.unwrap();
    let beside = refused(&copy(&to, &end, &[]).output().unwrap());
    assert!(beside.contains("pool other is in the target and not in the source"), "{beside}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_from_etcd_to_the_embedded_server() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = embedded::serve(folder.path());
    let target = Kubernetes::connect(Some(&kubeconfig)).await.unwrap();
    moves(&target, &kubeconfig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_from_etcd_to_a_real_kube_apiserver() {
    let Some(server) = KubeApiserver::start().await else { return };
    moves(&server.driver("admin").await, &server.kubeconfig("admin")).await;
}
