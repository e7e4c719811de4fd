//! Records as objects of the API: where they are, what they are called, and what of an object outlives an update.

use crate::{Key, Kind, Record, Revision, Stored, Version};
use api::wire::{Group, Resource, SINGLETON};
use api::{
    Affinity, AffinityNaming, Block, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Annotation of Calico's clients with the metadata of the object's other face. Empty, it says nothing.
pub(super) const METADATA_ANNOTATION: &str = "projectcalico.org/metadata";

/// Metadata that other writers keep on an object and that an update must not lose.
const KEPT: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];

/// How the objects look in this datastore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Face {
    /// The group that they are in.
    pub(super) group: Group,
    /// How affinities are named.
    pub(super) naming: AffinityNaming,
}

impl Face {
    /// REST path of the collection of `kind`.
    pub(super) fn collection(self, kind: Kind) -> String {
        self.group.path(match kind {
            Kind::Pool => Resource::POOL,
            Kind::Block => Resource::BLOCK,
            Kind::Affinity => Resource::AFFINITY,
            Kind::Handle => Resource::HANDLE,
            Kind::Config => Resource::CONFIG,
            Kind::Reservation => Resource::RESERVATION,
            Kind::ClusterInformation => Resource::CLUSTER_INFORMATION,
            Kind::Node => return "/api/v1/nodes".to_owned(),
        })
    }

    /// Name of the object of `key`.
    pub(super) fn name(self, key: &Key) -> String {
        match key {
            Key::Pool(name) | Key::Reservation(name) | Key::Node(name) => name.clone(),
            Key::Block(cidr) => cidr.name(),
            Key::Affinity(owner, cidr) => self.naming.object_name(owner, *cidr),
            Key::Handle(id) => Handle::object_name(id),
            Key::Config | Key::ClusterInformation => SINGLETON.to_owned(),
        }
    }

    /// The whole object of `record`, without a version. Nodes are never written whole.
    pub(super) fn object(self, record: &Record) -> Value {
        self.group.form(match record {
            Record::Pool(pool) => pool.to_v1(),
            Record::Block(block) => block.to_v1(),
            Record::Affinity(affinity) => affinity.to_v1(self.naming),
            Record::Handle(handle) => handle.to_v1(),
            Record::Config(config) => config.to_v1(),
            Record::Reservation(reservation) => reservation.to_v1(),
            Record::ClusterInformation(information) => information.to_v1(),
            Record::Node(node) => {
                return json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "annotations": node.annotations}});
            }
        })
    }
}

/// The record of `object`, or what is wrong with it. `None`: an object of this kind that is no record (a singleton
/// under another name).
pub(super) fn from_object(kind: Kind, object: &Value) -> Result<Option<Stored>, String> {
    let version = version(object)?;
    let singleton = matches!(kind, Kind::Config | Kind::ClusterInformation);
    if singleton && object_name(object) != SINGLETON {
        return Ok(None);
    }
    let record = match kind {
        Kind::Pool => Pool::from_v1(object).map(Record::Pool),
        Kind::Block => Block::from_v1(object).map(Record::Block),
        Kind::Affinity => Affinity::from_v1(object).map(Record::Affinity),
        Kind::Handle => Handle::from_v1(object).map(Record::Handle),
        Kind::Config => IpamConfig::from_v1(object).map(Record::Config),
        Kind::Reservation => Reservation::from_v1(object).map(Record::Reservation),
        Kind::Node => Node::from_core(object).map(Record::Node),
        Kind::ClusterInformation => ClusterInformation::from_v1(object).map(Record::ClusterInformation),
    }
    .map_err(|error| error.to_string())?;
    let created = object
        .pointer("/metadata/creationTimestamp")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<Timestamp>().ok());
    Ok(Some(Stored { record, version, created }))
}

