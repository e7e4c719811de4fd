//! Parsers of the values in etcd under a stream of damaged input; with the same settings.

use crate::damage::{Damage, Shown};
use api::wire::{Over, WireError};
use api::{Affinity, Block, Cidr, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use serde_json::Value;

/// Feeds one reader of values, which writes again what it read, with damaged ones. What it refuses it must call `object`.
fn values(object: &str, corpus: &str, read: impl Fn(&Value) -> Result<String, WireError>) {
    let mut damage = Damage::new(corpus);
    for _ in 0..damage.cases() {
        let (text, value) = damage.json();
        let _shown = Shown(&text);
        let Some(value) = value else { continue };
        match read(&value) {
            Ok(written) => {
                let again = read(&serde_json::from_str(&written).unwrap());
                let again = again.unwrap_or_else(|error| panic!("writes what it refuses: {error}"));
                assert_eq!(again, written, "reads another record than it wrote");
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with(&format!("{object} has ")), "names another object: {message}");
                assert!(message.len() < 600, "a long message: {message}");
            }
        }
    }
}

fn cidr() -> Cidr {
    "10.0.0.0/30".parse().unwrap()
}

#[test]
fn blocks() {
    values("block 10.0.0.0/30", include_str!("../corpus/block_etcd.jsonl"), |value| {
        let block = Block::from_etcd(cidr(), value)?;
        // Invariant 2: every ordinal is either allocated, to something there is, or once in the queue.
        let mut free: Vec<u32> = block.unallocated.clone();
        free.sort_unstable();
        let unused = (0_u32..).zip(block.allocations.iter()).filter(|(_, held)| held.is_none());
        assert!(unused.map(|(ordinal, _)| ordinal).eq(free));
        assert!(block.allocations.iter().flatten().all(|index| *index < block.attributes.len()));
        Ok(block.to_etcd())
    });
}

#[test]
fn affinities() {
    values("affinity host:n 10.0.0.0/30", include_str!("../corpus/claim_etcd.jsonl"), |value| {
        Ok(Affinity::from_etcd(Owner::host("n"), cidr(), value)?.to_etcd())
    });
}

#[test]
fn handles() {
    values("handle h", include_str!("../corpus/claim_etcd.jsonl"), |value| {
        Ok(Handle::from_etcd("h", value)?.to_etcd())
    });
}

#[test]
fn configurations() {
    values("IPAM configuration config", include_str!("../corpus/claim_etcd.jsonl"), |value| {
        Ok(IpamConfig::from_etcd(value)?.to_etcd())
    });
}

#[test]
fn pools() {
    values("IPPool r", include_str!("../corpus/resource_etcd.jsonl"), |value| {
        Ok(Pool::from_etcd("r", value)?.to_etcd(Over::Value(value)))
    });
}

#[test]
fn reservations() {
    values("IPReservation r", include_str!("../corpus/resource_etcd.jsonl"), |value| {
        Ok(Reservation::from_etcd("r", value)?.to_etcd(Over::Value(value)))
    });
}

#[test]
fn cluster_informations() {
    values("ClusterInformation default", include_str!("../corpus/resource_etcd.jsonl"), |value| {
        Ok(ClusterInformation::from_etcd(value)?.to_etcd(Over::Value(value)))
    });
}

#[test]
fn nodes() {
    values("Node r", include_str!("../corpus/resource_etcd.jsonl"), |value| {
        Ok(Node::from_etcd("r", value)?.to_etcd(Over::Value(value)))
    });
}
