//! calico-kube-controllers: gives back what deleted nodes and vanished pods have left, and makes the singletons that
//! others expect (controllers §1, §2).
//!
//! Verdicts are [`ipam::collect`]'s, made from what is watched. It asks before anything is released on the word of a cache;
//! the API server itself answers whether the node, or the pod, is really gone: a cache may be behind.

use crate::cluster::{Action, Cluster, Collection, SystemClock, View, send};
use crate::object::{
    CLUSTER_INFORMATION, CONTROLLERS_CONFIGURATION, Kind, NODE, Name, POD, is_deleting, items, text,
};
use crate::operator::CALICO_VERSION;
use api::ClusterInformation;
use datastore::backend::{Backend, Settings, SettingsError};
use datastore::follow::{Change, follow};
use datastore::gate::Gate;
use datastore::{Datastore as _, Key, Record, Scope, Stored, Write};
use futures::{StreamExt, stream};
use ipam::collect::{
    Answers, Collector, Effect, Event, Note, Outcome, Pod, Questions, Records, Task, carry_out,
};
use ipam::seen::{self, Seen};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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

/// What is watched at the Kubernetes API; the last two only where it is the datastore.
const WATCHED: [Collection; 4] =
    [(POD, ""), (NODE, ""), (CLUSTER_INFORMATION, ""), (CONTROLLERS_CONFIGURATION, "")];

/// Records that are followed; the last two only in etcd, where nothing else tells of them.
const FOLLOWED: [datastore::Kind; 5] = [
    datastore::Kind::Block,
    datastore::Kind::Affinity,
    datastore::Kind::Config,
    datastore::Kind::ClusterInformation,
    datastore::Kind::Node,
];

/// Why the controllers did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to the datastore or to the Kubernetes API.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Beside etcd nothing says where pods are.
    #[error(
        "the controllers need the Kubernetes API to know which pods there are: name one with KUBECONFIG or --kubeconfig"
    )]
    NoKubernetes,
}

/// The datastore, and the Kubernetes API that knows pods and nodes.
#[derive(Clone)]
pub(crate) struct Reach {
    store: Gate<Backend>,
    client: Client,
}

impl Reach {
    /// A datastore with the API that is it, or stands beside it.
    pub(crate) fn new(store: Backend, client: Client) -> Self {
        Self { store: Gate::new(store), client }
    }

    fn is_etcd(&self) -> bool {
        matches!(self.store.behind(), Backend::Etcd(_))
    }

    fn watched(&self) -> &'static [Collection] {
        if self.is_etcd() { &WATCHED[..2] } else { &WATCHED }
    }

    fn followed(&self) -> &'static [datastore::Kind] {
        if self.is_etcd() { &FOLLOWED } else { &FOLLOWED[..3] }
    }
}

/// Blocks, affinities and the configuration, followed; in etcd more.
#[derive(Debug)]
struct Followed {
    records: Arc<Records>,
    /// The cluster's information, in etcd.
    cluster: Option<ClusterInformation>,
    /// Nodes that have a record, in etcd.
    nodes: BTreeMap<String, Seen<api::Node>>,
    /// Kinds known to be complete.
    synced: BTreeSet<datastore::Kind>,
}

impl Default for Followed {
    /// Until the configuration was understood once nobody can say how long what is released rests: it goes on doing so.
    fn default() -> Self {
        let records = Records { cooldown_seconds: u32::MAX, ..Records::default() };
        Self { records: Arc::new(records), cluster: None, nodes: BTreeMap::new(), synced: BTreeSet::new() }
    }
}

impl Followed {
    fn is_complete(&self, kinds: &[datastore::Kind]) -> bool {
        self.synced.len() == kinds.len()
    }

    fn take_in(&mut self, kind: datastore::Kind, change: Change) {
        match change {
            Change::Reset(listing) => {
                let records = Arc::make_mut(&mut self.records);
                match kind {
                    datastore::Kind::Block => records.blocks.clear(),
                    datastore::Kind::Affinity => records.affinities.clear(),
                    datastore::Kind::ClusterInformation => self.cluster = None,
                    datastore::Kind::Node => self.nodes.clear(),
                    _ if listing.unreadable.contains(&Key::Config) => {}
                    _ => records.cooldown_seconds = 0,
                }
                for stored in listing.items {
                    self.put(stored);
                }
                self.synced.insert(kind);
            }
            Change::Put(stored) => self.put(stored),
            Change::Deleted(Key::ClusterInformation, _) => self.cluster = None,
            Change::Deleted(Key::Node(name), _) => {
                self.nodes.remove(&name);
            }
            Change::Deleted(key, _) => forget(Arc::make_mut(&mut self.records), &key),
            // They are there, and hold as they were understood last.
            Change::Unreadable(Key::Node(_) | Key::ClusterInformation | Key::Config, _) => {}
            // What cannot be understood is not judged; a task that depends on it reads it, and fails.
            Change::Unreadable(key, _) => forget(Arc::make_mut(&mut self.records), &key),
            Change::Progress(_) => {
                self.synced.insert(kind);
            }
            Change::Lost(error) => {
                tracing::warn!(%error, "lost sight of the {kind}");
                self.synced.remove(&kind);
            }
        }
    }

