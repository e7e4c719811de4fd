//! What small worlds are made of: a pool of one or two blocks, and what two nodes have of it.

use super::SmallWorld;
use super::actors::Operation;
use crate::db::StoreKind;
use api::{Affinity, AffinityState, Block, Cidr, Handle, Node, Owner, Pool};
use datastore::Record;
use ipam::block::{self, Take};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// A pool of one block, and its block.
pub const ONE: &str = "10.0.0.0/30";
/// A pool of two blocks.
pub const TWO: &str = "10.0.0.0/29";

/// The handle of a virtual machine, which may hold one address.
pub const MACHINE: &str = "machine";

/// A network by its text.
pub fn cidr(text: &str) -> Cidr {
    text.parse().expect("a network or range of a small world")
}

/// Two nodes and a pool.
pub fn cluster(pool: &str) -> Vec<Record> {
    let pool = Pool { block_size: 30, ..Pool::with_defaults("pool", cidr(pool)) };
    let node = |name: &str| Record::Node(Node { name: name.to_owned(), ..Node::default() });
    vec![Record::Pool(pool), node("a"), node("b")]
}

/// A block with an address for each handle.
pub fn block(owner: &str, handles: &[&str]) -> Block {
    let begin = Timestamp::from_second(1_799_990_000).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut block = block::new_block(cidr(ONE), &Owner::host(owner), begin);
    for handle in handles {
        take(&mut block, owner, handle);
    }
    block
}

/// Takes an address of a block for a handle of a node.
pub fn take(block: &mut Block, node: &str, handle: &str) {
    let attributes = [("node", node), ("namespace", "default"), ("pod", handle)];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let request = Take {
        count: 1,
        handle: Some(handle),
        attributes: &attributes,
        reserved: &ipam::ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    // A block of a small world has room for whoever is named.
    let _ = block::take(block, &request);
    block::advance(block);
}

/// An affinity for the one block.
pub fn affinity(owner: &str, state: AffinityState) -> Record {
    Record::Affinity(Affinity { owner: Owner::host(owner), cidr: cidr(ONE), state, deleted: false })
}

/// A handle with one address of the one block.
pub fn handle(id: &str) -> Record {
    Record::Handle(Handle { id: id.to_owned(), blocks: BTreeMap::from([(cidr(ONE), 1)]), deleted: false })
}

/// Node `a` has the one block, with an address for each handle.
pub fn owned(handles: &[&str]) -> Vec<Record> {
    let mut records = cluster(ONE);
    records.push(affinity("a", AffinityState::Confirmed));
    records.extend(handles.iter().map(|id| handle(id)));
    records.push(Record::Block(block("a", handles)));
    records
}

/// What a crash left, in a pool of one block.
pub fn left(records: &[Record]) -> Vec<Record> {
    [&cluster(ONE), records].concat()
}

/// A world in which nothing is lost and nobody dies.
pub fn world(
    store: StoreKind,
    records: Vec<Record>,
    promised: &[&'static str],
    operations: &[Operation],
) -> SmallWorld {
    let (promised, operations) = (promised.to_vec(), operations.to_vec());
    SmallWorld { store, records, promised, operations, crashes: 0, lost_answers: 0 }
}
