//! A block of every size under any sequence of operations, against a model that knows only who holds which address
//! since when, and a queue (algorithm §2, invariants I1 to I7 and I25 to I29).

#![expect(clippy::unwrap_used, reason = "a test may")]

mod block_model;

use api::{Attribute, Block, Cidr, Ordinal, Owner};
use block_model::{Model, attributes, handle, owner};
use ipam::ReservationSet;
use ipam::block::{self, Release, ReleaseError, Take, TakeError};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Block sizes that Calico allows: 4096 addresses down to one.
const SIZES: std::ops::RangeInclusive<u8> = 0..=12;

#[derive(Clone, Debug)]
enum Step {
    Take { count: usize, handle: u8, tag: u8, avoid: Vec<u32>, only: Option<u8> },
    Assign { place: u32, handle: u8, tag: u8, only: Option<u8> },
    Release { releases: Vec<Asked> },
    ReleaseByHandle { handle: u8, stamp_of: Option<u32> },
    Disown,
    Wait { seconds: i64 },
    Cooldown { seconds: u32 },
}

/// One address of a release: where, and what the caller believes of it.
#[derive(Clone, Debug)]
struct Asked {
    place: u32,
    handle: Option<u8>,
    /// Added to the true stamp; `None`: not asked.
    stamp: Option<u64>,
}

/// Ordinals; now and then one behind the last. The low ones are met more often, so that steps meet each other.
fn place() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0_u32..6, 2 => 0_u32..40, 1 => any::<u32>()]
}

fn asked() -> impl Strategy<Value = Asked> {
    let stamp = prop_oneof![4 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    (place(), prop_oneof![3 => Just(None), 2 => (0_u8..5).prop_map(Some)], stamp)
        .prop_map(|(place, handle, stamp)| Asked { place, handle, stamp })
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![5 => 0_usize..4, 1 => Just(1_000_000)];
    let only = prop_oneof![3 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    prop_oneof![
        6 => (count, 0_u8..6, 0_u8..2, proptest::collection::vec(place(), 0..3), only.clone())
            .prop_map(|(count, handle, tag, avoid, only)| Step::Take { count, handle, tag, avoid, only }),
        3 => (place(), 0_u8..6, 0_u8..2, only)
            .prop_map(|(place, handle, tag, only)| Step::Assign { place, handle, tag, only }),
        6 => proptest::collection::vec(asked(), 0..4).prop_map(|releases| Step::Release { releases }),
        3 => (0_u8..5, proptest::option::of(place()))
            .prop_map(|(handle, stamp_of)| Step::ReleaseByHandle { handle, stamp_of }),
        1 => Just(Step::Disown),
        3 => (-3_i64..12).prop_map(|seconds| Step::Wait { seconds }),
        1 => prop_oneof![Just(0_u32), Just(5), Just(u32::MAX)].prop_map(|seconds| Step::Cooldown { seconds }),
    ]
}

/// Where a block of each size lies: any base, and reservations inside, around or beside it.
fn ground(version: IpAddr, size: u8) -> impl Strategy<Value = (Cidr, Vec<Cidr>)> {
    let bits = if version.is_ipv4() { 32 } else { 128 };
    let prefix = bits - size;
    let entry = (any::<u32>(), prefix.saturating_sub(1)..=bits);
    (any::<u128>(), proptest::collection::vec(entry, 0..3)).prop_map(move |(base, entries)| {
        let at = |number: u128| -> IpAddr {
            let mut four = [0; 4];
            four.copy_from_slice(&number.to_be_bytes()[12..]);
            if bits == 32 { IpAddr::from(four) } else { IpAddr::from(number.to_be_bytes()) }
        };
        let block = Cidr::containing(at(base), prefix).unwrap();
        let size = u32::try_from(block.size()).unwrap();
        // One in four lands in the neighbouring block.
        let reserved = entries
            .into_iter()
            .map(|(offset, longer)| {
                let beside = u128::from(offset % 4 == 0) * u128::from(size);
                Cidr::containing(at((base ^ beside) ^ u128::from(offset % size)), longer).unwrap()
            })
            .collect();
        (block, reserved)
    })
}

/// The address at `place`; those behind the last wrap into the neighbouring block, or around the family.
fn address(cidr: Cidr, place: u32) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(first) => IpAddr::V4(first.to_bits().wrapping_add(place).into()),
        IpAddr::V6(first) => IpAddr::V6(first.to_bits().wrapping_add(u128::from(place)).into()),
    }
}