    fn put(&mut self, stored: Stored) {
        match stored.record {
            Record::ClusterInformation(cluster) => self.cluster = Some(cluster),
            Record::Node(node) => {
                let seen = Seen::written(node, stored.version, stored.created);
                self.nodes.insert(seen.value.name.clone(), seen);
            }
            _ => put(Arc::make_mut(&mut self.records), stored),
        }
    }
}

fn put(records: &mut Records, stored: Stored) {
    let key = stored.record.key();
    if stored.record.is_deleted() {
        forget(records, &key);
        return;
    }
    let Stored { record, version, created } = stored;
    match record {
        Record::Block(block) => {
            records.blocks.insert(block.cidr, Seen::written(block, version, created));
        }
        Record::Affinity(affinity) => {
            let place = |seen: &Seen<api::Affinity>| (seen.value.cidr, seen.value.owner.clone());
            let seen = Seen::written(affinity, version, created);
            match records.affinities.binary_search_by_key(&place(&seen), place) {
                Ok(at) => records.affinities[at] = seen,
                Err(at) => records.affinities.insert(at, seen),
            }
        }
        Record::Config(config) => records.cooldown_seconds = config.ip_cooldown_seconds,
        _ => {}
    }
}

fn forget(records: &mut Records, key: &Key) {
    match key {
        Key::Block(cidr) => {
            records.blocks.remove(cidr);
        }
        Key::Affinity(owner, cidr) => {
            records.affinities.retain(|seen| seen.value.cidr != *cidr || seen.value.owner != *owner);
        }
        Key::Config => records.cooldown_seconds = 0,
        _ => {}
    }
}

/// Runs the controllers until the process ends. A lost API server is waited for.
///
/// # Errors
/// When the settings cannot be used, or name no Kubernetes API.
pub async fn run(settings: &Settings) -> Result<(), RunError> {
    let store = settings.connect().await?;
    let client = settings.client(&store).await?.ok_or(RunError::NoKubernetes)?;
    drive(Reach::new(store, client)).await;
    Ok(())
}

/// The loop; it does not end.
pub(crate) async fn drive(reach: Reach) {
    let mut cluster = Cluster::watch_reduced(reach.client.clone(), reach.watched(), reduce);
    let mut changes = stream::select_all(reach.followed().iter().map(|kind| {
        let kind = *kind;
        follow(reach.store.clone(), Scope::All(kind)).map(move |change| (kind, change)).boxed()
    }));
    let mut followed = Followed::default();
    let mut collector = Collector::default();
    let identity = uuid::Uuid::new_v4().simple().to_string();
    let mut retry = Duration::ZERO;
    let mut handles_due = tokio::time::Instant::now();
    tracing::info!("controllers started");
    loop {
        let regular = period(grace_in(&reach, &cluster.view));
        let rest = if retry.is_zero() { regular } else { retry };
        gather(&mut cluster, &mut changes, &mut followed, rest).await;
        if !cluster.is_complete() {
            continue;
        }
        if reach.is_etcd() {
            if followed.is_complete(reach.followed()) && followed.cluster.is_none() {
                introduce(&reach.store, &identity).await;
            }
        } else {
            cluster.settle(|view| singletons(view, &identity)).await;
        }
        let Some(grace) = grace_in(&reach, &cluster.view) else { continue };
        if !followed.is_complete(reach.followed()) || !is_ready(&reach, &cluster.view, &followed) {
            continue;
        }
        // Handles are many and nobody else needs to see them: they are listed with the passes that time brings.
        let handles = handles_due <= tokio::time::Instant::now();
        if handles {
            handles_due = tokio::time::Instant::now() + regular;
        }
        let order = Event::Begin { handles, grace: Some(grace) };
        let done = pass(&reach, &mut collector, &cluster.view, &followed, order).await;
        retry = if done { Duration::ZERO } else { (retry * 2).clamp(SHORTEST_RETRY, LONGEST_RETRY) };
    }
}

