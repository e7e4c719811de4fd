//! calico-kube-controllers: gives back what deleted nodes and vanished pods have left, and makes the singletons that
//! others expect (controllers §1, §2).
//!
//! Verdicts are made by [`crate::collect`] from what is watched. Before anything is released on the word of a cache
//! the API server itself is asked whether the node, or the pod, is really gone: a cache may be behind.

use crate::cluster::{Action, Cluster, Collection, SystemClock, View, send};
use crate::collect::{Collector, Leak, Pod, Pods, Snapshot, Verdicts, needs};
use crate::object::{
    AFFINITY, CLUSTER_INFORMATION, CONTROLLERS_CONFIGURATION, Kind, NODE, Name, POD, is_deleting, items, text,
};
use crate::operator::CALICO_VERSION;
use api::{Block, Cidr, Owner};
use datastore::follow::{Change, follow};
use datastore::kubernetes::{ConnectError, Kubernetes};
use datastore::{Key, Record, Scope};
use futures::{StreamExt, stream};
use ipam::administration::release_affinities_of;
use ipam::affinity::{ReleaseTerms, release_affinity};
use ipam::block::Release;
use ipam::release::release_addresses;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// Changes that come within this time of the first are judged together.
const GATHER: Duration = Duration::from_millis(200);

/// Time between passes where the grace period asks for none.
const PERIOD: Duration = Duration::from_secs(300);

/// First wait after a pass that left something undone; doubles up to [`LONGEST_RETRY`].
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

/// Longest wait before a pass is repeated.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Questions to the API server under way at once.
const CONCURRENCY: usize = 16;

/// Grace period where the configuration names none that can be read.
const GRACE: SignedDuration = SignedDuration::from_mins(15);

const WATCHED: [Collection; 5] =
    [(POD, ""), (NODE, ""), (AFFINITY, ""), (CLUSTER_INFORMATION, ""), (CONTROLLERS_CONFIGURATION, "")];

/// What the controllers need to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Credentials and address of the API server.
    pub kubeconfig: PathBuf,
}

/// Every block, followed.
#[derive(Debug, Default)]
struct Blocks {
    blocks: BTreeMap<Cidr, Block>,
    /// Known to be complete.
    synced: bool,
}

impl Blocks {
    fn take_in(&mut self, change: Change) {
        match change {
            Change::Reset(listing) => {
                self.blocks.clear();
                for stored in listing.items {
                    self.put(stored.record);
                }
                self.synced = true;
            }
            Change::Put(stored) => self.put(stored.record),
            Change::Deleted(Key::Block(cidr), _) => {
                self.blocks.remove(&cidr);
            }
            Change::Deleted(..) => {}
            Change::Progress(_) => self.synced = true,
            Change::Lost(error) => {
                tracing::warn!(%error, "lost sight of the blocks");
                self.synced = false;
            }
        }
    }

    fn put(&mut self, record: Record) {
        if let Record::Block(block) = record {
            self.blocks.insert(block.cidr, block);
        }
    }
}

/// Runs the controllers until the process ends. A lost API server is waited for.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn run(options: Options) -> Result<(), ConnectError> {
    drive(Kubernetes::connect(Some(&options.kubeconfig)).await?).await;
    Ok(())
}

/// The loop; it does not end.
pub(crate) async fn drive(store: Kubernetes) {
    let mut cluster = Cluster::watch_reduced(store.client(), &WATCHED, reduce);
    let mut changes = follow(store.clone(), Scope::All(datastore::Kind::Block));
    let mut blocks = Blocks::default();
    let mut collector = Collector::default();
    let identity = uuid::Uuid::new_v4().simple().to_string();
    let mut retry = Duration::ZERO;
    tracing::info!("controllers started");
    loop {
        let rest = if retry.is_zero() { period(&cluster.view) } else { retry };
        gather(&mut cluster, &mut changes, &mut blocks, rest).await;
        if !cluster.is_complete() {
            continue;
        }
        cluster.settle(|view| singletons(view, &identity)).await;
        if !blocks.synced || !is_ready(&cluster.view) {
            continue;
        }
        let verdicts = judge(&mut collector, &cluster.view, &blocks.blocks);
        let done = carry_out(&store, verdicts).await;
        retry = if done { Duration::ZERO } else { (retry * 2).clamp(SHORTEST_RETRY, LONGEST_RETRY) };
    }
}

