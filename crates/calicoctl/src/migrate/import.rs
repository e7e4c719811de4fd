//! `datastore migrate import`: what was exported from etcd, into Kubernetes.
//!
//! Before anything is written, the whole file is read and compared with what is there: something else in the datastore, or a
//! resource that cannot be written here, refuses the import as a whole. After that only the datastore's own failures can stop
//! it, and then the same command goes on where it stopped. The datastore stays locked until somebody unlocks it.

use super::definitions;
use super::file::Contents;
use super::others::Others;
use crate::failure::Failure;
use crate::output;
use datastore::backend::Backend;
use datastore::copy::{CopyError, Options, copy, lock};
use datastore::etcd::entry;
use datastore::kubernetes::Kubernetes;
use datastore::memory::Memory;
use datastore::{CommitError, Datastore, Key, Kind, Record, Write};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

const DONE: &str = "Datastore information successfully imported. Please refer to the datastore migration documentation for next steps.\n";

/// How often the annotations of a node are written anew where somebody else was quicker.
const NODE_TRIES: u32 = 10;

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
    let import = Import::of(contents).map_err(Failure::new)?;
    definitions::install(target).await?;
    import.make(target).await
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

/// What is to be written.
#[derive(Debug)]
struct Import {
    /// Everything, the cluster's information locked.
    records: Vec<Record>,
    /// Pools and reservations as they stand in the file: more than their records.
    resources: Vec<(Key, Value)>,
    /// What is not about addresses.
    others: Others,
}

/// What a node's annotations in Kubernetes say of its record in etcd; the rest of its spec has no place there that is ours to know.
const CARRIED: [&str; 5] = ["addresses", "orchRefs", "ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr", "bgp"];

/// As [`CARRIED`], of `bgp`.
const CARRIED_OF_BGP: [&str; 3] = ["ipv4Address", "ipv6Address", "ipv4IPIPTunnelAddr"];

impl Import {
    /// Reads the file's contents.
    fn of(contents: Contents) -> Result<Self, String> {
        let Contents { resources, mut cluster, mut records } = contents;
        cluster.datastore_ready = false;
        records.push(Record::ClusterInformation(cluster));
        let (mut whole, mut others) = (Vec::new(), Others::default());
        let (mut strangers, mut left): (BTreeMap<String, usize>, BTreeMap<String, usize>) =
            Default::default();
        for resource in resources {
            let Some(resource) = others.take(resource)? else { continue };
            let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let name = text("/metadata/name").to_owned();
            let key = match text("/kind") {
                "IPPool" if !text("/metadata/deletionTimestamp").is_empty() => {
                    return Err(format!("pool {name} is being deleted: let that end, and export again"));
                }
                "IPPool" => Key::Pool(name),
                "IPReservation" => Key::Reservation(name),
                "Node" => {
                    for field in left_of(&resource["spec"], "", &CARRIED).chain(left_of(
                        &resource["spec"]["bgp"],
                        "bgp.",
                        &CARRIED_OF_BGP,
                    )) {
                        *left.entry(field).or_default() += 1;
                    }
                    records.push(entry::resource(&Key::Node(name), &resource)?);
                    continue;
                }
                kind => {
                    *strangers.entry(kind.to_owned()).or_default() += 1;
                    continue;
                }
            };
            records.push(entry::resource(&key, &resource)?);
            whole.push((key, resource));
        }
        if !strangers.is_empty() {
            let kinds: Vec<String> =
                strangers.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            return Err(format!(
                "the file has resources of kinds that this command does not know: {}. Nothing was written. \
                 Take their documents out of the first part, import, and apply them with Calico's own calicoctl before you unlock",
                kinds.join(", ")
            ));
        }
        let mut keys = BTreeSet::new();
        if let Some(twice) = records.iter().map(Record::key).find(|key| !keys.insert(key.clone())) {
            return Err(format!("{twice} is in the file twice: export again"));
        }
        for (field, count) in left {
            output::note(&format!(
                "spec.{field} of {count} nodes is not carried over: calico/node sets it there, or you do"
            ));
        }
        Ok(Self { records, resources: whole, others })
    }

