//! The file that carries a cluster from etcd to Kubernetes (calicoctl §11): resources as YAML, the cluster's information as
//! JSON, the records of IPAM as JSON, with a line `===` after the first and the second.
//!
//! The YAML that is written here is JSON, which every reader of YAML takes the same way.

use api::ClusterInformation;
use datastore::etcd::entry;
use datastore::{Kind, Record};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The line between the parts.
const BETWEEN: &str = "===";

/// Where the records of a kind are in the third part.
const ENTRIES: [(Kind, &str); 4] = [
    (Kind::Affinity, "block_affinities"),
    (Kind::Block, "blocks"),
    (Kind::Handle, "handles"),
    (Kind::Config, "config"),
];

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Contents {
    /// Resources of `projectcalico.org/v3`, those of one kind together.
    pub(super) resources: Vec<Value>,
    /// The cluster's information.
    pub(super) cluster: ClusterInformation,
    /// Blocks, affinities, handles and the configuration.
    pub(super) records: Vec<Record>,
}

impl Contents {
    /// The file's text.
    pub(super) fn text(&self) -> Result<String, String> {
        let mut text = String::new();
        for items in self.resources.chunk_by(|one, next| one["kind"] == next["kind"]) {
            let kind = items[0]["kind"].as_str().unwrap_or_default();
            let list = json!({"apiVersion": "projectcalico.org/v3", "kind": format!("{kind}List"), "metadata": {}, "items": items});
            text += &format!("{list:#}\n---\n");
        }
        let cluster: Value = json!({"apiVersion": "projectcalico.org/v3", "kind": "ClusterInformation", "metadata": {"name": api::wire::SINGLETON},
                "spec": self.cluster.spec_v1()});
        text += &format!("{BETWEEN}\n{cluster:#}\n{BETWEEN}\n{:#}\n", self.entries()?);
        Ok(text)
    }

    fn entries(&self) -> Result<Value, String> {
        let mut parts: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
        for record in &self.records {
            let (key, value) = entry::entry(record)?;
            let value: Value = serde_json::from_str(&value).map_err(|error| error.to_string())?;
            let item = json!({"Key": key, "Value": value, "TTL": 0});
            parts.entry(record.key().kind()).or_default().push(item);
        }
        let mut all = Map::new();
        for (kind, name) in ENTRIES {
            let mut items = parts.remove(&kind).unwrap_or_default();
            let value = match kind {
                Kind::Config => items.pop().unwrap_or(Value::Null),
                _ => Value::Array(items),
            };
            all.insert(name.to_owned(), value);
        }
        Ok(Value::Object(all))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// One sentence: how it is no such file, or which item cannot be understood.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lines: Vec<&str> = text.lines().collect();
        let parts: Vec<String> =
            lines.split(|line| line.trim_end() == BETWEEN).map(|part| part.join("\n")).collect();
        let [resources, cluster, entries] = parts.as_slice() else {
            return Err(format!(
                "the file has {} parts and an export has three, with a line {BETWEEN} between them: give the whole output of calicoctl datastore migrate export",
                parts.len()
            ));
        };
        let cluster: Value = serde_json::from_str(cluster)
            .map_err(|error| format!("the second part, the cluster's information, is no JSON: {error}"))?;
        let cluster = ClusterInformation::from_v1(&cluster).map_err(|error| error.to_string())?;
        let entries: Value = serde_json::from_str(entries)
            .map_err(|error| format!("the third part, the records of IPAM, is no JSON: {error}"))?;
        Ok(Self { resources: resources_of(resources)?, cluster, records: records_of(&entries)? })
    }
}

/// The resources of YAML documents, each a list or a single one.
fn resources_of(text: &str) -> Result<Vec<Value>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for document in lines.split(|line| line.trim_end() == "---").map(|lines| lines.join("\n")) {
        if document.trim().is_empty() {
            continue;
        }
        let value = document_of(&document)
            .map_err(|error| format!("a document of the first part is no YAML: {error}"))?;
        match value.get("items").and_then(Value::as_array) {
            Some(items) => {
                // Items may leave out what their list says of all of them.
                let kind = value["kind"].as_str().unwrap_or_default().trim_end_matches("List");
                all.extend(items.iter().cloned().map(|mut item| {
                    if item.is_object() && item["kind"].is_null() {
                        item["kind"] = json!(kind);
                    }
                    item
                }));
            }
            None if value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) || value.is_null() => {}
            None => all.push(value),
        }
    }
    Ok(all)
}

/// JSON, or YAML of any size that the file has.
fn document_of(text: &str) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    // Whoever imports trusts the file with a cluster: it is not kept small here.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: usize::MAX,
            max_events: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// The records. Every part must be there, be it empty: what is left out may hold addresses in use.