/// Waits for a change, at most `rest`, and takes in those that come right after it.
async fn gather(
    cluster: &mut Cluster,
    changes: &mut (impl futures::Stream<Item = (datastore::Kind, Change)> + Unpin),
    followed: &mut Followed,
    rest: Duration,
) {
    let mut until = tokio::time::Instant::now() + rest;
    let mut gathering = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            () = cluster.changed(rest) => {}
            Some((kind, change)) = changes.next() => followed.take_in(kind, change),
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
            "/metadata/annotations/kubernetes.io~1config.mirror",
            "/metadata/annotations/cni.projectcalico.org~1podIP",
            "/metadata/annotations/cni.projectcalico.org~1podIPs",
            "/spec/nodeName",
            "/status/phase",
            "/status/reason",
            "/status/podIP",
            "/status/podIPs",
        ],
        NODE => &[],
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
    // The mirror of a static pod has another uid than the one that the kubelet tells plugins.
    let mirror = annotation("kubernetes.io/config.mirror").is_some();
    Pod {
        uid: if mirror { String::new() } else { text(object, "/metadata/uid").to_owned() },
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

/// Makes the cluster's information in etcd, where nobody has yet.
async fn introduce(store: &Gate<Backend>, identity: &str) {
    let cluster = ClusterInformation {
        datastore_ready: true,
        cluster_guid: identity.to_owned(),
        calico_version: CALICO_VERSION.to_owned(),
        ..ClusterInformation::default()
    };
    // Whoever was quicker is learnt of by following.
    if let Err(error) = store.commit(&[], &[Write::Create(Record::ClusterInformation(cluster))]).await {
        tracing::warn!(%error, "could not make the cluster's information");
    }
}

/// Whether the cluster's information allows writers to write.
fn is_ready(reach: &Reach, view: &View, followed: &Followed) -> bool {
    if reach.is_etcd() {
        return followed.cluster.as_ref().is_some_and(|cluster| cluster.datastore_ready);
    }
    is_ready_in(view)
}

/// The same of the object in the Kubernetes API.
fn is_ready_in(view: &View) -> bool {
    let information = view.get(CLUSTER_INFORMATION, &Name::cluster("default"));
    information
        .is_some_and(|object| object.pointer("/spec/datastoreReady").and_then(Value::as_bool) != Some(false))
}

/// The configured node controller, `None` if it is switched off.
fn node_controller(view: &View) -> Option<&Value> {
    view.get(CONTROLLERS_CONFIGURATION, &Name::cluster("default"))?.pointer("/spec/controllers/node")
}

/// How long an address may be without its pod; `None` where the collector is switched off. In etcd nothing here reads the
/// controllers' configuration, and Calico's defaults hold.
fn grace_in(reach: &Reach, view: &View) -> Option<SignedDuration> {
    if reach.is_etcd() {
        return Some(GRACE);
    }
    node_controller(view).map(|_| grace(view))
}

/// The configured time.
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
fn period(grace: Option<SignedDuration>) -> Duration {
    match Duration::try_from(grace.unwrap_or(GRACE) / 2) {
        Ok(half) if !half.is_zero() => half.min(PERIOD),
        _ => PERIOD,
    }
}

/// One pass of the collector. False if something is left to do.
async fn pass(
    reach: &Reach,
    collector: &mut Collector,
    view: &View,
    followed: &Followed,
    order: Event,
) -> bool {
    let store = &reach.store;
    let mut done = forget_nodes(reach, view, followed).await;
    let mut tasks = Vec::new();
    let mut effects = collector.step(Timestamp::now(), order);
    while let Some(effect) = effects.pop() {
        let event = match effect {
            Effect::ListRecords { handles: false } => Event::Records(Arc::clone(&followed.records)),
            Effect::ListRecords { handles: true } => with_handles(store, &followed.records).await,
            Effect::ListCluster => Event::Cluster(watched_cluster(view, followed)),
            Effect::Ask(questions) => Event::Answers(ask(reach, questions).await),
            Effect::Do(task) => {
                tasks.push(task);
                continue;
            }
            Effect::Note(note) => {
                log(&note);
                continue;
            }
        };
        done &= !matches!(event, Event::Failed);
        effects.extend(collector.step(Timestamp::now(), event));
    }
    // What deleted nodes had is released before their blocks are given up, which must be empty for it.
    let (releases, rest): (Vec<Task>, Vec<Task>) =
        tasks.into_iter().partition(|task| matches!(task, Task::Release { .. }));
    for tasks in [releases, rest] {
        let outcomes: Vec<bool> = stream::iter(tasks)
            .map(|task| async move { perform(store, &task).await })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        done &= outcomes.into_iter().all(|done| done);
    }
    done
}

/// Deletes the records in etcd of nodes whose Node of Kubernetes is gone, as the API server itself says. What they had is given
/// up by the collector once the record is seen to be gone. False if something is left to do.
async fn forget_nodes(reach: &Reach, view: &View, followed: &Followed) -> bool {
    let known: BTreeSet<&str> = view.all(NODE).map(|node| text(node, "/metadata/name")).collect();
    let mut done = true;
    for seen in followed.nodes.values() {
        let Some(name) = &seen.value.kubernetes_name else { continue };
        if known.contains(name.as_str()) || !has_no_object(reach, name).await || is_locked(&reach.store).await
        {
            continue;
        }
        let write = Write::Delete(Record::Node(seen.value.clone()), seen.version.clone());
        match reach.store.commit(&[], &[write]).await {
            Ok(_) => tracing::info!(node = seen.value.name, "deleted the record of a deleted node"),
            Err(error) => {
                tracing::warn!(node = seen.value.name, %error, "left for later");
                done = false;
            }
        }
    }
    done
}

/// The followed records and a list of handles.
async fn with_handles(store: &Gate<Backend>, followed: &Arc<Records>) -> Event {
    match seen::list::<api::Handle, _>(store, &Scope::All(datastore::Kind::Handle)).await {
        Ok(handles) => {
            let mut records = Records::clone(followed);
            records.handles = Some(
                handles
                    .into_iter()
                    .filter(|seen| !seen.value.deleted)
                    .map(|seen| (seen.value.id.clone(), seen))
                    .collect(),
            );
            Event::Records(Arc::new(records))
        }
        Err(error) => {
            tracing::warn!(%error, "could not list the handles");
            Event::Failed
        }
    }
}

/// Nodes are those of the API, and those with a record in etcd: there a node need not be one of Kubernetes, and is
/// never given up while its record stands.
fn watched_cluster(view: &View, followed: &Followed) -> ipam::collect::Cluster {
    let objects = view.all(NODE).map(|node| text(node, "/metadata/name").to_owned());
    ipam::collect::Cluster {
        nodes: objects.chain(followed.nodes.keys().cloned()).collect(),
        pods: view
            .all(POD)
            .map(|object| {
                let name = Name::of(object);
                ((name.namespace, name.name), pod(object))
            })
            .collect(),
    }
}

/// Whether nothing may be written. A pass takes long; what was seen before it is not enough.
async fn is_locked(store: &Gate<Backend>) -> bool {
    match seen::get::<ClusterInformation, _>(store, &Key::ClusterInformation).await {
        Ok(found) => found.is_some_and(|seen| !seen.value.datastore_ready),
        Err(_) => true,
    }
}

/// Carries a task out and says so. False if it is left to do.
async fn perform(store: &Gate<Backend>, task: &Task) -> bool {
    if is_locked(store).await {
        tracing::info!(%task, "left for later, the datastore is locked");
        return false;
    }
    match carry_out(store, &SystemClock, task).await {
        Ok(Outcome::Done { released }) => {
            match task {
                Task::Release { block, releases, .. } => {
                    for release in releases.iter().filter(|release| released.contains(&release.address)) {
                        let handle = release.handle.as_deref().unwrap_or_default();
                        tracing::info!(address = %release.address, handle, %block, "released leaked address");
                    }
                }
                Task::GiveUpNode { owner } => tracing::info!(node = owner.name, "released deleted node"),
                task => tracing::info!(%task, "done"),
            }
            true
        }
        Ok(Outcome::Moot) => true,
        Ok(Outcome::Later { reason }) => {
            tracing::warn!(%task, reason, "left for later");
            // Time brings the next pass where only an empty block is at stake.
            !matches!(task, Task::Release { .. } | Task::GiveUpNode { .. } | Task::Abandon { .. })
        }
        Err(error) => {
            tracing::warn!(%task, %error, "left for later");
            false
        }
    }
}

fn log(note: &Note) {
    match note {
        Note::Suspected { address, node, handle } => {
            tracing::debug!(%address, node, handle, "found address without its pod");
        }
        Note::Condemned { address, node, handle, reason } => {
            tracing::info!(%address, node, handle, reason, "gives back address that nobody needs");
        }
        Note::Spared { address } => tracing::info!(%address, "kept address, the API server knows its owner"),
        Note::Crossed { block, other } => {
            tracing::warn!(%block, %other, "block lies in another block, one of them has to go");
        }
        Note::Malformed { block, fault } => tracing::warn!(%block, fault, "left malformed block alone"),
    }
}

/// Asks the API server. A failure to answer is no answer.
async fn ask(reach: &Reach, questions: Questions) -> Answers {
    let gone = stream::iter(questions.nodes)
        .map(|node| async move { is_gone(reach, &node).await.then_some(node) })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let pods = stream::iter(questions.pods)
        .map(|name| async move {
            let path = format!("{}/{}", POD.path(&name.0), name.1);
            match send(&reach.client, "GET", &path, None).await {
                Ok(object) => Some((name, Some(pod(&object)))),
                Err(refusal) => (refusal.code == 404).then_some((name, None)),
            }
        })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready)
        .collect()
        .await;
    Answers { gone, pods }
}