/// What reading mends in an object that can be read.
pub(super) fn mended(kind: Kind, object: &Value) -> Option<String> {
    let spec = object.get("spec")?;
    match kind {
        Kind::Block => Block::mending(spec),
        Kind::Reservation => Reservation::mending(spec),
        _ => None,
    }
}

/// The key of an object that may be unreadable otherwise: what a delete event names.
pub(super) fn key_of(kind: Kind, object: &Value) -> Option<Key> {
    if let Ok(Some(stored)) = from_object(kind, object) {
        return Some(stored.record.key());
    }
    let name = object_name(object).to_owned();
    match kind {
        Kind::Pool => Some(Key::Pool(name)),
        Kind::Reservation => Some(Key::Reservation(name)),
        Kind::Node => Some(Key::Node(name)),
        Kind::Config if name == SINGLETON => Some(Key::Config),
        Kind::ClusterInformation if name == SINGLETON => Some(Key::ClusterInformation),
        Kind::Config | Kind::ClusterInformation => None,
        Kind::Block => cidr_of(object).map(Key::Block),
        Kind::Affinity => {
            let owner = Owner::host(object.pointer("/spec/node")?.as_str()?);
            cidr_of(object).map(|cidr| Key::Affinity(owner, cidr))
        }
        Kind::Handle => Some(Key::Handle(
            object.pointer("/spec/handleID").and_then(Value::as_str).unwrap_or(&name).to_owned(),
        )),
    }
}

fn cidr_of(object: &Value) -> Option<api::Cidr> {
    object.pointer("/spec/cidr")?.as_str()?.parse().ok()
}

pub(super) fn object_name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// Revision and identity of `object`.
pub(super) fn version(object: &Value) -> Result<Version, String> {
    let text = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
    let revision = text.parse().map_err(|_| format!("resourceVersion {text:?} is not a number"))?;
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
    Ok(Version { revision: Revision(revision), uid })
}

/// What an update must carry over from `object` beyond what the record itself writes; empty for most objects.
pub(super) fn kept_metadata(object: &Value) -> Map<String, Value> {
    let mut kept = Map::new();
    for field in KEPT {
        let mut value = match object.pointer(&format!("/metadata/{field}")) {
            Some(value) if !value.is_null() => value.clone(),
            _ => continue,
        };
        if let Value::Object(entries) = &mut value {
            entries.retain(|key, value| {
                let own_label = [
                    api::affinity::LABEL_HOSTNAME_HASH,
                    api::affinity::LABEL_AFFINITY_TYPE,
                    api::affinity::LABEL_IP_VERSION,
                ]
                .contains(&key.as_str());
                !(own_label || key == METADATA_ANNOTATION && says_nothing(value))
            });
        }
        let empty =
            value.as_object().map_or_else(|| value.as_array().is_none_or(Vec::is_empty), Map::is_empty);
        if !empty {
            kept.insert(field.to_owned(), value);
        }
    }
    kept
}

/// Whether the annotation of Calico's clients says nothing. Those of older releases write a null creation time into every one.
fn says_nothing(annotation: &Value) -> bool {
    let text = annotation.as_str().unwrap_or_default();
    // Most are one of these; only others are worth reading.
    if ["", "{}", r#"{"creationTimestamp":null}"#].contains(&text) {
        return true;
    }
    let fields: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    fields.is_some_and(|fields| {
        fields.iter().all(|(field, value)| field == "creationTimestamp" && value.is_null())
    })
}

/// Adds `kept` to the metadata of `object`; where both have a label or annotation, the object's own stays.
pub(super) fn keep_metadata(object: &mut Value, kept: &Map<String, Value>) {
    for (field, value) in kept {
        let mut merged = value.clone();
        if let (Value::Object(merged), Some(Value::Object(own))) =
            (&mut merged, object["metadata"].get(field))
        {
            merged.extend(own.clone());
        }
        object["metadata"][field] = merged;
    }
}

