//! Parsers of foreign bytes under a stream of damaged input: they never panic, what they refuse they name, and what they
//! read stays the same when it is written and read again.
//!
//! The input is made from a kept corpus by seeded changes, so every run is the same. `TORTIE_FUZZ_CASES` says how many
//! inputs each parser gets (default 4000); `TORTIE_FUZZ_SEED` starts another stream.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod damage;
mod etcd;

use api::attachment::{AddReply, AddRequest, DelRequest, ErrorReply};
use api::selector::Selector;
use api::wire::WireError;
use api::{
    Affinity, AffinityNaming, Block, Cidr, ClusterInformation, Handle, IpamConfig, Node, Pool, Reservation,
};
use damage::{Damage, Shown};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads an object and writes it again; `None` for what is never written.
type Reader = fn(&Value) -> Result<Option<Value>, WireError>;

/// Feeds one reader of objects with whole JSON texts that were damaged, and with JSON values that were.
fn objects(kind: &str, corpus: &str, read: Reader) {
    let mut damage = Damage::new(corpus);
    for _ in 0..damage.cases() {
        let (text, value) = damage.json();
        let _shown = Shown(&text);
        // Bytes that are no JSON are the business of the JSON reader, which must not panic either.
        let Some(value) = value else { continue };
        match read(&value) {
            Ok(None) => {}
            Ok(Some(written)) => {
                let again = read(&written).unwrap_or_else(|error| panic!("writes what it refuses: {error}"));
                assert_eq!(again.as_ref(), Some(&written), "reads another record than it wrote");
            }
            Err(error) => {
                let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("(unnamed)");
                let message = error.to_string();
                assert!(
                    message.starts_with(&format!("{kind} {name} has ")),
                    "names another object: {message}"
                );
                assert!(message.len() < 500 + name.len(), "a long message: {message}");
            }
        }
    }
}

#[test]
fn pools() {
    objects("IPPool", include_str!("../corpus/pool.jsonl"), |value| Ok(Some(Pool::from_v1(value)?.to_v1())));
}

#[test]
fn blocks() {
    objects("IPAMBlock", include_str!("../corpus/block.jsonl"), |value| {
        let block = Block::from_v1(value)?;
        // Invariant 2: every ordinal is either allocated, to something there is, or once in the queue.
        let mut free: Vec<u32> = block.unallocated.clone();
        free.sort_unstable();
        let unused = (0_u32..).zip(block.allocations.iter()).filter(|(_, held)| held.is_none());
        assert!(unused.map(|(ordinal, _)| ordinal).eq(free));
        assert!(block.allocations.iter().flatten().all(|index| *index < block.attributes.len()));
        assert!(block.allocations.len() <= 4096);
        Ok(Some(block.to_v1()))
    });
}

#[test]
fn affinities() {
    objects("BlockAffinity", include_str!("../corpus/affinity.jsonl"), |value| {
        let affinity = Affinity::from_v1(value)?;
        affinity.to_v1(AffinityNaming::PerBlock);
        Ok(Some(affinity.to_v1(AffinityNaming::PerNode)))
    });
}

#[test]
fn handles() {
    objects("IPAMHandle", include_str!("../corpus/handle.jsonl"), |value| {
        Ok(Some(Handle::from_v1(value)?.to_v1()))
    });
}

#[test]
fn configurations() {
    objects("IPAMConfig", include_str!("../corpus/config.jsonl"), |value| {
        Ok(Some(IpamConfig::from_v1(value)?.to_v1()))
    });
}

#[test]
fn reservations() {
    objects("IPReservation", include_str!("../corpus/reservation.jsonl"), |value| {
        Ok(Some(Reservation::from_v1(value)?.to_v1()))
    });
}

#[test]
fn cluster_informations() {
    objects("ClusterInformation", include_str!("../corpus/cluster.jsonl"), |value| {
        Ok(Some(ClusterInformation::from_v1(value)?.to_v1()))
    });
}

#[test]
fn nodes() {
    objects("Node", include_str!("../corpus/node.jsonl"), |value| Node::from_core(value).map(|_| None));
}

#[test]
fn requests_and_replies_of_the_agent() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) {
        if let Ok(read) = serde_json::from_slice::<T>(text) {
            let written = serde_json::to_vec(&read).unwrap();
            assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), read);
        }
    }
    let mut damage = Damage::new(include_str!("../corpus/attachment.jsonl"));
    for _ in 0..damage.cases() {
        let (text, _) = damage.json();
        let _shown = Shown(&text);
        check::<AddRequest>(&text);
        check::<AddReply>(&text);
        check::<DelRequest>(&text);
        check::<ErrorReply>(&text);
    }
}

#[test]
fn selectors() {
    let mut damage = Damage::new(include_str!("../corpus/selector.txt"));
    let labels = [("a".to_owned(), "(".to_owned()), ("zone".to_owned(), "a".to_owned())].into();
    let mut read = 0;
    for _ in 0..damage.cases() {
        let text = damage.text();
        let _shown = Shown(text.as_bytes());
        match Selector::parse(&text) {
            Ok(selector) => {
                read += 1;
                let printed = selector.to_string();
                let again = Selector::parse(&printed);
                assert!(printed.len() > 1024 || again.as_ref() == Ok(&selector), "{printed}: {again:?}");
                selector.matches(&labels);
            }
            Err(error) => assert!(error.to_string().len() < 1500, "a long message: {error}"),
        }
    }
    assert!(read > 0, "nothing was left that can be read");
}

#[test]
fn networks() {
    let mut damage = Damage::new(include_str!("../corpus/cidr.txt"));
    let mut read = 0;
    for _ in 0..damage.cases() {
        let text = damage.text();
        let _shown = Shown(text.as_bytes());
        match text.parse::<Cidr>() {
            Ok(cidr) => {
                read += 1;
                assert_eq!(cidr.to_string().parse(), Ok(cidr));
                assert!(cidr.contains(cidr.network()) && cidr.contains(cidr.last()));
                for prefix in [0, cidr.prefix(), 32, 128, 255] {
                    let count = cidr.block_count(prefix);
                    assert_eq!(cidr.nth_block(prefix, count), None);
                    if let Some(last) = count.checked_sub(1).and_then(|last| cidr.nth_block(prefix, last)) {
                        assert!(cidr.contains_cidr(last));
                    }
                }
                assert!(cidr.name().len() < 253);
            }
            Err(error) => assert!(error.to_string().contains(&format!("{text:?}"))),
        }
    }
    assert!(read > 0, "nothing was left that can be read");
}
