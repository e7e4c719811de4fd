//! A block under any sequence of operations, against a model that knows only who holds which address since when.

use api::{Block, Cidr, Ordinal, Owner};
use ipam::ReservationSet;
use ipam::block::{self, Release, Take};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

const COOLDOWN_SECONDS: u32 = 5;

#[derive(Clone, Debug)]
enum Step {
    Take { count: usize, handle: u8 },
    Assign { low: u8, handle: u8 },
    Release { low: u8, handle: Option<u8> },
    ReleaseByHandle { handle: u8 },
    Wait { seconds: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let handle = 0_u8..4;
    prop_oneof![
        (0_usize..4, handle.clone()).prop_map(|(count, handle)| Step::Take { count, handle }),
        (0_u8..20, handle.clone()).prop_map(|(low, handle)| Step::Assign { low, handle }),
        (0_u8..20, proptest::option::of(handle.clone()))
            .prop_map(|(low, handle)| Step::Release { low, handle }),
        handle.prop_map(|handle| Step::ReleaseByHandle { handle }),
        (0_i64..8).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// Who holds what, in the plainest form.
#[derive(Default)]
struct Model {
    held: BTreeMap<u32, String>,
    cooling: BTreeMap<u32, Timestamp>,
    queue: VecDeque<u32>,
}

impl Model {
    fn release(&mut self, ordinals: BTreeSet<u32>, now: Timestamp) {
        for ordinal in ordinals {
            self.held.remove(&ordinal);
            self.cooling.insert(ordinal, now);
        }
        self.collect(now);
    }

    fn collect(&mut self, now: Timestamp) {
        let wait = SignedDuration::from_secs(i64::from(COOLDOWN_SECONDS));
        let over: Vec<u32> =
            self.cooling.iter().filter(|(_, at)| **at < now - wait).map(|(ordinal, _)| *ordinal).collect();
        for ordinal in over {
            self.cooling.remove(&ordinal);
            self.queue.push_back(ordinal);
        }
    }
}

fn agree(block: &Block, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(block::fault(block), None);
    prop_assert_eq!(block.unallocated.iter().copied().collect::<VecDeque<_>>(), model.queue.clone());
    let held: BTreeMap<u32, String> = block::allocated(block)
        .filter(|(_, attribute)| attribute.released_at.is_none())
        .map(|(ordinal, attribute)| (ordinal.0, attribute.handle_id.clone().unwrap_or_default()))
        .collect();
    prop_assert_eq!(held, model.held.clone());
    prop_assert_eq!(block::is_empty(block), model.held.is_empty() && model.cooling.is_empty());
    let stamped: BTreeSet<u32> = block.sequence_for_allocation.keys().copied().collect();
    let taken: BTreeSet<u32> = model.held.keys().chain(model.cooling.keys()).copied().collect();
    prop_assert_eq!(stamped, taken);
    prop_assert!(block.sequence_for_allocation.values().all(|stamp| *stamp < block.sequence_number));
    let used: BTreeSet<usize> = block.allocations.iter().copied().flatten().collect();
    prop_assert_eq!(used.len(), block.attributes.len(), "every attribute is referred to");
    Ok(())
}

proptest! {
    #[test]
    fn a_block_does_what_a_list_of_holders_would(steps in proptest::collection::vec(step(), 0..60)) {
        let cidr: Cidr = "10.0.0.0/28".parse().unwrap();
        let owner = Owner::host("n");
        let mut now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut block = block::new_block(cidr, &owner, now);
        let mut model = Model { queue: (0..16).collect(), ..Model::default() };
        for step in steps {
            block::collect(&mut block, COOLDOWN_SECONDS, now);
            model.collect(now);
            match step {
                Step::Take { count, handle } => {
                    let handle = format!("h{handle}");
                    let taken = block::take(&mut block, &Take {
                        count,
                        handle: Some(&handle),
                        attributes: &BTreeMap::new(),
                        reserved: &ReservationSet::default(),
                        avoid: &BTreeSet::new(),
                        only_owner: Some(&owner),
                    }).unwrap();
                    let expected: Vec<u32> = model.queue.drain(..count.min(model.queue.len())).collect();
                    prop_assert_eq!(taken.iter().map(|taken| taken.ordinal.0).collect::<Vec<_>>(), expected.clone());
                    model.held.extend(expected.into_iter().map(|ordinal| (ordinal, handle.clone())));
                }
                Step::Assign { low, handle } => {
                    let handle = format!("h{handle}");
                    let address = IpAddr::from([10, 0, 0, low]);
                    let done = block::assign(&mut block, address, Some(&handle), &BTreeMap::new(), None).is_ok();
                    let place = model.queue.iter().position(|ordinal| *ordinal == u32::from(low));
                    prop_assert_eq!(done, place.is_some());
                    if let Some(place) = place {
                        model.queue.remove(place);
                        model.held.insert(u32::from(low), handle);
                    }
                }
                Step::Release { low, handle } => {
                    let handle = handle.map(|handle| format!("h{handle}"));
                    let before = block.clone();
                    let release = Release { address: IpAddr::from([10, 0, 0, low]), handle: handle.clone(), sequence: None };
                    let outcome = block::release(&mut block, &[release], COOLDOWN_SECONDS, now);
                    let holder = model.held.get(&u32::from(low)).cloned();
                    match holder {
                        _ if low > 15 => prop_assert!(outcome.is_err()),
                        Some(holder) if handle.as_ref().is_none_or(|handle| *handle == holder) => {
                            prop_assert_eq!(outcome.unwrap().ordinals, BTreeSet::from([Ordinal(u32::from(low))]));
                            model.release(BTreeSet::from([u32::from(low)]), now);
                        }
                        Some(_) => prop_assert!(outcome.is_err()),
                        None => prop_assert_eq!(outcome.unwrap().not_allocated.len(), 1),
                    }
                    if before == block {
                        continue;
                    }
                }
                Step::ReleaseByHandle { handle } => {
                    let handle = format!("h{handle}");
                    let held: BTreeSet<u32> =
                        model.held.iter().filter(|(_, holder)| **holder == handle).map(|(ordinal, _)| *ordinal).collect();
                    let freed = block::release_by_handle(&mut block, &handle, None, COOLDOWN_SECONDS, now);
                    prop_assert_eq!(freed.into_iter().map(|ordinal| ordinal.0).collect::<BTreeSet<_>>(), held.clone());
                    model.release(held, now);
                }
                Step::Wait { seconds } => now += SignedDuration::from_secs(seconds),
            }
            block::advance(&mut block);
            agree(&block, &model)?;
            // What is written and read again is the same block, but for fractions of seconds, which these times lack.
            prop_assert_eq!(Block::from_v1(&block.to_v1()).unwrap(), block.clone());
        }
    }
}