/// Waits for a change, at most `rest`, and takes in those that come right after it.
async fn gather(
    cluster: &mut Cluster,
    changes: &mut (impl futures::Stream<Item = Change> + Unpin),
    blocks: &mut Blocks,
    rest: Duration,
) {
    let mut until = tokio::time::Instant::now() + rest;
    let mut gathering = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            () = cluster.changed(rest) => {}
            Some(change) = changes.next() => blocks.take_in(change),
        }
        if !gathering {
            gathering = true;
            until = tokio::time::Instant::now() + GATHER.min(rest);
        }
    }
}

/// Keeps of an object what the verdicts look at: there are many of them.
fn reduce(kind: Kind, object: &mut Value) {
    let keep = |from: &Value, pointers: &[&str]| -> Value {
        let mut kept = json!({"metadata": {}});
        for pointer in pointers {
            if let Some(value) = from.pointer(pointer) {
                let mut place = &mut kept;
                for part in pointer.split('/').skip(1) {
                    place = &mut place[part.replace("~1", "/")];
                }
                *place = value.clone();
            }
        }
        kept
    };
    let identity = ["/metadata/name", "/metadata/namespace", "/metadata/uid", "/metadata/resourceVersion"];
    let more: &[&str] = match kind {
        POD => &[
            "/metadata/deletionTimestamp",
            "/metadata/annotations/cni.projectcalico.org~1podIP",
            "/metadata/annotations/cni.projectcalico.org~1podIPs",
            "/spec/nodeName",
            "/status/phase",
            "/status/reason",
            "/status/podIP",
            "/status/podIPs",
        ],
        NODE => &[],
        AFFINITY => &["/spec/node", "/spec/type"],
        _ => return,
    };
    *object = keep(object, &[&identity, more].concat());
}

/// What a pod object says about its addresses.
fn pod(object: &Value) -> Pod {
    let phase = text(object, "/status/phase");
    let annotation = |key: &str| {
        object.pointer("/metadata/annotations").and_then(|all| all.get(key)).and_then(Value::as_str)
    };
    let reported = annotation("cni.projectcalico.org/podIP");
    let plural = annotation("cni.projectcalico.org/podIPs").unwrap_or_default();
    let texts = items(object, "/status/podIPs")
        .iter()
        .map(|entry| text(entry, "/ip"))
        .chain([text(object, "/status/podIP")])
        .chain(plural.split(','))
        .chain(reported);
    let addresses = texts
        .filter_map(|written| written.trim().split('/').next()?.parse().ok())
        .collect::<BTreeSet<std::net::IpAddr>>();
    // The plugin empties its annotation once the addresses of a pod that goes away are given back.
    let given_back = is_deleting(object) && reported == Some("");
    Pod {
        node: text(object, "/spec/nodeName").to_owned(),
        addresses,
        finished: matches!(phase, "Failed" | "Succeeded") || given_back,
        evicted: phase == "Failed" && text(object, "/status/reason") == "Evicted",
    }
}

/// The objects that others expect to be there.
fn singletons(view: &View, identity: &str) -> Vec<Action> {
    let mut actions = Vec::new();
    let default = Name::cluster("default");
    if view.get(CLUSTER_INFORMATION, &default).is_none() {
        actions.push(Action::Create(
            CLUSTER_INFORMATION,
            json!({
                "apiVersion": CLUSTER_INFORMATION.api_version,
                "kind": CLUSTER_INFORMATION.name,
                "metadata": {"name": "default"},
                "spec": {
                    "calicoVersion": CALICO_VERSION,
                    "clusterGUID": identity,
                    "clusterType": "typha,kdd,k8s,operator",
                    "datastoreReady": true,
                },
            }),
        ));
    }
    if view.get(CONTROLLERS_CONFIGURATION, &default).is_none() {
        let period = json!({"reconcilerPeriod": "5m0s"});
        actions.push(Action::Create(
            CONTROLLERS_CONFIGURATION,
            json!({
                "apiVersion": CONTROLLERS_CONFIGURATION.api_version,
                "kind": CONTROLLERS_CONFIGURATION.name,
                "metadata": {"name": "default"},
                "spec": {
                    "controllers": {
                        "node": {
                            "hostEndpoint": {"autoCreate": "Disabled"},
                            "leakGracePeriod": "15m0s",
                            "reconcilerPeriod": "5m0s",
                            "syncLabels": "Enabled",
                        },
                        "loadBalancer": {"assignIPs": "AllServices"},
                        "namespace": period,
                        "policy": period,
                        "serviceAccount": period,
                        "workloadEndpoint": period,
                    },
                    "etcdV3CompactionPeriod": "10m0s",
                    "healthChecks": "Enabled",
                    "logSeverityScreen": "Info",
                    "prometheusMetricsPort": 9094,
                },
            }),
        ));
    }
    actions
}

