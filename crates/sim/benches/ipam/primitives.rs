//! Taking from one block and giving back to it, without a store.

use crate::{Begin, per_second, runs, say};
use api::{Block, Owner};
use ipam::ReservationSet;
use ipam::block::{self, Take};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

/// Operations of one measurement; a profiler's count is divided by it.
const TIMES: u32 = 1000;

/// A /26 with every second address in use.
fn half_full() -> Block {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut block = block::new_block("10.0.0.0/26".parse().unwrap(), &Owner::host("n"), now);
    for pod in 0..32 {
        take(&mut block, &format!("k8s-pod-network.{pod:064x}"), &attributes(pod));
    }
    block
}

fn attributes(pod: u32) -> BTreeMap<String, String> {
    [("namespace", "shop".to_owned()), ("node", "n".to_owned()), ("pod", format!("web-{pod}"))]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

/// One address, as for a write: the block is copied, collected, changed and counted.
#[inline(never)]
fn take(block: &mut Block, handle: &str, attributes: &BTreeMap<String, String>) {
    let (reserved, avoid) = (ReservationSet::none(), BTreeSet::new());
    let request = Take {
        count: 1,
        handle: Some(handle),
        attributes,
        reserved: &reserved,
        avoid: &avoid,
        only_owner: None,
    };
    let mut draft = block.clone();
    block::collect(&mut draft, 0, Timestamp::UNIX_EPOCH);
    assert_eq!(block::take(&mut draft, &request).unwrap().len(), 1);
    block::advance(&mut draft);
    *block = draft;
}

#[inline(never)]
fn release(block: &mut Block, handle: &str) {
    let mut draft = block.clone();
    block::collect(&mut draft, 0, Timestamp::UNIX_EPOCH);
    assert_eq!(block::release_by_handle(&mut draft, handle, None, 0, Timestamp::UNIX_EPOCH).len(), 1);
    block::advance(&mut draft);
    *block = draft;
}

/// Named so that a profiler can be told to count here only.
#[inline(never)]
fn measured_take(block: &mut Block, attributes: &BTreeMap<String, String>) {
    take(block, "k8s-pod-network.new", attributes);
}

#[inline(never)]
fn measured_release(block: &mut Block) {
    release(block, "k8s-pod-network.new");
}

pub(crate) fn takes() {
    let (mut block, attributes) = (half_full(), attributes(1000));
    for _ in 0..TIMES {
        measured_take(&mut block, &attributes);
        release(&mut block, "k8s-pod-network.new");
    }
    black_box(block);
}

pub(crate) fn releases() {
    let (mut block, attributes) = (half_full(), attributes(1000));
    for _ in 0..TIMES {
        take(&mut block, "k8s-pod-network.new", &attributes);
        measured_release(&mut block);
    }
    black_box(block);
}

pub(crate) fn figures() {
    let pairs = runs(|| {
        let begin = Begin::now();
        takes();
        per_second(TIMES, begin.elapsed())
    });
    say("block: take and release, each with a copy of a /26", "1/s", &pairs);
}
