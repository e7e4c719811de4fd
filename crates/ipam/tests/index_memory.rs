//! How much memory the agent's index of other nodes' blocks takes, as the kernel counts it for this process.

#![expect(clippy::unwrap_used, reason = "tests")]

use api::{Cidr, Owner, Pool};
use datastore::follow::Change;
use datastore::{Kind, Record, Revision, Stored, Version};
use ipam::agent::{Agent, Event};
use ipam::block;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

/// A block of another node, with ten pods in it.
fn block_of(number: u32, cidr: Cidr) -> Stored {
    let owner =
        Owner::host(format!("ip-10-0-{}-{}.eu-central-1.compute.internal", number >> 8, number & 255));
    let mut block = block::new_block(cidr, &owner, Timestamp::UNIX_EPOCH);
    for pod in 0..10 {
        let attributes = BTreeMap::from([("node".to_owned(), owner.name.clone())]);
        let address = cidr.address(api::Ordinal(pod)).unwrap();
        block::assign(&mut block, address, Some(&format!("net.{number}-{pod}")), &attributes, None).unwrap();
    }
    let version = Version { revision: Revision(u64::from(number) + 1), uid: None };
    Stored { record: Record::Block(block), version, created: None }
}

#[test]
fn ten_thousand_blocks_of_others_take_at_most_five_megabytes() {
    let pool = Pool::with_defaults("pool", "10.0.0.0/8".parse().unwrap());
    let mut agent = Agent::new("me");
    let mut put = |number: u32| {
        let cidr = pool.cidr.nth_block(26, u128::from(number) * 7).unwrap();
        let change = Change::Put(block_of(number, cidr));
        agent.step(Timestamp::UNIX_EPOCH, Event::Changed(Kind::Block, change));
    };
    (0..100).for_each(&mut put);
    let before = resident();
    (100..10_100).for_each(&mut put);
    let after = resident();
    assert_eq!(agent.view().index().len(), 10_100);
    let taken = after.saturating_sub(before);
    assert!(taken <= 5_000_000, "10,000 blocks take {taken} bytes");
}
