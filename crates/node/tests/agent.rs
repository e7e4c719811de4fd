//! The whole agent in a namespace of its own, over an API in the test's own process: start, a burst of pods, restart.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../datastore/tests/fake/mod.rs"]
mod fake;
#[path = "../../dataplane/tests/namespace/mod.rs"]
mod namespace;

use api::attachment::{AddReply, AddRequest, Attachment, DelRequest, ErrorReply};
use datastore::backend::{Backend, Settings};
use datastore::kubernetes::Kubernetes;
use fake::{Fake, Fault};
use namespace::{Namespace, alone};
use node::{CNI_CONF_FILE, Listen, Options};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const NODE: &str = "calico-ipam-worker";
const POOL: &str = "/apis/crd.projectcalico.org/v1/ippools/default-ipv4-ippool";
const BLOCK: &str = "/apis/crd.projectcalico.org/v1/ipamblocks/192-168-131-128-26";
const HANDLES: &str = "/apis/crd.projectcalico.org/v1/ipamhandles";

/// Runs `body` beside an agent of [`NODE`], with eth0 and one other node's routes to be had.
fn with_agent<T: Future<Output = ()>>(
    name: &str,
    prepare: impl FnOnce(&Fake),
    body: impl FnOnce(Fake, Options) -> T,
) {
    alone(name, || {
        let own = Namespace(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let outside = Namespace::new();
        own.wire("eth0", "172.18.0.2/16", &outside, "peer", "172.18.0.1/16");
        let fake = Fake::new();
        fake.put(
            POOL,
            json!({"spec": {"cidr": "192.168.0.0/16", "vxlanMode": "CrossSubnet", "natOutgoing": true}}),
        );
        let address = json!({"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]});
        fake.put(&format!("/api/v1/nodes/{NODE}"), json!({"status": address}));
        fake.put(
            "/api/v1/namespaces/kube-system/configmaps/tortie-datastore",
            json!({"data": {"affinityNaming": "per-block"}}),
        );
        prepare(&fake);
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            node_name: NODE.to_owned(),
            datastore: Settings::kubernetes(None),
            listen: Listen::Path(directory.path().join("agent.sock")),
            cni_conf_dir: directory.path().join("net.d"),
            cni_plugin_socket: directory.path().join("agent.sock"),
            state_dir: Some(directory.path().join("state")),
            mtu: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let body = body(fake.clone(), options);
            tokio::time::timeout(Duration::from_secs(60), body).await.unwrap();
        });
    });
}

/// Runs `body` until it is done, with an agent beside it.
async fn beside<T>(fake: &Fake, options: &Options, body: impl Future<Output = T>) -> T {
    let store = Backend::Kubernetes(Kubernetes::with_client(fake.client()));
    tokio::select! {
        ended = node::serve(options.clone(), store) => panic!("the agent ended: {ended:?}"),
        value = body => value,
    }
}

fn socket(options: &Options) -> &Path {
    &options.cni_plugin_socket
}

/// One request, and the status and body of its answer; `None` while nobody listens.
async fn ask(options: &Options, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket(options)).await.ok()?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Waits until the agent can serve.
async fn ready(options: &Options) {
    loop {
        if let Some((200, _)) = ask(options, "GET", "/readyz", "").await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn attachment(container: &str) -> Attachment {
    let (network, interface) = ("k8s-pod-network".to_owned(), "eth0".to_owned());
    Attachment { network, container: container.to_owned(), interface }
}

async fn post<T: DeserializeOwned>(options: &Options, path: &str, body: Value) -> Result<T, ErrorReply> {
    let (status, text) = ask(options, "POST", path, &body.to_string()).await.unwrap();
    if status == 200 {
        Ok(serde_json::from_str(&text).unwrap())
    } else {
        Err(serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
    }
}

async fn add(options: &Options, container: &str) -> Result<String, ErrorReply> {
    let request = AddRequest {
        attachment: attachment(container),
        ipv4: 1,
        ipv6: 0,
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        requested: None,
        attributes: [("pod", container), ("namespace", "default")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        namespace: Some("default".to_owned()),
    };
    let reply: AddReply = post(options, "/v1/add", serde_json::to_value(request).unwrap()).await?;
    Ok(reply.addresses[0].clone())
}

async fn del(options: &Options, container: &str) -> Result<Value, ErrorReply> {
    let request = DelRequest { attachment: attachment(container), legacy_handle: None };
    post(options, "/v1/del", serde_json::to_value(request).unwrap()).await
}

fn routes() -> String {
    let output = Command::new("ip").args(["route", "show"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn handles(fake: &Fake, names: &[&str]) -> usize {
    names.iter().filter(|name| fake.object(&format!("{HANDLES}/k8s-pod-network.{name}")).is_some()).count()
}

#[test]
fn starting_agent_takes_the_tunnel_address_and_makes_the_node_usable() {
    with_agent(
        "starting_agent_takes_the_tunnel_address_and_makes_the_node_usable",
        |fake| {
            // A node that is there already, with its block.
            fake.put(
                "/api/v1/nodes/calico-ipam-worker2",
                json!({"metadata": {"annotations": {
                    "projectcalico.org/IPv4Address": "172.18.0.4/16",
                    "projectcalico.org/IPv4VXLANTunnelAddr": "192.168.112.128"}}}),
            );
            fake.put(
                "/apis/crd.projectcalico.org/v1/ipamblocks/192-168-112-128-26",
                json!({"spec": {
                    "cidr": "192.168.112.128/26", "affinity": "host:calico-ipam-worker2", "strictAffinity": false,
                    "allocations": vec![Value::Null; 64], "unallocated": (0..64).collect::<Vec<u32>>(),
                    "attributes": [], "deleted": false, "sequenceNumber": 1_700_000_000_000_000_000_u64}}),
            );
        },
        |fake, options| async move {
            let started = std::time::Instant::now();
            beside(&fake, &options, async {
                ready(&options).await;
                eprintln!("ready after {} ms", started.elapsed().as_millis());
                let node = fake.object(&format!("/api/v1/nodes/{NODE}")).unwrap();
                let annotations = &node["metadata"]["annotations"];
                assert_eq!(annotations["projectcalico.org/IPv4Address"], "172.18.0.2/16");
                assert_eq!(annotations["projectcalico.org/IPv4VXLANTunnelAddr"], "192.168.131.128");
                let affinity =
                    "/apis/crd.projectcalico.org/v1/blockaffinities/ipam-block-affinity-192-168-131-128-26";
                assert_eq!(fake.object(affinity).unwrap()["spec"]["state"], "confirmed");
                let block = fake.object(BLOCK).unwrap();
                assert_eq!(block["spec"]["attributes"][0]["secondary"]["type"], "vxlanTunnelAddress");
                let conflist = std::fs::read_to_string(options.cni_conf_dir.join(CNI_CONF_FILE)).unwrap();
                let conflist: Value = serde_json::from_str(&conflist).unwrap();
                assert_eq!(conflist["plugins"][0]["mtu"], 1450);
                let routes = routes();
                assert!(routes.contains("blackhole 192.168.131.128/26 proto 80"), "{routes}");
                assert!(
                    routes.contains("192.168.112.128/26 via 172.18.0.4 dev eth0 proto 80 onlink"),
                    "{routes}"
                );
                // The condition is written last and may still be on its way.
                let path = format!("/api/v1/nodes/{NODE}");
                fake.until(|fake| {
                    let node = fake.object(&path).unwrap();
                    node.pointer("/status/conditions/0/reason").is_some_and(|reason| reason == "CalicoIsUp")
                })
                .await;
                let (status, metrics) = ask(&options, "GET", "/metrics", "").await.unwrap();
                assert!(status == 200 && metrics.contains("tortie_agent_ready 1"), "{metrics}");
            })
            .await;
        },
    );
}

#[test]
fn thirty_pods_at_once_share_block_writes_and_survive_the_agent() {
    with_agent(
        "thirty_pods_at_once_share_block_writes_and_survive_the_agent",
        |_| {},
        |fake, options| async move {
            let names: Vec<String> = (0..30).map(|number| format!("pod{number}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let first: Vec<String> = beside(&fake, &options, async {
                ready(&options).await;
                fake.requests();
                let started = std::time::Instant::now();
                let all = futures::future::join_all(names.iter().map(|name| add(&options, name))).await;
                eprintln!("30 pods took {} ms", started.elapsed().as_millis());
                let puts = fake.requests().iter().filter(|line| *line == &format!("PUT {BLOCK}")).count();
                assert!(puts <= 3, "{puts} block writes");
                all.into_iter().map(Result::unwrap).collect()
            })
            .await;
            let distinct: BTreeSet<&String> = first.iter().collect();
            assert_eq!(distinct.len(), 30);
            assert!(first.iter().all(|address| address.ends_with("/26")), "{first:?}");
            assert_eq!(handles(&fake, &names), 30);
            // The agent was dropped in the middle of its life. Its successor knows the same addresses.
            beside(&fake, &options, async {
                ready(&options).await;
                assert_eq!(add(&options, "pod7").await.unwrap(), first[7]);
                let gone = futures::future::join_all(names.iter().map(|name| del(&options, name))).await;
                assert!(gone.iter().all(Result::is_ok), "{gone:?}");
                assert_eq!(handles(&fake, &names), 0);
                let block = fake.object(BLOCK).unwrap();
                assert_eq!(block["spec"]["unallocated"].as_array().unwrap().len(), 63);
                assert!(del(&options, "pod7").await.is_ok());
            })
            .await;
        },
    );
}

#[test]
fn lost_answers_and_a_store_that_is_away_lose_no_address_and_double_none() {
    with_agent(
        "lost_answers_and_a_store_that_is_away_lose_no_address_and_double_none",
        |_| {},
        |fake, options| async move {
            beside(&fake, &options, async {
                ready(&options).await;
                // One write in three, in no rhythm that what is tried again could fall into.
                let mut draw = 1_u64;
                fake.fail(move |method, path| {
                    draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let writes = method != "GET" && path.contains("crd.projectcalico.org");
                    (writes && (draw >> 33).is_multiple_of(3)).then_some(Fault::AnswerLost)
                });
                let mut held = BTreeSet::new();
                for number in 0..10 {
                    // Told to try again, the runtime does.
                    let address = loop {
                        match add(&options, &format!("pod{number}")).await {
                            Ok(address) => break address,
                            Err(error) => assert_eq!(error.code, 11, "{error:?}"),
                        }
                    };
                    assert!(held.insert(address));
                }
                fake.fail(|method, _| (method != "GET").then_some(Fault::Refused(503)));
                assert_eq!(add(&options, "late").await.unwrap_err().code, 11);
                fake.fail(|_, _| None);
                for number in 0..10 {
                    del(&options, &format!("pod{number}")).await.unwrap();
                }
                del(&options, "late").await.unwrap();
                let block = fake.object(BLOCK).unwrap();
                assert_eq!(block["spec"]["unallocated"].as_array().unwrap().len(), 63, "{block}");
            })
            .await;
        },
    );
}

#[test]
fn nothing_is_written_while_the_datastore_is_locked_and_plugins_are_told_to_try_again() {
    with_agent(
        "nothing_is_written_while_the_datastore_is_locked_and_plugins_are_told_to_try_again",
        |_| {},
        |fake, options| async move {
            let cluster = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
            let lock = |ready| fake.put(cluster, json!({"spec": {"datastoreReady": ready}}));
            beside(&fake, &options, async {
                ready(&options).await;
                add(&options, "before").await.unwrap();
                lock(false);
                let told = loop {
                    match ask(&options, "GET", "/v1/status", "").await.unwrap() {
                        (200, _) => tokio::task::yield_now().await,
                        (_, told) => break told,
                    }
                };
                assert!(told.contains("unlocked"), "{told}");
                fake.requests();
                let error = add(&options, "new").await.unwrap_err();
                assert!(error.code == 11 && error.message.contains("locked"), "{error:?}");
                // Kept on the node until the lock is lifted.
                del(&options, "before").await.unwrap();
                assert!(add(&options, "before").await.is_err(), "what is owed comes first");
                let written: Vec<String> =
                    fake.requests().into_iter().filter(|line| !line.starts_with("GET ")).collect();
                assert!(written.is_empty(), "{written:?}");
                // The node itself is well.
                assert_eq!(ask(&options, "GET", "/readyz", "").await.unwrap().0, 200);
                assert_eq!(handles(&fake, &["before"]), 1);
                lock(true);
                fake.until(|fake| handles(fake, &["before"]) == 0).await;
                while add(&options, "before").await.is_err() {
                    tokio::task::yield_now().await;
                }
                add(&options, "new").await.unwrap();
            })
            .await;
        },
    );
}

#[test]
fn requests_that_make_no_sense_are_told_so() {
    with_agent(
        "requests_that_make_no_sense_are_told_so",
        |_| {},
        |fake, options| async move {
            beside(&fake, &options, async {
                ready(&options).await;
                let bad: ErrorReply = post::<Value>(&options, "/v1/add", json!({"x": 1})).await.unwrap_err();
                assert_eq!(bad.code, 7);
                assert_eq!(add(&options, "a/b").await.unwrap_err().code, 7);
                let long = "x".repeat(100_000);
                let (status, _) = ask(&options, "POST", "/v1/add", &long).await.unwrap();
                assert_eq!(status, 413);
                // It goes on serving.
                assert!(add(&options, "good").await.is_ok());
            })
            .await;
        },
    );
}
