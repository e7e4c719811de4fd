//! The file that carries a cluster from etcd to Kubernetes (calicoctl §11): resources as YAML, the cluster's information as
//! JSON, the records of IPAM as JSON, with a line `===` after the first and the second.

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
            text += &serde_saphyr::to_string(&list).map_err(|error| error.to_string())?;
            text += "---\n";
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
        let value: Value = serde_saphyr::from_str(&document)
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

fn records_of(entries: &Value) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    for (kind, name) in ENTRIES {
        let items = match &entries[name] {
            Value::Null => Vec::new(),
            Value::Array(items) => items.clone(),
            item => vec![item.clone()],
        };
        for item in items {
            let key = item["Key"].as_str().ok_or_else(|| format!("an item of {name} has no Key"))?;
            records.push(entry::record(kind, key, &item["Value"])?);
        }
    }
    Ok(records)
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
                json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "===", "annotations": {"a": "===\n---\n"}}, "spec": {}}),
                json!({"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "n"}, "spec": {}}),
            ],
            cluster: ClusterInformation { cluster_guid: "guid".to_owned(), ..ClusterInformation::default() },
            records: vec![
                Record::Affinity(Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false }),
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
        let nonsense = text.replacen("kind: IPPoolList", "kind: [", 1);
        assert!(Contents::parse(&nonsense).unwrap_err().contains("first part"));
    }
}