/// Whether neither the API server knows the node nor etcd has a record of it. A failure to answer is no answer.
async fn is_gone(reach: &Reach, name: &str) -> bool {
    has_no_object(reach, name).await
        && (!reach.is_etcd() || matches!(reach.store.get(&Key::Node(name.to_owned())).await, Ok(None)))
}

/// Whether the API server says that it has no Node of this name.
async fn has_no_object(reach: &Reach, name: &str) -> bool {
    let path = format!("{}/{name}", NODE.path(""));
    matches!(send(&reach.client, "GET", &path, None).await, Err(refusal) if refusal.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::Listing;

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
        assert!(is_ready_in(&view));
        assert_eq!(grace(&view), GRACE);
        assert_eq!(period(Some(grace(&view))), PERIOD);
    }

    #[test]
    fn nothing_is_written_while_the_datastore_is_not_ready() {
        assert!(!is_ready_in(&view(CLUSTER_INFORMATION, json!({"spec": {"datastoreReady": false}}))));
        assert!(!is_ready_in(&View::default()));
        assert!(is_ready_in(&view(CLUSTER_INFORMATION, json!({"spec": {}}))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_comes_in_the_midst_of_a_pass_stops_what_is_left_of_it() {
        let fake = crate::fake::Fake::new();
        let store = datastore::kubernetes::Kubernetes::with_client(fake.client());
        let store = Gate::new(Backend::Kubernetes(store));
        let owner = api::Owner::host("gone");
        let cidr = "10.0.0.0/26".parse().unwrap();
        let affinity = api::Affinity {
            owner: owner.clone(),
            cidr,
            state: api::AffinityState::Confirmed,
            deleted: false,
        };
        store.commit(&[], &[Write::Create(Record::Affinity(affinity))]).await.unwrap();
        let information = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
        fake.put(information, json!({"spec": {"datastoreReady": false}}));
        fake.requests();
        let task = Task::GiveUpNode { owner: owner.clone() };
        assert!(!perform(&store, &task).await);
        let written: Vec<String> =
            fake.requests().into_iter().filter(|line| !line.starts_with("GET ")).collect();
        assert!(written.is_empty(), "{written:?}");
        fake.put(information, json!({"spec": {"datastoreReady": true}}));
        assert!(perform(&store, &task).await);
        assert_eq!(store.get(&Key::Affinity(owner, cidr)).await.unwrap(), None);
    }

    #[test]
    fn what_cools_goes_on_cooling_until_the_configuration_was_understood_once() {
        let kind = datastore::Kind::Config;
        let opaque = || Change::Reset(Listing { unreadable: vec![Key::Config], ..Listing::default() });
        let mut followed = Followed::default();
        followed.take_in(kind, opaque());
        assert_eq!(followed.records.cooldown_seconds, u32::MAX);
        let version = datastore::Version { revision: datastore::Revision(2), uid: None };
        let config = api::IpamConfig { ip_cooldown_seconds: 60, ..Default::default() };
        let stored = Stored { record: Record::Config(config), version, created: None };
        followed.take_in(kind, Change::Put(stored));
        followed.take_in(kind, opaque());
        assert_eq!(followed.records.cooldown_seconds, 60);
        followed.take_in(kind, Change::Reset(Listing::default()));
        assert_eq!(followed.records.cooldown_seconds, 0);
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