fn records_of(entries: &Value) -> Result<Vec<Record>, String> {
    let parts = entries.as_object().ok_or("the third part is no object of the records of IPAM")?;
    if let Some(stranger) = parts.keys().find(|part| ENTRIES.iter().all(|(_, name)| name != part)) {
        return Err(format!("the third part has {stranger:?}, which no export has"));
    }
    let mut records = Vec::new();
    for (kind, name) in ENTRIES {
        let items = match parts.get(name) {
            // A cluster that never set its configuration has none.
            None if kind == Kind::Config => Vec::new(),
            None => {
                return Err(format!(
                    "the third part has no {name}: addresses in use would be given out again"
                ));
            }
            Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items.clone(),
            Some(item) if kind == Kind::Config => vec![item.clone()],
            Some(_) => return Err(format!("{name} of the third part is no list")),
        };
        for item in items {
            let key = item["Key"].as_str().ok_or_else(|| format!("an item of {name} has no Key"))?;
            records.push(entry::record(kind, key, &item["Value"])?);
        }
    }
    fit_together(&records)?;
    Ok(records)
}

/// Refuses records that count on blocks of which the file has none at all. Single ones that do are what a collector mends.
fn fit_together(records: &[Record]) -> Result<(), String> {
    let blocks = records.iter().filter(|record| matches!(record, Record::Block(_))).count();
    let counting = records.iter().filter(|record| matches!(record, Record::Handle(_))).count();
    if blocks == 0 && counting > 0 {
        return Err(format!(
            "the file has {counting} handles and none of the blocks that they have addresses in: export again"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Affinity, AffinityState, Handle, IpamConfig, Owner};

    fn contents() -> Contents {
        let cidr = "10.0.0.0/26".parse().unwrap();
        let owner = Owner::host("n");
        Contents {
            resources: vec![
                json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/16"}}),
                json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "b", "annotations": {"a": "=== ---"}}, "spec": {}}),
                json!({"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "n"}, "spec": {}}),
            ],
            cluster: ClusterInformation { cluster_guid: "guid".to_owned(), ..ClusterInformation::default() },
            records: vec![
                Record::Affinity(Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false }),
                Record::Block(ipam::block::new_block(cidr, &Owner::host("n"), jiff::Timestamp::UNIX_EPOCH)),
                Record::Handle(Handle {
                    id: "net.C".to_owned(),
                    blocks: BTreeMap::from([(cidr, 1)]),
                    deleted: false,
                }),
                Record::Config(IpamConfig { ip_cooldown_seconds: 7, ..IpamConfig::default() }),
            ],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = contents().text().unwrap();
        assert_eq!(Contents::parse(&text), Ok(contents()), "{text}");
        assert_eq!(Contents::parse(&text.replace('\n', "\r\n")), Ok(contents()));
        // As Calico's own command writes it.
        let (resources, rest) = text.split_once("===\n").unwrap();
        let yaml: Vec<String> = resources
            .split("---\n")
            .filter(|document| !document.is_empty())
            .map(|document| serde_json::from_str::<Value>(document).unwrap())
            .map(|document| serde_saphyr::to_string(&document).unwrap())
            .collect();
        assert_eq!(Contents::parse(&format!("{}---\n===\n{rest}", yaml.join("---\n"))), Ok(contents()));
        assert!(text.contains("\"Key\": \"/calico/ipam/v2/host/n/ipv4/block/10.0.0.0-26\""), "{text}");
        let empty = Contents::default();
        assert_eq!(Contents::parse(&empty.text().unwrap()), Ok(empty));
    }

    #[test]
    fn what_is_no_export_is_refused_with_the_part_that_is_wrong() {
        let text = contents().text().unwrap();
        assert!(Contents::parse("").unwrap_err().contains("1 parts"));
        assert!(Contents::parse(&format!("{text}===\n")).unwrap_err().contains("4 parts"));
        let cut = text.trim_end().trim_end_matches('}');
        assert!(Contents::parse(cut).unwrap_err().contains("third part"));
        let strange = text.replace("/calico/ipam/v2/handle/", "/calico/ipam/v2/hand/");
        assert!(Contents::parse(&strange).unwrap_err().contains("/calico/ipam/v2/hand/net.C"));
        let nonsense = text.replacen("\"IPPoolList\"", "[", 1);
        assert!(Contents::parse(&nonsense).unwrap_err().contains("first part"));
        for (part, said) in
            [("blocks", "\"block\""), ("handles", "\"others\""), ("block_affinities", "\"x\"")]
        {
            let without = text.replacen(&format!("\"{part}\""), said, 1);
            assert!(Contents::parse(&without).unwrap_err().contains("third part has"), "{part}");
        }
        let mut all: Value = serde_json::from_str(text.rsplit("===").next().unwrap()).unwrap();
        all["blocks"] = json!([]);
        let head = text.rsplit_once("===").unwrap().0;
        assert!(Contents::parse(&format!("{head}===\n{all}")).unwrap_err().contains("1 handles"));
        all.as_object_mut().unwrap().remove("blocks");
        assert!(Contents::parse(&format!("{head}===\n{all}")).unwrap_err().contains("no blocks"));
        assert!(Contents::parse(&format!("{head}===\nnull")).is_err());
    }
}
