//! The operator: what the Installation and APIServer resources ask for becomes objects, and their state a TigeraStatus.
//!
//! ```text
//!  Installation, APIServer, kubeadm-config, nodes, pools, workloads, pods
//!          │ watched
//!          ▼
//!    reconcile(view) ──► namespaces, pools, naming record ──► workloads ──► TigeraStatus, status of the resources
//! ```
//!
//! It acts on events and never asks twice for what it has seen; while nothing changes it writes nothing.

mod installation;
mod pools;
mod tigerastatus;
mod workloads;

use crate::cluster::{Action, Cluster, Collection, View};
use crate::object::{
    AFFINITY, API_SERVER, CLUSTER_INFORMATION, CONFIG_MAP, DAEMON_SET, DEPLOYMENT, FELIX_CONFIGURATION,
    INSTALLATION, IP_POOL, Kind, NAMESPACE, NODE, Name, POD, TIGERA_STATUS, covers, is_deleting, items,
    number, text,
};
use api::{AffinityNaming, Cidr, Pool};
use datastore::kubernetes::ConnectError;
use installation::{Platform, Trouble};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tigerastatus::{Component, Verdict};
pub(crate) use workloads::CALICO_VERSION;
use workloads::{API, SYSTEM};

/// How long the operator is at rest at most: a safety net under the watches.
const REST: Duration = Duration::from_secs(300);

/// MTU of pods where the Installation names none: that of the nodes less the VXLAN header.
const MTU: i64 = 1450;

const WATCHED: [Collection; 15] = [
    (INSTALLATION, ""),
    (API_SERVER, ""),
    (TIGERA_STATUS, ""),
    (IP_POOL, ""),
    (AFFINITY, ""),
    (CLUSTER_INFORMATION, ""),
    (FELIX_CONFIGURATION, ""),
    (NODE, ""),
    (NAMESPACE, ""),
    (CONFIG_MAP, "kube-system"),
    (DAEMON_SET, SYSTEM),
    (DEPLOYMENT, SYSTEM),
    (DEPLOYMENT, API),
    (POD, SYSTEM),
    (POD, API),
];

/// What the operator needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Credentials and address of the API server.
    pub kubeconfig: PathBuf,
    /// Networks that the nodes are in, where no pool may be. Nodes' own addresses are known without it.
    pub node_networks: Vec<Cidr>,
    /// How affinities are named in a datastore that has none yet (architecture D9).
    pub affinity_naming: AffinityNaming,
}

/// Runs the operator until the process ends. A lost API server is waited for.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn run(options: Options) -> Result<(), ConnectError> {
    let client = datastore::kubernetes::client(Some(&options.kubeconfig)).await?;
    drive(client, options).await;
    Ok(())
}

/// The loop; it does not end.
pub(crate) async fn drive(client: kube::Client, options: Options) {
    let mut cluster = Cluster::watch(client, &WATCHED);
    tracing::info!("operator started");
    loop {
        cluster.changed(REST).await;
        cluster.settle(|view| reconcile(view, &options, Timestamp::now())).await;
    }
}

/// A label of `object`, empty if it has none of that name.
fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object
        .pointer("/metadata/labels")
        .and_then(|labels| labels.get(key))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// What is to be written next. Nothing when all is as it should be.
fn reconcile(view: &View, options: &Options, now: Timestamp) -> Vec<Action> {
    let default = Name::cluster("default");
    let alive = |kind| view.get(kind, &default).filter(|object| !is_deleting(object));
    let mut actions = Vec::new();
    let installation = alive(INSTALLATION);
    match installation {
        Some(installation) => install(&mut actions, view, installation, options, now),
        None => actions.extend(withdraw(view, "calico")),
    }
    match alive(API_SERVER) {
        Some(api_server) => serve_api(&mut actions, view, api_server, installation.is_some(), now),
        None => actions.extend(withdraw(view, "apiserver")),
    }
    if is_locked(view) {
        // What is being moved stays as it is; the lock is watched, and without it this is asked for again.
        actions.retain(|action| action.kind().api_version != IP_POOL.api_version);
    }
    actions
}

/// Whether Calico's records are being migrated, so that none of them may change.
fn is_locked(view: &View) -> bool {
    let information = view.get(CLUSTER_INFORMATION, &Name::cluster("default"));
    information.and_then(|object| object.pointer("/spec/datastoreReady")) == Some(&Value::Bool(false))
}

