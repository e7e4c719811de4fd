//! Records as the keys and values that they are in etcd, for who carries them in a file; and whatever else stands there.

use super::failure::Failure;
use super::messages::{KeyValue, RangeRequest};
use super::{Etcd, path, value};
use crate::{Key, Kind, ReadError, Record};
use api::wire::Over;
use serde_json::Value;

/// Keys asked for in one request.
const PAGE: i64 = 1000;

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

impl Etcd {
    /// Every resource of `projectcalico.org/v3` as it stands there, by its plural and in key order, of whatever kind.
    ///
    /// Datastore calls: 1 per 1,000 resources.
    ///
    /// # Errors
    /// See [`ReadError`]. A value that is no JSON is [`ReadError::Malformed`].
    pub async fn resources(&self) -> Result<Vec<(String, Value)>, ReadError> {
        let what = || "resources".to_owned();
        let (mut from, end) = (path::RESOURCES.as_bytes().to_vec(), path::after(path::RESOURCES));
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let request = RangeRequest {
                key: from,
                range_end: end.clone().into_bytes(),
                limit: PAGE,
                revision: at,
                keys_only: false,
                ..RangeRequest::default()
            };
            let page = self.range(request).await.map_err(|failure: Failure| failure.reading(what()))?;
            if at == 0 {
                at = page.header.map_or(0, |header| header.revision);
            }
            for one in &page.kvs {
                let key = String::from_utf8_lossy(&one.key).into_owned();
                let plural = key.strip_prefix(path::RESOURCES).and_then(|rest| rest.split('/').next());
                let malformed = |reason: String| ReadError::Malformed { what: key.clone(), reason };
                let value = serde_json::from_slice(&one.value)
                    .map_err(|error| malformed(format!("it is not JSON ({error})")))?;
                found.push((plural.unwrap_or_default().to_owned(), value));
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    from = last.key.clone();
                    from.push(0);
                }
                _ => return Ok(found),
            }
        }
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
