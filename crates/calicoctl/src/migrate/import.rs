//! `datastore migrate import`: what was exported from etcd, into Kubernetes.
//!
//! Before anything is written, the whole file is read and compared with what is there: something else in the datastore, or a
//! resource that cannot be written here, refuses the import as a whole. After that only the datastore's own failures can stop
//! it, and then the same command goes on where it stopped. The datastore stays locked until somebody unlocks it.

use super::definitions;
use super::file::Contents;
use crate::failure::Failure;
use crate::output;
use datastore::backend::Backend;
use datastore::copy::{CopyError, Options, copy};
use datastore::etcd::entry;
use datastore::kubernetes::Kubernetes;
use datastore::memory::Memory;
use datastore::{Datastore, Key, Kind, Record, Scope, Write};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

const DONE: &str = "Datastore information successfully imported. Please refer to the datastore migration documentation for next steps.\n";

/// Names in the way that a message says; it counts the others.
const SHOWN: usize = 5;

/// Annotations of a node that are Calico's.
const ANNOTATIONS: &str = "projectcalico.org/";

/// Runs the command.
pub(super) async fn run(store: &Backend, file: &Path) -> Result<String, Failure> {
    let Backend::Kubernetes(target) = store else {
        return Err(Failure::new(
            "invalid datastore type: etcdv3 to import to for datastore migration. Datastore type must be kubernetes",
        ));
    };
    let text = read(file)
        .map_err(|error| Failure::new(format!("error reading migration file {}: {error}", file.display())))?;
    let contents =
        Contents::parse(&text).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let records = records(contents).map_err(Failure::new)?;
    definitions::install(target).await?;
    import(target, records).await
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(file)?;
    }
    Ok(text)
}

/// All records of the file, the cluster's information locked.
fn records(contents: Contents) -> Result<Vec<Record>, String> {
    let Contents { resources, mut cluster, records: mut all } = contents;
    cluster.datastore_ready = false;
    all.push(Record::ClusterInformation(cluster));
    let mut strangers: BTreeMap<String, usize> = BTreeMap::new();
    for resource in resources {
        let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name").to_owned();
        match text("/kind") {
            "IPPool" => all.push(entry::resource(&Key::Pool(name), &resource)?),
            "IPReservation" => all.push(entry::resource(&Key::Reservation(name), &resource)?),
            "Node" => all.push(entry::resource(&Key::Node(name), &resource)?),
            kind => *strangers.entry(kind.to_owned()).or_default() += 1,
        }
    }
    if !strangers.is_empty() {
        let kinds: Vec<String> = strangers.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        return Err(format!(
            "the file has resources that are not about addresses and that this command cannot write: {}. Nothing was written. \
             Take their documents out of the first part, import, and apply them with Calico's own calicoctl before you unlock",
            kinds.join(", ")
        ));
    }
    let mut keys = BTreeSet::new();
    match all.iter().map(Record::key).find(|key| !keys.insert(key.clone())) {
        Some(twice) => Err(format!("{twice} is in the file twice: export again")),
        None => Ok(all),
    }
}

async fn import(target: &Kubernetes, records: Vec<Record>) -> Result<String, Failure> {
    alone(target, &records).await?;
    let nodes: Vec<api::Node> = records
        .iter()
        .filter_map(|record| if let Record::Node(node) = record { Some(node.clone()) } else { None })
        .collect();
    let source = Memory::new();
    // The cluster's nodes are Kubernetes'; what Calico keeps on them is added afterwards.
    let writes: Vec<Write> =
        records.into_iter().filter(|record| record.key().kind() != Kind::Node).map(Write::Create).collect();
    source.commit(&[], &writes).await?;
    let dry = Options { dry_run: true, unlocked: false };
    copy(&source, target, dry, |_| {}).await.map_err(|error| untouched(&error))?;
    copy(&source, target, Options::default(), |_| {}).await.map_err(|error| stopped(&error))?;
    for node in nodes {
        annotate(target, node).await?;
    }
    Ok(DONE.to_owned())
}

/// Whether the datastore has nothing that is not in the file: addresses that are in use there may be the same.
async fn alone(target: &Kubernetes, records: &[Record]) -> Result<(), Failure> {
    let wanted: BTreeSet<Key> = records.iter().map(Record::key).collect();
    let mut others = Vec::new();
    for kind in [Kind::Pool, Kind::Reservation, Kind::Config, Kind::Block, Kind::Affinity, Kind::Handle] {
        let listing = target.list(&Scope::All(kind)).await?;
        let found = listing.items.into_iter().map(|stored| stored.record.key()).chain(listing.unreadable);
        others.extend(found.filter(|key| !wanted.contains(key)));
    }
    if others.is_empty() {
        return Ok(());
    }
    let mut shown: Vec<String> = others.iter().take(SHOWN).map(ToString::to_string).collect();
    if others.len() > SHOWN {
        shown.push(format!("{} more", others.len() - SHOWN));
    }
    Err(Failure::new(format!(
        "the datastore has something that is not in the file: {}. Nothing was written. Import into a cluster without Calico's resources",
        shown.join(", ")
    )))
}

fn untouched(error: &CopyError) -> Failure {
    Failure::new(format!("{error}. Nothing was written"))
}

fn stopped(error: &CopyError) -> Failure {
    Failure::new(format!(
        "the import stopped: {error}. What is written stays, the datastore is locked; run the same command again and it goes on"
    ))
}

/// Gives a node of the cluster what Calico kept on it: its addresses and those of its tunnels. What it has stays.
async fn annotate(target: &Kubernetes, node: api::Node) -> Result<(), Failure> {
    let key = Key::Node(node.name.clone());
    let found = target.get(&key).await?;
    let Some((Record::Node(mut there), version)) = found.map(|stored| (stored.record, stored.version)) else {
        output::note(&format!(
            "node {} is not in the cluster: what it held stays until the node comes or is cleaned up",
            node.name
        ));
        return Ok(());
    };
    let before = there.annotations.len();
    for (name, value) in node.annotations.into_iter().filter(|(name, _)| name.starts_with(ANNOTATIONS)) {
        there.annotations.entry(name).or_insert(value);
    }
    if there.annotations.len() > before {
        let again = |error| stopped(&CopyError::Write(error));
        target.commit(&[], &[Write::Update(Record::Node(there), version)]).await.map_err(again)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(kind: &str, name: &str) -> Value {
        json!({"kind": kind, "metadata": {"name": name}, "spec": {"cidr": "10.0.0.0/16"}})
    }

    #[test]
    fn the_cluster_is_locked_whatever_the_file_says_of_it() {
        let mut contents = Contents::default();
        contents.cluster.datastore_ready = true;
        contents.resources = vec![resource("IPPool", "p"), resource("Node", "n")];
        let records = records(contents).unwrap();
        let locked = |record: &Record| matches!(record, Record::ClusterInformation(cluster) if !cluster.datastore_ready);
        assert!(records.iter().any(locked));
        assert_eq!(records.len(), 3);
    }

    #[test]
    fn what_cannot_be_written_refuses_the_whole_file() {
        let of = |resources| records(Contents { resources, ..Contents::default() }).unwrap_err();
        let peers = of(vec![resource("IPPool", "p"), resource("BGPPeer", "a"), resource("BGPPeer", "b")]);
        assert!(peers.contains("2 BGPPeer") && peers.contains("Nothing was written"), "{peers}");
        let twice = of(vec![resource("IPPool", "p"), resource("IPPool", "p")]);
        assert!(twice.contains("pool p is in the file twice"), "{twice}");
    }
}