/// Carries out an Installation.
fn install(actions: &mut Vec<Action>, view: &View, installation: &Value, options: &Options, now: Timestamp) {
    let pool_objects: Vec<&Value> = view.all(IP_POOL).collect();
    let existing: Vec<Pool> = pool_objects.iter().filter_map(|object| Pool::from_v1(object).ok()).collect();
    let mut platform = platform(view, options);
    let own: Vec<Cidr> = items(installation, "/spec/serviceCIDRs")
        .iter()
        .filter_map(|cidr| cidr.as_str()?.parse().ok())
        .collect();
    if !own.is_empty() {
        platform.service_cidrs = own;
    }
    let mut trouble = None;
    let mut warnings = Vec::new();
    let mut making_pools = false;
    let wanted = match installation::wanted_pools(installation, &platform, &existing) {
        Ok(wanted) => wanted,
        Err(problem) => {
            trouble = Some(problem);
            None
        }
    };
    if let Some(wanted) = &wanted {
        let plan = pools::plan(wanted, &pool_objects, |pool| {
            view.all(AFFINITY)
                .filter_map(|object| text(object, "/spec/cidr").parse::<Cidr>().ok())
                .any(|block| block.overlaps(pool.cidr))
        });
        making_pools = plan.actions.iter().any(|action| matches!(action, Action::Create(..)));
        actions.extend(plan.actions);
        warnings = plan.warnings;
        trouble = plan.trouble;
    }
    let has_pool = existing.iter().any(Pool::is_enabled);
    if trouble.is_none() && !has_pool && !making_pools {
        trouble = Some(Trouble {
            reason: "ResourceNotFound",
            message: "no enabled IPPool: add one to spec.calicoNetwork.ipPools of Installation default, or create an IPPool"
                .to_owned(),
        });
    }
    let recorded = record_naming(actions, view, options);
    ensure(actions, view, NAMESPACE, &workloads::namespace(SYSTEM));
    ensure(actions, view, FELIX_CONFIGURATION, &felix_configuration());
    // No node starts before it knows from which pool and under which names it claims.
    if has_pool
        && recorded
        && view.get(NAMESPACE, &Name::cluster(SYSTEM)).is_some_and(|found| !is_deleting(found))
    {
        let owner = owner(INSTALLATION, installation);
        for (kind, object) in workloads::of_installation(&owner, view.all(NODE).count()) {
            keep_workload(actions, view, kind, &object);
        }
    }
    let workloads = workloads::calico_workloads();
    let component = Component {
        name: "calico",
        generation: number(installation, "/metadata/generation"),
        trouble: trouble.as_ref(),
        warnings: &warnings,
        workloads: &workloads,
    };
    let verdict = tigerastatus::judge(view, &component);
    actions.extend(tigerastatus::report(view, &component, &verdict, now));
    let pools = wanted.unwrap_or(existing);
    actions.extend(installation_status(installation, &verdict, &pools, now));
}

/// Carries out an APIServer resource.
fn serve_api(actions: &mut Vec<Action>, view: &View, api_server: &Value, installed: bool, now: Timestamp) {
    let trouble = (!installed).then(|| Trouble {
        reason: "ResourceNotFound",
        message: "Installation default does not exist: create it, and the API server follows".to_owned(),
    });
    if installed {
        ensure(actions, view, NAMESPACE, &workloads::namespace(API));
        if view.get(NAMESPACE, &Name::cluster(API)).is_some_and(|found| !is_deleting(found)) {
            for (kind, object) in workloads::of_api_server(&owner(API_SERVER, api_server)) {
                keep_workload(actions, view, kind, &object);
            }
        }
    }
    let workloads = workloads::api_server_workloads();
    let component = Component {
        name: "apiserver",
        generation: number(api_server, "/metadata/generation"),
        trouble: trouble.as_ref(),
        warnings: &[],
        workloads: &workloads,
    };
    let verdict = tigerastatus::judge(view, &component);
    actions.extend(tigerastatus::report(view, &component, &verdict, now));
    let state = if verdict.available { "Ready" } else { "" };
    let mut status = json!({"state": state});
    if mirror(&mut status, api_server, &verdict, now) || text(api_server, "/status/state") != state {
        actions.push(Action::PatchStatus(API_SERVER, Name::of(api_server), json!({"status": status})));
    }
}

