//! Records as values: reading what stands at a key, and writing a record over what it replaces.

use super::messages::{self, KeyValue};
use super::path;
use crate::{Key, Kind, Record, Stored, Version};
use api::wire::{Over, created_etcd};
use api::{Affinity, Block, ClusterInformation, Handle, IpamConfig, Node, Pool, Reservation};
use serde_json::{Value, json};

/// What stands at a key, as far as it can be understood.
#[derive(Debug)]
pub(super) struct Found {
    /// Of a whole resource the value, of which an update keeps what is not the record's; else null.
    pub(super) resource: Value,
    /// The record, or what is wrong with it.
    pub(super) record: Result<Stored, String>,
    /// What reading mended in it.
    pub(super) mended: Option<String>,
}

/// Whether records of `kind` are whole resources, which hold more than the record.
pub(super) fn is_resource(kind: Kind) -> bool {
    matches!(kind, Kind::Pool | Kind::Reservation | Kind::Node | Kind::ClusterInformation)
}

/// The state that a key is in.
pub(super) fn version(found: &KeyValue) -> Version {
    Version { revision: messages::revision(found.mod_revision), uid: None }
}

/// The record of `kind` that a listing or watch found; `None` for what is no record.
pub(super) fn read_any(kind: Kind, found: &KeyValue) -> Option<(Key, Found)> {
    let key = path::read(kind, std::str::from_utf8(&found.key).ok()?)?;
    let record = read(&key, found);
    Some((key, record))
}

/// The record of `key`.
pub(super) fn read(key: &Key, found: &KeyValue) -> Found {
    // An affinity of old times is an empty value.
    let value: Result<Value, _> =
        if found.value.is_empty() { Ok(json!({})) } else { serde_json::from_slice(&found.value) };
    let value = match value {
        Ok(value) => value,
        Err(error) => {
            let record = Err(format!("it is not JSON ({error})"));
            return Found { resource: Value::Null, record, mended: None };
        }
    };
    let record = match key {
        Key::Pool(name) => Pool::from_etcd(name, &value).map(Record::Pool),
        Key::Block(cidr) => Block::from_etcd(*cidr, &value).map(Record::Block),
        Key::Affinity(owner, cidr) => Affinity::from_etcd(owner.clone(), *cidr, &value).map(Record::Affinity),
        Key::Handle(id) => Handle::from_etcd(id, &value).map(Record::Handle),
        Key::Config => IpamConfig::from_etcd(&value).map(Record::Config),
        Key::Reservation(name) => Reservation::from_etcd(name, &value).map(Record::Reservation),
        Key::Node(name) => Node::from_etcd(name, &value).map(Record::Node),
        Key::ClusterInformation => ClusterInformation::from_etcd(&value).map(Record::ClusterInformation),
    };
    let resource = is_resource(key.kind());
    let created = if resource { created_etcd(&value) } else { None };
    let version = version(found);
    let mended = match key.kind() {
        Kind::Block => Block::mending(&value),
        Kind::Reservation => value.get("spec").and_then(Reservation::mending),
        _ => None,
    };
    Found {
        mended,
        resource: if resource { value } else { Value::Null },
        record: record.map(|record| Stored { record, version, created }).map_err(|error| error.to_string()),
    }
}

/// The value of `record`. `over` matters for whole resources only.
pub(super) fn write(record: &Record, over: Over<'_>) -> String {
    match record {
        Record::Pool(pool) => pool.to_etcd(over),
        Record::Block(block) => block.to_etcd(),
        Record::Affinity(affinity) => affinity.to_etcd(),
        Record::Handle(handle) => handle.to_etcd(),
        Record::Config(config) => config.to_etcd(),
        Record::Reservation(reservation) => reservation.to_etcd(over),
        Record::Node(node) => node.to_etcd(over),
        Record::ClusterInformation(information) => information.to_etcd(over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{AffinityState, Owner};

    fn found(key: &Key, value: &str) -> KeyValue {
        KeyValue { key: path::of(key).unwrap().into_bytes(), mod_revision: 7, value: value.into() }
    }

    #[test]
    fn an_empty_affinity_is_a_confirmed_one() {
        let key = Key::Affinity(Owner::host("n"), "10.0.0.0/26".parse().unwrap());
        let (read_key, record) = read_any(Kind::Affinity, &found(&key, "")).unwrap();
        assert_eq!(read_key, key);
        let stored = record.record.unwrap();
        assert!(
            matches!(stored.record, Record::Affinity(affinity) if affinity.state == AffinityState::Confirmed)
        );
        assert_eq!(stored.version.revision, crate::Revision(7));
    }

    #[test]
    fn nonsense_keeps_its_key_and_says_what_is_wrong() {
        let key = Key::Block("10.0.0.0/30".parse().unwrap());
        for value in ["{", "[]", "null", "{\"cidr\":\"10.0.0.4/30\"}"] {
            let (read_key, record) = read_any(Kind::Block, &found(&key, value)).unwrap();
            assert_eq!(read_key, key);
            assert!(!record.record.unwrap_err().is_empty());
        }
    }

    #[test]
    fn only_whole_resources_are_kept_for_an_update() {
        let pool = Key::Pool("p".into());
        let value = r#"{"metadata":{"uid":"u","creationTimestamp":"2026-08-01T09:00:00Z"},"spec":{"cidr":"10.0.0.0/16"}}"#;
        let read_pool = read(&pool, &found(&pool, value));
        assert_eq!(read_pool.resource["metadata"]["uid"], "u");
        assert!(read_pool.record.unwrap().created.is_some());
        let handle = Key::Handle("h".into());
        assert!(read(&handle, &found(&handle, "{\"block\":{}}")).resource.is_null());
    }
}