    async fn make(self, target: &Kubernetes) -> Result<String, Failure> {
        let Self { records, resources, others } = self;
        others.compare(target).await?;
        let of_kind = |wanted: &dyn Fn(Kind) -> bool| {
            records.iter().filter(|record| wanted(record.key().kind())).cloned().collect::<Vec<Record>>()
        };
        // The cluster's nodes are Kubernetes'; what Calico keeps on them is added afterwards.
        let source = holding(of_kind(&|kind| kind != Kind::Node)).await?;
        // What is in the way refuses the import; what is written is read back by the copy that writes it.
        let dry = Options { dry_run: true, unlocked: false };
        copy(&source, target, dry, |_| {}).await.map_err(|error| untouched(&error))?;
        // The lock before all else: a pool that is there would be used.
        for record in of_kind(&|kind| kind == Kind::ClusterInformation) {
            if let Record::ClusterInformation(cluster) = record {
                lock(target, cluster).await.map_err(|error| stopped(&error))?;
            }
        }
        for (key, resource) in &resources {
            let made = target.create_as_it_stands(key, resource).await;
            made.map_err(|error| stopped(&CopyError::Write(error)))?;
        }
        others.make(target).await?;
        copy(&source, target, Options::default(), |_| {}).await.map_err(|error| stopped(&error))?;
        for record in of_kind(&|kind| kind == Kind::Node) {
            if let Record::Node(node) = record {
                annotate(target, node).await?;
            }
        }
        others.read_back(target).await?;
        Ok(DONE.to_owned())
    }
}

/// Fields of `of` that are none of `carried`.
fn left_of<'a>(of: &'a Value, before: &'a str, carried: &'a [&str]) -> impl Iterator<Item = String> + 'a {
    let fields = of.as_object().into_iter().flatten();
    fields
        .map(|(field, _)| field)
        .filter(|field| !carried.contains(&field.as_str()))
        .map(move |field| format!("{before}{field}"))
}

/// A store that holds these.
async fn holding(records: Vec<Record>) -> Result<Memory, Failure> {
    let store = Memory::new();
    let writes: Vec<Write> = records.into_iter().map(Write::Create).collect();
    store.commit(&[], &writes).await?;
    Ok(store)
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
    let mut tries = 0;
    loop {
        tries += 1;
        let found = target.get(&key).await?;
        let Some((Record::Node(mut there), version)) = found.map(|stored| (stored.record, stored.version))
        else {
            output::note(&format!(
                "node {} is not in the cluster: what it held stays until the node comes or is cleaned up",
                node.name
            ));
            return Ok(());
        };
        let before = there.annotations.len();
        for (name, value) in node.annotations.iter().filter(|(name, _)| name.starts_with(ANNOTATIONS)) {
            there.annotations.entry(name.clone()).or_insert_with(|| value.clone());
        }
        if there.annotations.len() == before {
            return Ok(());
        }
        match target.commit(&[], &[Write::Update(Record::Node(there), version)]).await {
            Ok(_) => return Ok(()),
            // Kubelets write their nodes all the time.
            Err(CommitError::Conflict { .. }) if tries < NODE_TRIES => {}
            Err(error) => return Err(stopped(&CopyError::Write(error))),
        }
    }
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
        let Import { records, resources, .. } = Import::of(contents).unwrap();
        assert_eq!(resources.len(), 1);
        let locked = |record: &Record| matches!(record, Record::ClusterInformation(cluster) if !cluster.datastore_ready);
        assert!(records.iter().any(locked));
        assert_eq!(records.len(), 3);
    }

    #[test]
    fn what_cannot_be_written_refuses_the_whole_file() {
        let of = |resources| Import::of(Contents { resources, ..Contents::default() }).unwrap_err();
        let new = of(vec![resource("IPPool", "p"), resource("Future", "a"), resource("Future", "b")]);
        assert!(new.contains("2 Future") && new.contains("Nothing was written"), "{new}");
        let twice = of(vec![resource("IPPool", "p"), resource("IPPool", "p")]);
        assert!(twice.contains("pool p is in the file twice"), "{twice}");
        let mut leaving = resource("IPPool", "p");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-08-01T10:15:30Z");
        assert!(of(vec![leaving]).contains("pool p is being deleted"));
    }
}