/// What the cluster says about its networks.
fn platform(view: &View, options: &Options) -> Platform {
    let mut platform = Platform { node_networks: options.node_networks.clone(), ..Platform::default() };
    if let Some(config) = view.get(CONFIG_MAP, &Name::within("kube-system", "kubeadm-config")) {
        platform.read_kubeadm(config);
    }
    for node in view.all(NODE) {
        for address in items(node, "/status/addresses") {
            if let Ok(ip) = text(address, "/address").parse() {
                platform.node_addresses.push((text(node, "/metadata/name").to_owned(), ip));
            }
        }
    }
    platform
}

/// Records how affinities are named where nobody has named any yet. True when nothing is left to record.
fn record_naming(actions: &mut Vec<Action>, view: &View, options: &Options) -> bool {
    let name = Name::within("kube-system", "tortie-datastore");
    let settled = view.get(CONFIG_MAP, &name).is_some()
        || view.all(AFFINITY).next().is_some()
        || options.affinity_naming == AffinityNaming::PerNode;
    if !settled {
        actions.push(Action::Create(
            CONFIG_MAP,
            json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"namespace": name.namespace, "name": name.name},
                "data": {"affinityNaming": "per-block"},
            }),
        ));
    }
    settled
}

fn felix_configuration() -> Value {
    json!({
        "apiVersion": FELIX_CONFIGURATION.api_version,
        "kind": FELIX_CONFIGURATION.name,
        "metadata": {"name": "default"},
        "spec": {"healthPort": 9099, "logSeverityScreen": "Info", "reportingInterval": "0s", "vxlanVNI": 4096},
    })
}

/// Creates what is not there; what is there belongs to its users.
fn ensure(actions: &mut Vec<Action>, view: &View, kind: Kind, object: &Value) {
    if view.get(kind, &Name::of(object)).is_none() {
        actions.push(Action::Create(kind, object.clone()));
    }
}

/// Creates a workload or sets it back to what it should be.
fn keep_workload(actions: &mut Vec<Action>, view: &View, kind: Kind, object: &Value) {
    let name = Name::of(object);
    match view.get(kind, &name) {
        None => actions.push(Action::Create(kind, object.clone())),
        Some(found) if is_deleting(found) => {}
        Some(found) => {
            let same = |part: &str| {
                object
                    .get(part)
                    .is_none_or(|wanted| found.get(part).is_some_and(|found| covers(found, wanted)))
            };
            if !same("spec") {
                actions.push(Action::Patch(kind, name, json!({"spec": object["spec"]})));
            }
        }
    }
}

/// A reference that takes an object along when its owner is deleted.
fn owner(kind: Kind, object: &Value) -> Value {
    json!({
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": text(object, "/metadata/name"),
        "uid": text(object, "/metadata/uid"),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Takes away the TigeraStatus of a part that nobody asks for.
fn withdraw(view: &View, component: &str) -> Option<Action> {
    let name = Name::cluster(component);
    let object = view.get(TIGERA_STATUS, &name).filter(|object| !is_deleting(object))?;
    Some(Action::Delete(TIGERA_STATUS, name, text(object, "/metadata/uid").to_owned()))
}

/// The Installation's status: its conditions, and once all is up what was installed.
fn installation_status(
    installation: &Value,
    verdict: &Verdict,
    pools: &[Pool],
    now: Timestamp,
) -> Option<Action> {
    let mut status = json!({});
    let mut changed = mirror(&mut status, installation, verdict, now);
    if verdict.available {
        let mtu = number(installation, "/spec/calicoNetwork/mtu");
        let facts = json!({
            "variant": "Calico",
            "calicoVersion": CALICO_VERSION,
            "mtu": if mtu > 0 { mtu } else { MTU },
            "computed": installation::computed(installation, pools),
        });
        changed |= !installation.get("status").is_some_and(|found| covers(found, &facts));
        if let (Some(status), Value::Object(facts)) = (status.as_object_mut(), facts) {
            status.extend(facts);
        }
    }
    changed.then(|| Action::PatchStatus(INSTALLATION, Name::of(installation), json!({"status": status})))
}

/// Puts the verdict's conditions into the status of the resource that asked, where Available is called Ready. True if
/// the resource does not say so yet.
fn mirror(status: &mut Value, resource: &Value, verdict: &Verdict, now: Timestamp) -> bool {
    let rename = |kind| if kind == "Available" { "Ready" } else { kind };
    match tigerastatus::timed(verdict, items(resource, "/status/conditions"), now, rename) {
        Some(conditions) => {
            status["conditions"] = json!(conditions);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