/// Makes of an object that was deleted one that can be created: what the server gave it goes.
pub(super) fn forget_birth(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|field, _| field == "name" || KEPT.contains(&field.as_str()));
    }
}

/// Makes a write of `object` conditional on `version`. Only handles carry their identity (data model §3.3).
pub(super) fn condition(object: &mut Value, kind: Kind, version: &Version) {
    object["metadata"]["resourceVersion"] = json!(version.revision.0.to_string());
    if let (Kind::Handle, Some(uid)) = (kind, &version.uid) {
        object["metadata"]["uid"] = json!(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_keeps_the_labels_and_finalizers_of_others() {
        let before = json!({"metadata": {"name": "p", "labels": {"team": "a"}, "finalizers": ["x/y"],
            "annotations": {"projectcalico.org/metadata": "{}"}, "resourceVersion": "4", "uid": "u"}});
        let kept = kept_metadata(&before);
        let mut after = json!({"metadata": {"name": "p", "labels": {"own": "b"}}, "spec": {}});
        keep_metadata(&mut after, &kept);
        assert_eq!(
            after["metadata"],
            json!({"name": "p", "labels": {"team": "a", "own": "b"}, "finalizers": ["x/y"]})
        );
    }

    #[test]
    fn an_annotation_of_calicos_clients_is_kept_only_where_it_says_something() {
        let kept = |text: &str| {
            kept_metadata(&json!({"metadata": {"annotations": {"projectcalico.org/metadata": text}}}))
        };
        for nothing in ["{}", "", r#"{"creationTimestamp":null}"#, r#"{ "creationTimestamp": null }"#] {
            assert!(kept(nothing).is_empty(), "{nothing}");
        }
        for something in [
            r#"{"labels":{"a":"b"},"creationTimestamp":null}"#,
            "not JSON",
            r#"{"creationTimestamp":"2024-01-01T00:00:00Z"}"#,
        ] {
            assert_eq!(kept(something)["annotations"]["projectcalico.org/metadata"], something);
        }
    }

    #[test]
    fn nothing_is_kept_of_an_object_that_only_we_write() {
        let cidr = "10.0.0.0/26".parse().unwrap();
        let affinity =
            Affinity { owner: Owner::host("n"), cidr, state: api::AffinityState::Pending, deleted: false };
        assert!(kept_metadata(&affinity.to_v1(AffinityNaming::PerBlock)).is_empty());
    }

    #[test]
    fn handle_written_under_a_condition_carries_its_identity_and_a_block_does_not() {
        let version = Version { revision: Revision(7), uid: Some("u".to_owned()) };
        let mut object = json!({"metadata": {"name": "x"}, "spec": {}});
        condition(&mut object, Kind::Block, &version);
        assert_eq!(object["metadata"], json!({"name": "x", "resourceVersion": "7"}));
        condition(&mut object, Kind::Handle, &version);
        assert_eq!(object["metadata"]["uid"], "u");
    }

    #[test]
    fn object_that_is_made_again_has_neither_the_version_nor_the_identity_of_the_old_one() {
        let mut object = json!({"metadata": {"name": "p", "labels": {"team": "a"}, "resourceVersion": "4", "uid": "u",
            "creationTimestamp": "2024-01-01T00:00:00Z", "generation": 1, "managedFields": []}, "spec": {"cidr": "c"}});
        forget_birth(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "p", "labels": {"team": "a"}}, "spec": {"cidr": "c"}})
        );
    }

    #[test]
    fn delete_event_of_an_unreadable_object_still_names_its_key() {
        let object = json!({"metadata": {"name": "10-0-0-0-26", "resourceVersion": "3"}, "spec": {"cidr": "10.0.0.0/26"}});
        assert_eq!(key_of(Kind::Block, &object), Some(Key::Block("10.0.0.0/26".parse().unwrap())));
        assert_eq!(
            key_of(Kind::Config, &json!({"metadata": {"name": "other", "resourceVersion": "3"}})),
            None
        );
    }
}
