//! The plugin on a node without an agent, with Calico's configuration: over a real etcd, and over the embedded API server.

#![expect(clippy::unwrap_used, reason = "tests")]

mod embedded;
#[path = "../../datastore/tests/etcd/server.rs"]
#[expect(dead_code, reason = "what only the tests of etcd itself need")]
mod etcd;

use api::{Node, Pool};
use datastore::{Datastore, Record, Write};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The plugin, which is built beside `tortie`. Without it the tests say so and run nothing.
fn plugin() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_tortie")).with_file_name("calico-ipam");
    if path.is_file() {
        return Some(path);
    }
    let required = std::env::var_os("TORTIE_REQUIRE_ETCD").is_some_and(|value| value != "0");
    assert!(!required, "no {}: cargo build -p cni makes it", path.display());
    std::io::stderr()
        .write_all(b"SKIPPED: no calico-ipam beside tortie; cargo build -p cni makes it\n")
        .unwrap();
    None
}

fn begin(plugin: &Path, command: &str, container: &str, config: &Value) -> Child {
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", "/nonexistent/netns")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/nonexistent")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child
}

fn call(plugin: &Path, command: &str, container: &str, config: &Value) -> Output {
    begin(plugin, command, container, config).wait_with_output().unwrap()
}

fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn refused(output: &Output) -> u64 {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    error["code"].as_u64().unwrap()
}

async fn prepare<D: Datastore>(store: &D) {
    let pool = Record::Pool(Pool::with_defaults("p", "10.0.0.0/24".parse().unwrap()));
    store.commit(&[], &[Write::Create(pool)]).await.unwrap();
}

/// Everything that a runtime asks, with a configuration that names the datastore as Calico's does.
fn serves(plugin: &Path, folder: &Path, datastore: &[(&str, Value)]) -> Value {
    let lock = folder.join("calico/ipam.lock");
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "k8s-pod-network", "type": "calico", "nodename": "n1",
        "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}, "ipam_lock_file": lock,
    });
    config
        .as_object_mut()
        .unwrap()
        .extend(datastore.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    succeeded(&call(plugin, "STATUS", "", &config));
    let first = succeeded(&call(plugin, "ADD", "a", &config));
    assert!(first["ips"][0]["address"].as_str().unwrap().ends_with("/26"), "{first}");
    assert_eq!(succeeded(&call(plugin, "ADD", "a", &config)), first);
    let mut checked = config.clone();
    checked["prevResult"] = first.clone();
    succeeded(&call(plugin, "CHECK", "a", &checked));
    assert_eq!(refused(&call(plugin, "CHECK", "b", &checked)), 101);
    // Whoever holds Calico's lock keeps this from assigning.
    let held = File::open(&lock).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let mut waiting = begin(plugin, "ADD", "b", &config);
    while !is_waiting(&lock) {
        assert!(waiting.try_wait().unwrap().is_none(), "the lock is not waited for");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(held);
    let second = succeeded(&waiting.wait_with_output().unwrap());
    assert_ne!(second["ips"], first["ips"]);
    // The runtime knows `b` only.
    let mut kept = config.clone();
    kept["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    succeeded(&call(plugin, "GC", "", &kept));
    assert_eq!(refused(&call(plugin, "CHECK", "a", &checked)), 101);
    checked["prevResult"] = second;
    succeeded(&call(plugin, "CHECK", "b", &checked));
    for _ in 0..2 {
        succeeded(&call(plugin, "DEL", "b", &checked));
    }
    assert_eq!(refused(&call(plugin, "CHECK", "b", &checked)), 101);
    config
}

/// Whether somebody waits for the lock of this file, as the kernel lists it.
fn is_waiting(lock: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", std::fs::metadata(lock).unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("->") && line.contains(&inode))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calicos_configuration_for_etcd_works_without_an_agent() {
    let Some(plugin) = plugin() else { return };
    let Some(mut server) = etcd::Server::start(&etcd::Plan::default()) else { return };
    let store = server.driver();
    etcd::ready(&store).await;
    prepare(&store).await;
    let node = Record::Node(Node { name: "n1".to_owned(), ..Node::default() });
    store.commit(&[], &[Write::Create(node)]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keys = [("datastore_type", json!("etcdv3")), ("etcd_endpoints", json!(server.endpoint.clone()))];
    let mut config = serves(&plugin, folder.path(), &keys);
    // One that answers nothing any more: a runtime is told soon.
    server.pause();
    for command in ["ADD", "DEL"] {
        let since = Instant::now();
        assert_eq!(refused(&call(&plugin, command, "c", &config)), 11);
        assert!(since.elapsed() < Duration::from_secs(2), "{command}: {:?}", since.elapsed());
    }
    assert_eq!(refused(&call(&plugin, "STATUS", "", &config)), 51);
    server.resume();
    server.kill();
    assert_eq!(refused(&call(&plugin, "ADD", "c", &config)), 11);
    // An agent that is named is never gone past.
    config["ipam"]["agent_socket"] = json!(folder.path().join("agent.sock"));
    assert_eq!(refused(&call(&plugin, "STATUS", "", &config)), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calicos_configuration_for_kubernetes_works_without_an_agent() {
    let Some(plugin) = plugin() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = embedded::installed(folder.path()).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    embedded::create(&store, "/api/v1/nodes", &node).await;
    prepare(&store).await;
    let kubeconfig = folder.path().join("kubeconfig");
    let keys = [("datastore_type", json!("kubernetes")), ("kubernetes", json!({"kubeconfig": kubeconfig}))];
    let path = folder.path().to_owned();
    tokio::task::spawn_blocking(move || serves(&plugin, &path, &keys)).await.unwrap();
}
