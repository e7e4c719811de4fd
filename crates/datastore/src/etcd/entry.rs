//! Records as the keys and values that they are in etcd, for who carries them in a file; and whatever else stands there.

use super::messages::KeyValue;
use super::transaction::{Change, Condition, Step};
use super::{Etcd, path, value};
use crate::copy::Whole;
use crate::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Write};
use api::wire::Over;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

/// Key and value of a record of IPAM: a block, an affinity, a handle or the configuration.
///
/// # Errors
/// If the record's name cannot be a key, or it is another resource, whose value is not the record alone.
pub fn entry(record: &Record) -> Result<(String, String), String> {
    let key = record.key();
    if value::is_resource(key.kind()) {
        return Err(format!("{key} is a resource and no entry of IPAM"));
    }
    let nothing = Value::Null;
    Ok((path::of(&key).map_err(|bad| bad.to_string())?, value::write(record, Over::Value(&nothing))))
}

/// The record that stands at a key.
///
/// # Errors
/// What is wrong with key or value.
pub fn record(kind: Kind, key: &str, text: &Value) -> Result<Record, String> {
    let named = path::read(kind, key).ok_or_else(|| format!("{key} is no key of {kind}"))?;
    let found = KeyValue { key: Vec::new(), mod_revision: 0, value: text.to_string().into_bytes() };
    value::read(&named, &found).record.map(|stored| stored.record).map_err(|why| format!("{key}: {why}"))
}

/// The record of a whole resource by its name, from the form in which etcd has it.
///
/// # Errors
/// What is wrong with it.
pub fn resource(key: &Key, text: &Value) -> Result<Record, String> {
    let found = KeyValue { key: Vec::new(), mod_revision: 0, value: text.to_string().into_bytes() };
    value::read(key, &found).record.map(|stored| stored.record).map_err(|why| format!("{key}: {why}"))
}

/// Everything of Calico's in etcd at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Resources of `projectcalico.org/v3` as they stand there, of whatever kind, each with its plural, in key order.
    pub resources: Vec<(String, Value)>,
    /// Affinities, blocks, handles and the configuration, in key order of each kind.
    pub records: Vec<Record>,
    /// Keys of IPAM that are no records: nobody reads them as such.
    pub strangers: Vec<String>,
}

/// Kinds of record that are entries of IPAM.
const ENTRIES: [Kind; 4] = [Kind::Affinity, Kind::Block, Kind::Handle, Kind::Config];

impl Whole for Etcd {
    async fn whole(&self, kind: Kind) -> Result<BTreeMap<Key, Value>, ReadError> {
        let (root, _) = path::range(&Scope::All(kind)).map_err(|bad| bad.reading(kind.to_string()))?;
        let (found, _) = self.under(&root, 0, false).await?;
        let read = |one: &KeyValue| {
            let key = path::read(kind, std::str::from_utf8(&one.key).ok()?)?;
            Some((key, serde_json::from_slice(&one.value).ok()?))
        };
        Ok(found.iter().filter_map(read).collect())
    }

    async fn create_whole(&self, record: &Record, whole: &Value) -> Result<(), CommitError> {
        let key = record.key();
        let path = path::of(&key).map_err(|bad| bad.writing(key.clone()))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let text = match record {
            Record::Pool(pool) => pool.whole_etcd(whole, &uid, Timestamp::now()),
            Record::Reservation(reservation) => reservation.whole_etcd(whole, &uid, Timestamp::now()),
            Record::Node(node) => node.whole_etcd(whole, &uid, Timestamp::now()),
            _ => return self.commit(&[], &[Write::Create(record.clone())]).await.map(drop),
        };
        let step = Step { key, path, condition: Condition::Absent, change: Some(Change::Put(text)) };
        self.transact_in_parts(Vec::new(), vec![step], |part, _| part.len()).await
    }
}

