//! Writes of an assignment that arrive after the release by the same handle, as from a client that died meanwhile: none
//! leaves an address that its handle does not know (invariant 5).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use api::{Block, Cidr, Handle, Owner};
use datastore::memory::Memory;
use datastore::{CommitError, Datastore, Record, Write};
use futures::executor::block_on;
use ipam::block;
use ipam::clock::FixedClock;
use ipam::plan::{Handles, TakeRules, Want, plan_take};
use ipam::release::release_by_handle;
use ipam::reservations::ReservationSet;
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

fn cidr() -> Cidr {
    "10.0.0.0/30".parse().unwrap()
}

/// A store with a block, and the writes of an assignment of one address of it to `h`: the handle's, then the block's.
async fn about_to_assign(owned: bool) -> (Memory, Vec<Write>) {
    let store = Memory::new();
    let mut made = block::new_block(cidr(), &Owner::host("n"), CLOCK.0);
    made.affinity = made.affinity.filter(|_| owned);
    store.commit(&[], &[Write::Create(Record::Block(made))]).await.unwrap();
    let block: Seen<Block> = seen::block(&store, cidr()).await.unwrap().unwrap();
    let want = Want { count: 1, handle: Some("h".to_owned()), attributes: BTreeMap::new() };
    let (reserved, avoid) = (ReservationSet::default(), BTreeSet::new());
    let rules = TakeRules { reserved: &reserved, avoid: &avoid, only_owner: None };
    let plan = plan_take(&block, &[want], &Handles::new(), &rules).unwrap();
    assert_eq!(plan.writes.len(), 2);
    (store, plan.writes)
}

#[test]
fn a_block_write_that_comes_after_the_release_fails() {
    block_on(async {
        for owned in [true, false] {
            let (store, writes) = about_to_assign(owned).await;
            store.commit(&[], &writes[..1]).await.unwrap();
            assert_eq!(release_by_handle(&store, &CLOCK, "h").await, Ok(0));
            assert_eq!(seen::handle(&store, "h").await, Ok(None));
            let late = store.commit(&[], &writes[1..]).await;
            assert!(matches!(late, Err(CommitError::Conflict { .. })), "{late:?}");
        }
    });
}

#[test]
fn a_handle_is_kept_for_a_block_that_may_be_about_to_be_made() {
    block_on(async {
        let store = Memory::new();
        let handle = Handle { id: "h".to_owned(), blocks: [(cidr(), 1)].into(), deleted: false };
        store.commit(&[], &[Write::Create(Record::Handle(handle.clone()))]).await.unwrap();
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await, Ok(0));
        assert_eq!(seen::handle(&store, "h").await.unwrap().map(|seen| seen.value), Some(handle));
    });
}

#[test]
fn what_is_released_takes_no_write_more_for_it() {
    block_on(async {
        let (store, writes) = about_to_assign(true).await;
        store.commit(&[], &writes).await.unwrap();
        let before = store.revision().0;
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await, Ok(1));
        assert_eq!(store.revision().0 - before, 2, "the block and the handle, once each");
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await, Ok(0));
        assert_eq!(store.revision().0 - before, 2);
    });
}