struct Bench {
    block: Block,
    model: Model,
    reserved: ReservationSet,
    reserved_ordinals: BTreeSet<u32>,
    now: Timestamp,
    cooldown: u32,
}

impl Bench {
    fn new(cidr: Cidr, reserved: Vec<Cidr>) -> Self {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let block = block::new_block(cidr, &owner(0), now);
        let model = Model::new(u32::try_from(cidr.size()).unwrap(), block.sequence_number);
        let reserved_ordinals = (0..model.size)
            .filter(|ordinal| reserved.iter().any(|entry| entry.contains(address(cidr, *ordinal))))
            .collect();
        let reserved =
            ReservationSet::new(&[api::Reservation { name: "reserved".to_owned(), cidrs: reserved }]);
        Self { block, model, reserved, reserved_ordinals, now, cooldown: 5 }
    }

    /// Places of a small block are met again and again; one behind the last stays possible.
    fn fold(&self, place: u32) -> u32 {
        place % (self.model.size + 1)
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let collected = block::collect(&mut self.block, self.cooldown, self.now);
        prop_assert_eq!(collected, self.model.collect(self.cooldown, self.now));
        let before = self.block.clone();
        match step {
            Step::Take { count, handle, tag, avoid, only } => {
                self.take(*count, *handle, *tag, avoid, *only)?;
            }
            Step::Assign { place, handle, tag, only } => self.assign(*place, *handle, *tag, *only)?,
            Step::Release { releases } => self.release(releases, &before)?,
            Step::ReleaseByHandle { handle, stamp_of } => self.release_by_handle(*handle, *stamp_of)?,
            Step::Disown => {
                self.block.affinity = None;
                self.model.owned = false;
            }
            Step::Wait { seconds } => self.now += SignedDuration::from_secs(*seconds),
            Step::Cooldown { seconds } => self.cooldown = *seconds,
        }
        // I3: one write, one number.
        if collected || before != self.block {
            block::advance(&mut self.block);
            self.model.number += 1;
        }
        self.agree()
    }

    fn owned_by(&self, only: Option<u8>) -> bool {
        only.is_none_or(|wanted| wanted == 0 && self.model.owned)
    }

    fn take(
        &mut self,
        count: usize,
        handle_number: u8,
        tag: u8,
        avoid: &[u32],
        only: Option<u8>,
    ) -> Result<(), TestCaseError> {
        let avoid: BTreeSet<Ordinal> = avoid.iter().map(|place| Ordinal(self.fold(*place))).collect();
        let (handle, only_owner) = (handle(handle_number), only.map(owner));
        let request = Take {
            count,
            handle: handle.as_deref(),
            attributes: &attributes(tag),
            reserved: &self.reserved,
            avoid: &avoid,
            only_owner: only_owner.as_ref(),
        };
        let outcome = block::take(&mut self.block, &request);
        if !self.owned_by(only) {
            prop_assert!(matches!(outcome, Err(TakeError::NotOwner { .. })), "{:?}", outcome);
            return Ok(());
        }
        let expected = self.model.take(count, handle, tag, |ordinal| {
            avoid.contains(&Ordinal(ordinal)) || self.reserved_ordinals.contains(&ordinal)
        });
        let taken = outcome.unwrap();
        prop_assert_eq!(taken.iter().map(|taken| taken.ordinal.0).collect::<Vec<_>>(), expected);
        for taken in taken {
            prop_assert_eq!(taken.address, address(self.block.cidr, taken.ordinal.0));
            prop_assert_eq!(taken.sequence, self.model.number);
        }
        Ok(())
    }

    fn assign(
        &mut self,
        place: u32,
        handle_number: u8,
        tag: u8,
        only: Option<u8>,
    ) -> Result<(), TestCaseError> {
        let place = self.fold(place);
        let (handle, only_owner) = (handle(handle_number), only.map(owner));
        let at = address(self.block.cidr, place);
        let (secondary, only_owner) = (attributes(tag), only_owner.as_ref());
        let outcome = block::assign(&mut self.block, at, handle.as_deref(), &secondary, only_owner);
        if !self.owned_by(only) {
            prop_assert!(matches!(outcome, Err(TakeError::NotOwner { .. })), "{:?}", outcome);
        } else if place >= self.model.size {
            prop_assert!(matches!(outcome, Err(TakeError::OutOfBlock { .. })), "{:?}", outcome);
        } else if self.model.assign(place, handle, tag) {
            prop_assert_eq!(outcome.unwrap().ordinal, Ordinal(place));
        } else {
            prop_assert!(matches!(outcome, Err(TakeError::AlreadyAssigned { .. })), "{:?}", outcome);
        }
        Ok(())
    }