/// Whether the cluster's information allows writers to write.
fn is_ready(view: &View) -> bool {
    let information = view.get(CLUSTER_INFORMATION, &Name::cluster("default"));
    information
        .is_some_and(|object| object.pointer("/spec/datastoreReady").and_then(Value::as_bool) != Some(false))
}

/// The configured node controller, `None` if it is switched off.
fn node_controller(view: &View) -> Option<&Value> {
    view.get(CONTROLLERS_CONFIGURATION, &Name::cluster("default"))?.pointer("/spec/controllers/node")
}

/// How long an address may be without its pod.
fn grace(view: &View) -> SignedDuration {
    let written = node_controller(view).map(|node| text(node, "/leakGracePeriod")).unwrap_or_default();
    match written.parse() {
        Ok(grace) => grace,
        Err(_) if written.is_empty() => GRACE,
        Err(error) => {
            tracing::warn!(written, %error, "leakGracePeriod cannot be read, 15 minutes hold");
            GRACE
        }
    }
}

/// Time between two passes in which nothing changes: half the grace period.
fn period(view: &View) -> Duration {
    match Duration::try_from(grace(view) / 2) {
        Ok(half) if !half.is_zero() => half.min(PERIOD),
        _ => PERIOD,
    }
}

fn judge(collector: &mut Collector, view: &View, blocks: &BTreeMap<Cidr, Block>) -> Verdicts {
    if node_controller(view).is_none() {
        return Verdicts::default();
    }
    let nodes = view.all(NODE).map(|node| text(node, "/metadata/name").to_owned()).collect();
    let pods: Pods = view
        .all(POD)
        .map(|object| {
            let name = Name::of(object);
            ((name.namespace, name.name), pod(object))
        })
        .collect();
    let claimants = view
        .all(AFFINITY)
        .filter(|affinity| text(affinity, "/spec/type") != "virtual")
        .map(|affinity| text(affinity, "/spec/node").to_owned())
        .collect();
    collector.step(&Snapshot {
        nodes: &nodes,
        pods: &pods,
        blocks,
        claimants: &claimants,
        grace: Some(grace(view)),
        now: Timestamp::now(),
    })
}

/// Releases what the verdicts name and the API server confirms. False if something is left to do.
async fn carry_out(store: &Kubernetes, verdicts: Verdicts) -> bool {
    let mut done = true;
    let doubtful = verdicts.leaks.iter().filter(|leak| leak.recheck.is_none()).map(|leak| leak.node.clone());
    let suspected: BTreeSet<String> = verdicts.gone.iter().cloned().chain(doubtful).collect();
    let gone: BTreeSet<String> = stream::iter(suspected)
        .map(|node| async move { is_gone(store, &NODE.path(""), &node).await.then_some(node) })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let gone_nodes = &gone;
    let confirmed: Vec<Leak> = stream::iter(verdicts.leaks)
        .map(|leak| async move {
            let released = match &leak.recheck {
                None => gone_nodes.contains(&leak.node),
                Some(_) => is_leak(store, &leak).await,
            };
            released.then_some(leak)
        })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready)
        .collect()
        .await;
    if !confirmed.is_empty() {
        done &= release(store, &confirmed).await;
    }
    for node in verdicts.gone.iter().filter(|node| gone.contains(*node)) {
        let terms = ReleaseTerms { must_be_empty: true, owner_gone: true, ..ReleaseTerms::default() };
        match release_affinities_of(store, &SystemClock, &Owner::host(node), terms).await {
            Ok(blocks) => tracing::info!(node, blocks, "released deleted node"),
            Err(error) => {
                tracing::warn!(node, %error, "could not release deleted node yet");
                done = false;
            }
        }
    }
    for (owner, cidr, sequence) in verdicts.spare {
        let terms = ReleaseTerms {
            must_be_empty: true,
            required_sequence: Some(sequence),
            ..ReleaseTerms::default()
        };
        match release_affinity(store, &SystemClock, &owner, cidr, terms).await {
            Ok(()) => tracing::info!(node = owner.name, block = %cidr, "released empty block"),
            Err(error) => tracing::warn!(node = owner.name, block = %cidr, %error, "kept empty block"),
        }
    }
    done
}

