//! `datastore migrate export`: everything that stands in etcd, as text.

use super::file::Contents;
use super::names::Names;
use crate::failure::Failure;
use crate::output;
use api::ClusterInformation;
use datastore::backend::Backend;
use datastore::etcd::Etcd;
use datastore::{Datastore, Key, Record};
use serde_json::Value;
use std::collections::BTreeMap;

/// Resources that are exported, by their plurals and in this order: what others refer to first.
const EXPORTED: [&str; 17] = [
    "ippools",
    "bgppeers",
    "tiers",
    "globalnetworkpolicies",
    "networkpolicies",
    "stagedglobalnetworkpolicies",
    "stagednetworkpolicies",
    "globalnetworksets",
    "networksets",
    "hostendpoints",
    "nodes",
    "bgpconfigurations",
    "felixconfigurations",
    "kubecontrollersconfigurations",
    "ipreservations",
    "bgpfilters",
    "remoteclusterconfigurations",
];

/// What Kubernetes has of its own, or what has a part of the file to itself.
const HAD_ALREADY: [&str; 3] = ["workloadendpoints", "profiles", "clusterinformations"];

/// Begin of the names of policies that are made from those of Kubernetes.
const FROM_KUBERNETES: &str = "knp.";

/// Where blocks stand: what cannot be read there may hold addresses.
const BLOCKS: &str = "/calico/ipam/v2/assignment/";

/// Runs the command. What is there and not exported is told on stderr.
pub(super) async fn run(store: &Backend, keep_node_names: bool) -> Result<String, Failure> {
    let Backend::Etcd(etcd) = store else {
        return Err(Failure::new(
            "invalid datastore type: kubernetes to export from for datastore migration. Datastore type must be etcdv3",
        ));
    };
    let (contents, left) = contents(etcd, keep_node_names).await?;
    let text =
        contents.text().map_err(|error| Failure::new(format!("no export can be made of it: {error}")))?;
    locked(etcd).await?;
    for (plural, count) in left {
        output::note(&format!(
            "not exported: {count} of {plural}, a kind that this command does not know; carry them over with kubectl"
        ));
    }
    Ok(text)
}

/// The cluster's information, if it says that writers are stopped.
async fn locked(etcd: &Etcd) -> Result<ClusterInformation, Failure> {
    match etcd.get(&Key::ClusterInformation).await? {
        Some(stored) => match stored.record {
            Record::ClusterInformation(cluster) if !cluster.datastore_ready => Ok(cluster),
            _ => Err(not_locked()),
        },
        None => Err(not_locked()),
    }
}

fn not_locked() -> Failure {
    Failure::new(
        "datastore is not locked. Run the `calicoctl datastore migrate lock` command in order to begin migration",
    )
}

/// What is to be exported, as it was at one moment, and how many there are of each kind that is not.
async fn contents(
    etcd: &Etcd,
    keep_node_names: bool,
) -> Result<(Contents, BTreeMap<String, usize>), Failure> {
    let cluster = locked(etcd).await?;
    let snapshot = etcd.snapshot().await?.ok_or_else(|| {
        Failure::new(
            "addresses were assigned or released while they were exported, though the datastore is locked: stop what writes and export again",
        )
    })?;
    if let Some(key) = snapshot.strangers.iter().find(|key| key.starts_with(BLOCKS)) {
        return Err(Failure::new(format!(
            "{key} is no block as Calico names them, and what it holds would be lost: mend or delete it"
        )));
    }
    let (mut by_kind, mut left): (BTreeMap<&str, Vec<Value>>, BTreeMap<String, usize>) = Default::default();
    if !snapshot.strangers.is_empty() {
        left.insert("keys of IPAM".to_owned(), snapshot.strangers.len());
    }
    for (plural, value) in snapshot.resources {
        match EXPORTED.iter().find(|known| **known == plural) {
            Some(known) if !is_from_kubernetes(known, &value) => {
                by_kind.entry(known).or_default().push(value)
            }
            Some(_) => {}
            None if HAD_ALREADY.contains(&plural.as_str()) => {}
            None => *left.entry(plural).or_default() += 1,
        }
    }
    let nodes = by_kind.get("nodes").into_iter().flatten();
    let names = Names::of(nodes, keep_node_names).map_err(Failure::new)?;
    let resources = EXPORTED
        .iter()
        .flat_map(|plural| by_kind.remove(plural).unwrap_or_default())
        .map(|value| names.resource(value))
        .collect();
    let records = snapshot.records.into_iter().map(|record| names.record(record)).collect();
    Ok((Contents { resources, cluster, records }, left))
}

fn is_from_kubernetes(plural: &str, value: &Value) -> bool {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    plural.ends_with("networkpolicies") && name.starts_with(FROM_KUBERNETES)
}