    fn release(&mut self, releases: &[Asked], before: &Block) -> Result<(), TestCaseError> {
        let releases: Vec<(u32, Release)> = releases
            .iter()
            .map(|asked| {
                let place = self.fold(asked.place);
                let release = Release {
                    address: address(self.block.cidr, place),
                    handle: asked.handle.and_then(handle),
                    sequence: asked.stamp.map(|off| self.model.stamp(place) + off),
                };
                (place, release)
            })
            .collect();
        let asked: Vec<Release> = releases.iter().map(|(_, release)| release.clone()).collect();
        let outcome = block::release(&mut self.block, &asked, self.cooldown, self.now);
        match self.model.release(&releases, self.cooldown, self.now) {
            Ok(done) => {
                let released = outcome.unwrap();
                prop_assert_eq!(released.ordinals, done.ordinals.iter().copied().map(Ordinal).collect());
                let mut not_allocated: Vec<IpAddr> =
                    done.not_allocated.iter().map(|place| address(self.block.cidr, *place)).collect();
                not_allocated.sort();
                prop_assert_eq!(released.not_allocated, not_allocated);
                prop_assert_eq!(released.by_handle, done.by_handle);
                // I26: nothing given back, nothing to write.
                prop_assert!(!done.ordinals.is_empty() || self.block == *before);
            }
            // I25: a refusal names the address, and leaves the block as it was.
            Err(refused) => {
                let refusal = outcome.unwrap_err();
                let (ReleaseError::OutOfBlock { address: named, .. }
                | ReleaseError::OtherSequence { address: named, .. }
                | ReleaseError::OtherHandle { address: named, .. }) = &refusal;
                prop_assert!(
                    refused.iter().any(|place| address(self.block.cidr, *place) == *named),
                    "{}",
                    refusal
                );
                prop_assert_eq!(&self.block, before);
            }
        }
        Ok(())
    }

    fn release_by_handle(&mut self, number: u8, stamp_of: Option<u32>) -> Result<(), TestCaseError> {
        let Some(handle) = handle(number) else { return Ok(()) };
        let sequence = stamp_of.map(|place| self.model.stamp(self.fold(place)));
        let freed = block::release_by_handle(&mut self.block, &handle, sequence, self.cooldown, self.now);
        let expected = self.model.release_by_handle(&handle, sequence, self.cooldown, self.now);
        prop_assert_eq!(freed, expected.into_iter().map(Ordinal).collect());
        Ok(())
    }

    /// The block says what the model says, and is sound.
    fn agree(&self) -> Result<(), TestCaseError> {
        let (block, model) = (&self.block, &self.model);
        prop_assert_eq!(block::fault(block), None);
        prop_assert!(block.unallocated.iter().eq(&model.queue), "{:?} {:?}", block.unallocated, model.queue);
        let live = |attribute: &Attribute| attribute.released_at.is_none();
        let held =
            block::allocated(block).filter(|(_, attribute)| live(attribute)).map(|(ordinal, attribute)| {
                (ordinal.0, attribute.handle_id.clone(), attribute.secondary.clone())
            });
        let expected =
            model.held.iter().map(|(ordinal, (handle, tag))| (*ordinal, handle.clone(), attributes(*tag)));
        prop_assert!(held.eq(expected), "{:?} {:?}", block, model);
        let cooling = block::allocated(block)
            .filter_map(|(ordinal, attribute)| Some((ordinal.0, attribute.released_at?)));
        prop_assert!(cooling.eq(model.cooling.iter().map(|(ordinal, at)| (*ordinal, *at))));
        // I2, and §2.5: equal owners share an attribute.
        let mut used: Vec<usize> = block.allocations.iter().copied().flatten().collect();
        used.sort_unstable();
        used.dedup();
        prop_assert!(used.into_iter().eq(0..block.attributes.len()), "every attribute is referred to");
        let owners: BTreeSet<_> = model.held.values().collect();
        prop_assert_eq!(block.attributes.iter().filter(|attribute| live(attribute)).count(), owners.len());
        // I4. After the write every stamp is below the block's number.
        prop_assert_eq!(&*block.sequence_for_allocation, &model.stamps);
        prop_assert_eq!(block.sequence_number, model.number);
        prop_assert!(model.stamps.values().all(|stamp| *stamp < model.number));
        prop_assert_eq!(block::is_empty(block), model.is_empty());
        for number in 0..5 {
            let Some(handle) = handle(number) else { continue };
            let held: Vec<u32> = block::held_by(block, &handle).map(|ordinal| ordinal.0).collect();
            prop_assert_eq!(&held, &model.held_by(&handle));
            prop_assert_eq!(block::count_of(block, &handle), u32::try_from(held.len()).unwrap());
        }
        let free = model.queue.iter().filter(|ordinal| !self.reserved_ordinals.contains(ordinal)).count();
        prop_assert_eq!(block::free_count(block, &self.reserved), free);
        let counted = ipam::utilization::count_block(block, &self.reserved).count;
        prop_assert_eq!(counted.total, u128::from(model.size));
        prop_assert_eq!(counted.in_use, u128::try_from(model.held.len() + model.cooling.len()).unwrap());
        prop_assert_eq!(counted.reserved, u128::try_from(self.reserved_ordinals.len()).unwrap());
        prop_assert_eq!(counted.free, u128::try_from(free).unwrap());
        Ok(())
    }
}