async fn release(store: &Kubernetes, leaks: &[Leak]) -> bool {
    let releases: Vec<Release> = leaks.iter().map(|leak| leak.release.clone()).collect();
    match release_addresses(store, &SystemClock, &releases).await {
        Ok(outcome) => {
            for leak in leaks.iter().filter(|leak| outcome.released.contains(&leak.release.address)) {
                let handle = leak.release.handle.as_deref().unwrap_or_default();
                tracing::info!(address = %leak.release.address, node = leak.node, handle, block = %leak.block, "released leaked address");
            }
            for (block, failure) in &outcome.failed {
                tracing::warn!(%block, error = %failure, "could not release leaked addresses yet");
            }
            outcome.failed.is_empty()
        }
        Err(error) => {
            tracing::warn!(%error, "could not release leaked addresses yet");
            false
        }
    }
}

/// Whether the API server knows no such object. A failure to answer is no answer.
async fn is_gone(store: &Kubernetes, collection: &str, name: &str) -> bool {
    match send(&store.client(), "GET", &format!("{collection}/{name}"), None).await {
        Ok(_) => false,
        Err(refusal) => refusal.code == 404,
    }
}

/// Whether the API server, too, knows no pod that needs the address.
async fn is_leak(store: &Kubernetes, leak: &Leak) -> bool {
    let Some((namespace, name)) = &leak.recheck else { return false };
    let path = format!("{}/{name}", POD.path(namespace));
    match send(&store.client(), "GET", &path, None).await {
        Ok(object) => !needs(Some(&pod(&object)), &leak.node, leak.release.address),
        Err(refusal) => refusal.code == 404,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(kind: Kind, object: Value) -> View {
        let mut view = View::default();
        let mut object = object;
        object["metadata"]["name"] = json!("default");
        object["metadata"]["resourceVersion"] = json!("1");
        view.put(kind, object);
        view
    }

    #[test]
    fn reduced_pod_is_judged_like_the_whole_one() {
        let whole = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "3", "labels": {"a": "b"},
                "annotations": {"cni.projectcalico.org/podIP": "10.0.0.1/32", "other": "x"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let mut reduced = whole.clone();
        reduce(POD, &mut reduced);
        assert_eq!(pod(&reduced), pod(&whole));
        assert_eq!(Name::of(&reduced), Name::within("d", "p"));
        assert!(reduced.pointer("/spec/containers").is_none());
        assert_eq!(pod(&whole).addresses.len(), 2);
        assert!(!pod(&whole).finished);
    }

    #[test]
    fn pod_whose_addresses_the_plugin_gave_back_is_finished() {
        let object = json!({"metadata": {"deletionTimestamp": "2026-11-21T12:00:00Z",
            "annotations": {"cni.projectcalico.org/podIP": ""}}, "status": {"podIP": "10.0.0.1"}});
        assert!(pod(&object).finished);
    }

    #[test]
    fn missing_singletons_are_made_once() {
        let made = singletons(&View::default(), "guid");
        assert_eq!(made.len(), 2);
        let mut view = View::default();
        for action in made {
            let Action::Create(kind, mut object) = action else { panic!("{action:?}") };
            object["metadata"]["resourceVersion"] = json!("1");
            view.put(kind, object);
        }
        assert_eq!(singletons(&view, "other"), []);
        assert!(is_ready(&view));
        assert_eq!(grace(&view), GRACE);
        assert_eq!(period(&view), PERIOD);
    }

    #[test]
    fn nothing_is_written_while_the_datastore_is_not_ready() {
        assert!(!is_ready(&view(CLUSTER_INFORMATION, json!({"spec": {"datastoreReady": false}}))));
        assert!(!is_ready(&View::default()));
        assert!(is_ready(&view(CLUSTER_INFORMATION, json!({"spec": {}}))));
    }

    #[test]
    fn grace_period_is_read_in_the_words_of_go() {
        for (written, seconds) in [("15m0s", 900), ("1h30m", 5400), ("0s", 0), ("", 900), ("soon", 900)] {
            let spec = json!({"spec": {"controllers": {"node": {"leakGracePeriod": written}}}});
            assert_eq!(grace(&view(CONTROLLERS_CONFIGURATION, spec)).as_secs(), seconds, "{written}");
        }
        let off = json!({"spec": {"controllers": {}}});
        assert_eq!(node_controller(&view(CONTROLLERS_CONFIGURATION, off)), None);
    }
}