impl Etcd {
    /// Keys under those of blocks that name none: nobody reads what stands there.
    ///
    /// Datastore calls: 1 per 1,000 blocks.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn stranger_among_blocks(&self) -> Result<Option<String>, ReadError> {
        let (root, _) =
            path::range(&Scope::All(Kind::Block)).map_err(|bad| bad.reading(Kind::Block.to_string()))?;
        let (found, _) = self.under(&root, 0, true).await?;
        let keys = found.iter().map(|one| String::from_utf8_lossy(&one.key).into_owned());
        Ok(keys.into_iter().find(|key| path::read(Kind::Block, key).is_none()))
    }

    /// Plurals of the resources of `projectcalico.org/v3` that stand here, and how many there are of each.
    ///
    /// Datastore calls: 1 per 1,000 resources.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn kinds_of_resources(&self) -> Result<BTreeMap<String, usize>, ReadError> {
        let (found, _) = self.under(path::RESOURCES, 0, true).await?;
        let mut kinds = BTreeMap::new();
        for one in &found {
            let key = String::from_utf8_lossy(&one.key);
            let rest = key.strip_prefix(path::RESOURCES).unwrap_or_default();
            let plural = rest.split('/').next().unwrap_or_default();
            *kinds.entry(plural.to_owned()).or_default() += 1;
        }
        Ok(kinds)
    }

    /// Reads everything at one revision. `None` if an entry of IPAM was written while that went on.
    ///
    /// Datastore calls: 1 per 1,000 keys, and those of IPAM's entries once more.
    ///
    /// # Errors
    /// See [`ReadError`]. A value that cannot be understood is [`ReadError::Malformed`].
    pub async fn snapshot(&self) -> Result<Option<Snapshot>, ReadError> {
        let mut snapshot = Snapshot::default();
        let (resources, at) = self.under(path::RESOURCES, 0, false).await?;
        for one in &resources {
            let key = String::from_utf8_lossy(&one.key).into_owned();
            let plural = key.strip_prefix(path::RESOURCES).and_then(|rest| rest.split('/').next());
            let value = serde_json::from_slice(&one.value).map_err(|error| ReadError::Malformed {
                what: key.clone(),
                reason: format!("it is not JSON ({error})"),
            })?;
            snapshot.resources.push((plural.unwrap_or_default().to_owned(), value));
        }
        let (entries, _) = self.under(path::IPAM, at, false).await?;
        for one in &entries {
            match ENTRIES.into_iter().find_map(|kind| value::read_any(kind, one)) {
                Some((key, found)) => {
                    let stored = found.record;
                    let stored =
                        stored.map_err(|reason| ReadError::Malformed { what: key.to_string(), reason })?;
                    if !stored.record.is_deleted() {
                        snapshot.records.push(stored.record);
                    }
                }
                None => snapshot.strangers.push(String::from_utf8_lossy(&one.key).into_owned()),
            }
        }
        let (now, _) = self.under(path::IPAM, 0, true).await?;
        let unchanged = now.len() == entries.len() && now.iter().all(|one| one.mod_revision <= at);
        Ok(unchanged.then_some(snapshot))
    }

    /// What stands under `root` at the revision `at`, or now if that is 0; and that revision.
    async fn under(&self, root: &str, at: i64, keys_only: bool) -> Result<(Vec<KeyValue>, i64), ReadError> {
        let mut found = Vec::new();
        let end = path::after(root);
        let read = self.pages((root, &end), at, keys_only, |page| found.extend(page)).await;
        let at = read.map_err(|failure| failure.reading(root.to_owned()))?;
        Ok((found, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Affinity, AffinityState, Owner, Pool};

    #[test]
    fn an_entry_reads_back_and_a_resource_is_none() {
        let cidr = "10.0.0.0/26".parse().unwrap();
        let owner = Owner::host("n");
        let affinity =
            Record::Affinity(Affinity { owner, cidr, state: AffinityState::Pending, deleted: false });
        let (key, text) = entry(&affinity).unwrap();
        assert_eq!(key, "/calico/ipam/v2/host/n/ipv4/block/10.0.0.0-26");
        assert_eq!(record(Kind::Affinity, &key, &serde_json::from_str(&text).unwrap()), Ok(affinity));
        assert!(record(Kind::Block, &key, &Value::Null).is_err());
        let pool = Record::Pool(Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap()));
        assert!(entry(&pool).is_err());
    }
}