/// Runs sequences of steps on blocks of each size; fewer on large ones, which take longer.
fn every_size(version: IpAddr) {
    for size in SIZES {
        let cases = match size {
            10.. => 3,
            8.. => 8,
            _ => 48,
        };
        let mut runner = TestRunner::new(Config { cases, ..Config::default() });
        let strategy = (ground(version, size), proptest::collection::vec(step(), 0..50));
        let outcome = runner.run(&strategy, |((cidr, reserved), steps)| {
            let mut bench = Bench::new(cidr, reserved);
            bench.agree()?;
            for step in &steps {
                bench.run(step)?;
            }
            // What is written and read again is the same block.
            prop_assert_eq!(Block::from_v1(&bench.block.to_v1()).unwrap(), bench.block);
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("blocks of 2^{size} addresses: {failure}"));
    }
}

#[test]
fn an_ipv4_block_of_any_size_does_what_a_list_of_holders_would() {
    every_size("0.0.0.0".parse().unwrap());
}

#[test]
fn an_ipv6_block_of_any_size_does_what_a_list_of_holders_would() {
    every_size("::".parse().unwrap());
}

proptest! {
    /// I6: with no cooldown, one at a time, all N addresses come before the first again.
    #[test]
    fn reuse_visits_every_address_before_the_first_again(size in 0_u8..=8, turns in 1_usize..600) {
        let cidr = Cidr::containing("10.0.0.0".parse().unwrap(), 32 - size).unwrap();
        let mut now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut block = block::new_block(cidr, &owner(0), now);
        let mut last_use = BTreeMap::new();
        for turn in 0..turns {
            let address = one(&mut block).unwrap();
            if let Some(before) = last_use.insert(address, turn) {
                prop_assert_eq!(turn - before, 1 << size);
            }
            now += SignedDuration::from_millis(1);
            block::release(&mut block, &[Release { address, handle: None, sequence: None }], 0, now).unwrap();
            block::advance(&mut block);
        }
    }

    /// I7: whatever is asked for, an address rests for its cooldown after each release.
    #[test]
    fn an_address_rests_for_its_cooldown(
        cooldown in 1_u32..20,
        size in 0_u8..=3,
        steps in proptest::collection::vec((any::<bool>(), 0_usize..8, 0_i64..6), 1..80),
    ) {
        let cidr = Cidr::containing("fd00::".parse().unwrap(), 128 - size).unwrap();
        let mut now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut block = block::new_block(cidr, &Owner::host("n"), now);
        let (mut live, mut released_at) = (Vec::new(), BTreeMap::new());
        for (takes, which, seconds) in steps {
            now += SignedDuration::from_secs(seconds);
            block::collect(&mut block, cooldown, now);
            if takes || live.is_empty() {
                let Some(address) = one(&mut block) else { continue };
                if let Some(at) = released_at.insert(address, Timestamp::MAX) {
                    prop_assert!(now - SignedDuration::from_secs(i64::from(cooldown)) > at);
                }
                live.push(address);
            } else {
                let address = live.swap_remove(which % live.len());
                let release = Release { address, handle: None, sequence: None };
                block::release(&mut block, &[release], cooldown, now).unwrap();
                released_at.insert(address, now);
            }
            block::advance(&mut block);
        }
    }
}

/// Takes the next address.
fn one(block: &mut Block) -> Option<IpAddr> {
    let request = Take {
        count: 1,
        handle: Some("h"),
        attributes: &BTreeMap::new(),
        reserved: &ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    let taken = block::take(block, &request).unwrap().pop()?;
    block::advance(block);
    Some(taken.address)
}
