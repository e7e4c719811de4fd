//! What can be done to one block: the primitives of algorithm §2, as pure functions.
//!
//! None of them reads or writes a store. A write path takes a copy of the block read, changes it by these functions,
//! calls [`advance`] once, and writes the copy on condition that the block read is still there.

mod release;

pub use release::{Release, ReleaseError, Released, release, release_by_handle};

use crate::mistake::{Mistake, made};
use crate::reservations::ReservationSet;
use api::{Attribute, Block, Cidr, Ordinal, Owner};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Handle of ordinals that Windows nodes keep for themselves; a block with nothing else in it is empty.
pub const WINDOWS_RESERVED_HANDLE: &str = "windows-reserved-ipam-handle";

/// A handle as compared: what follows the first `\r` is junk of an old migration (data model §2.6).
pub fn sanitized(handle: &str) -> &str {
    handle.split('\r').next().unwrap_or_default()
}

/// Whether a handle as stored is this one, which is [`sanitized`].
fn is_handle(stored: &str, handle: &str) -> bool {
    // Most differ in their first bytes: nothing is searched for in them.
    stored.strip_prefix(handle).is_some_and(|junk| junk.is_empty() || junk.starts_with('\r'))
}

/// A free block of `owner`, claimed at `now`; its ordinals wait in ascending order.
///
/// The sequence number starts at the nanoseconds of `now`, so that a block made again starts above its predecessor.
pub fn new_block(cidr: Cidr, owner: &Owner, now: Timestamp) -> Block {
    let size = u32::try_from(cidr.size()).unwrap_or(u32::MAX);
    Block {
        cidr,
        affinity: Some(owner.clone()),
        claim_time: Some(now),
        allocations: Arc::new((0..size).map(|_| None).collect()),
        unallocated: (0..size).collect(),
        attributes: Arc::default(),
        sequence_number: first_sequence_number(now),
        sequence_for_allocation: Arc::default(),
        deleted: false,
        legacy_host_affinity: None,
    }
}

/// The nanoseconds of `now`.
fn first_sequence_number(now: Timestamp) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    let nanoseconds = u64::try_from(now.as_nanosecond()).unwrap_or(0);
    if made(Mistake::StampReissued) { nanoseconds / SECOND * SECOND } else { nanoseconds }
}

/// Counts one write: to be called once before a changed block is written, a new one with addresses in it included.
///
/// For a new block this puts the stamps of its first addresses below its own number, so that no later stamp repeats
/// them (architecture D4).
pub fn advance(block: &mut Block) {
    block.sequence_number = block.sequence_number.wrapping_add(1);
}

/// Frees ordinals whose cooldown is over and drops attributes nothing refers to; says whether anything changed.
///
/// To be run after every load of a block. Ordinals freed together join the queue in ascending order. With a cooldown
/// of 0 every released ordinal is free at once, whatever its clock said (quirk Q1).
pub fn collect(block: &mut Block, cooldown_seconds: u32, now: Timestamp) -> bool {
    let cutoff =
        now.checked_sub(SignedDuration::from_secs(i64::from(cooldown_seconds))).unwrap_or(Timestamp::MIN);
    let over = |attribute: &Arc<Attribute>| {
        attribute.released_at.is_some_and(|released| cooldown_seconds == 0 || released < cutoff)
    };
    let mut changed = false;
    // Most blocks have nothing that cools down: then there is nothing to look up.
    if block.attributes.iter().any(over) {
        let stamps = Arc::make_mut(&mut block.sequence_for_allocation);
        for (ordinal, allocation) in (0_u32..).zip(Arc::make_mut(&mut block.allocations)) {
            if allocation.and_then(|index| block.attributes.get(index)).is_some_and(over) {
                *allocation = None;
                block.unallocated.push(ordinal);
                stamps.remove(&ordinal);
                changed = true;
            }
        }
    }
    drop_unused_attributes(block) || changed
}

fn drop_unused_attributes(block: &mut Block) -> bool {
    let mut used = vec![false; block.attributes.len()];
    for index in block.allocations.iter().flatten() {
        if let Some(mark) = used.get_mut(*index) {
            *mark = true;
        }
    }
    if used.iter().all(|used| *used) {
        return false;
    }
    // Where each attribute that stays will stand.
    let mut kept = 0;
    let places: Vec<usize> = used
        .iter()
        .map(|used| {
            let place = kept;
            kept += usize::from(*used);
            place
        })
        .collect();
    let mut marks = used.into_iter();
    Arc::make_mut(&mut block.attributes).retain(|_| marks.next().unwrap_or(false));
    for allocation in Arc::make_mut(&mut block.allocations).iter_mut().flatten() {
        if let Some(place) = places.get(*allocation) {
            *allocation = *place;
        }
    }
    true
}

/// Addresses that could be handed out automatically: queued and not reserved. Cooling ones are not queued.
pub fn free_count(block: &Block, reserved: &ReservationSet) -> usize {
    if !reserved.touches(block.cidr) {
        return block.unallocated.len();
    }
    if reserved.covers(block.cidr) {
        return 0;
    }
    block.unallocated.iter().filter(|ordinal| !is_reserved(block.cidr, **ordinal, reserved)).count()
}

fn is_reserved(cidr: Cidr, ordinal: u32, reserved: &ReservationSet) -> bool {
    cidr.address(Ordinal(ordinal)).is_some_and(|address| reserved.covers_address(address))
}

/// Whether the block may be given up: nothing is in it but what a Windows node keeps for itself.
///
/// Anonymous and cooling ordinals make a block non-empty.
pub fn is_empty(block: &Block) -> bool {
    allocated(block).all(|(_, attribute)| is_kept_by_host(attribute))
}

/// Whether this is what a Windows node keeps for itself.
pub(crate) fn is_kept_by_host(attribute: &Attribute) -> bool {
    let handle = attribute.handle_id.as_deref();
    handle.is_some_and(|handle| sanitized(handle).eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE))
}

/// Every ordinal that is not free, with what it refers to, ascending; cooling ones included.
pub fn allocated(block: &Block) -> impl Iterator<Item = (Ordinal, &Attribute)> {
    (0_u32..).zip(block.allocations.iter()).filter_map(|(ordinal, allocation)| {
        let attribute = block.attributes.get((*allocation)?)?;
        Some((Ordinal(ordinal), attribute.as_ref()))
    })
}

/// The ordinals held by `handle`, ascending. What cools down is held by nobody, whatever else its attribute says.
pub fn held_by<'a>(block: &'a Block, handle: &str) -> impl Iterator<Item = Ordinal> + 'a {
    let handle = sanitized(handle).to_owned();
    allocated(block)
        .filter(move |(_, attribute)| {
            attribute.released_at.is_none()
                && attribute.handle_id.as_deref().is_some_and(|stored| is_handle(stored, &handle))
        })
        .map(|(ordinal, _)| ordinal)
}

/// How many ordinals of this block `handle` holds: the count that its handle record should carry (architecture D4).
pub fn count_of(block: &Block, handle: &str) -> u32 {
    u32::try_from(held_by(block, handle).count()).unwrap_or(u32::MAX)
}

/// What the ordinal of `address` refers to; `None` if it is free or no address of this block.
pub fn attribute_of(block: &Block, address: IpAddr) -> Option<&Attribute> {
    let index = usize::try_from(block.cidr.ordinal(address)?.0).ok()?;
    block.attributes.get((*block.allocations.get(index)?)?).map(Arc::as_ref)
}

/// The stamp of an ordinal's allocation; 0 where there is none.
pub fn stamp(block: &Block, ordinal: Ordinal) -> u64 {
    block.sequence_for_allocation.get(&ordinal.0).copied().unwrap_or(0)
}

/// Index of the attribute with exactly this handle and these active attributes, appended if there is none.
fn attribute_index(block: &mut Block, handle: Option<&str>, secondary: &BTreeMap<String, String>) -> usize {
    let same = |attribute: &Arc<Attribute>| {
        attribute.handle_id.as_deref() == handle
            && attribute.released_at.is_none()
            && attribute.alternate.is_empty()
            && attribute.secondary == *secondary
    };
    block.attributes.iter().position(same).unwrap_or_else(|| {
        Arc::make_mut(&mut block.attributes).push(Arc::new(Attribute {
            handle_id: handle.map(str::to_owned),
            secondary: secondary.clone(),
            ..Attribute::default()
        }));
        block.attributes.len() - 1
    })
}

/// An address taken from a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The block it is of.
    pub block: Cidr,
    /// Its position there.
    pub ordinal: Ordinal,
    /// The address.
    pub address: IpAddr,
    /// The stamp that tells this allocation from earlier and later ones of the same ordinal.
    pub sequence: u64,
}

impl Taken {
    /// The address with its block's prefix length, as Calico answers it: `192.168.12.69/26`.
    pub fn with_block_prefix(&self) -> String {
        format!("{}/{}", self.address, self.block.prefix())
    }
}

/// What is wanted of a block.
#[derive(Clone, Copy, Debug)]
pub struct Take<'a> {
    /// How many addresses at most.
    pub count: usize,
    /// Handle to hold them.
    pub handle: Option<&'a str>,
    /// Attributes of the owner, `secondary` on the wire.
    pub attributes: &'a BTreeMap<String, String>,
    /// Addresses never handed out automatically.
    pub reserved: &'a ReservationSet,
    /// Ordinals to pass over: those that the same batch released (architecture D4).
    pub avoid: &'a BTreeSet<Ordinal>,
    /// Refuse unless the block is this owner's. `None`: take from anybody's block, which is borrowing.
    pub only_owner: Option<&'a Owner>,
}

/// Why nothing was taken or assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// The block belongs to somebody else, or to nobody.
    #[error("block {block} belongs to {}, not to {wanted}: take from a block of its own or turn strict affinity off", owner_text(.owner.as_ref()))]
    NotOwner {
        /// The block.
        block: Cidr,
        /// Who has it.
        owner: Option<Owner>,
        /// Who wanted it.
        wanted: Owner,
    },
    /// The address is none of this block.
    #[error("address {address} is not in block {block}")]
    OutOfBlock {
        /// The block.
        block: Cidr,
        /// The address.
        address: IpAddr,
    },
    /// The address is taken, or cooling down.
    #[error("address {address} is already assigned in block {block}: choose another or release it first")]
    AlreadyAssigned {
        /// The block.
        block: Cidr,
        /// The address.
        address: IpAddr,
    },
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "nobody".to_owned(), Owner::to_string)
}

fn check_owner(block: &Block, only: Option<&Owner>) -> Result<(), TakeError> {
    match only {
        Some(wanted) if block.affinity.as_ref() != Some(wanted) => Err(TakeError::NotOwner {
            block: block.cidr,
            owner: block.affinity.clone(),
            wanted: wanted.clone(),
        }),
        _ => Ok(()),
    }
}

/// Takes up to `count` free addresses from the head of the queue, longest free first.
///
/// Reserved and avoided ordinals keep their place in the queue. The block is changed only for what is returned,
/// perhaps nothing. The stamp is the block's present sequence number; [`advance`] once before writing.
///
/// # Errors
/// [`TakeError::NotOwner`] if `only_owner` is given and does not own the block: nothing is taken.
pub fn take(block: &mut Block, request: &Take<'_>) -> Result<Vec<Taken>, TakeError> {
    check_owner(block, request.only_owner)?;
    let cidr = block.cidr;
    let touched = request.reserved.touches(cidr);
    let (mut taken, mut passed_over, mut looked_at) = (Vec::new(), Vec::new(), 0);
    for number in &block.unallocated {
        if taken.len() >= request.count {
            break;
        }
        looked_at += 1;
        let ordinal = Ordinal(*number);
        let skipped = |address: &IpAddr| {
            request.avoid.contains(&ordinal) || (touched && request.reserved.covers_address(*address))
        };
        let address = cidr.address(ordinal).filter(|address| !skipped(address));
        match address {
            Some(address) => {
                taken.push(Taken { block: cidr, ordinal, address, sequence: block.sequence_number })
            }
            None => passed_over.push(*number),
        }
    }
    if !taken.is_empty() {
        block.unallocated.splice(..looked_at, passed_over);
    }
    if !taken.is_empty() {
        let index = attribute_index(block, request.handle, request.attributes);
        for address in &taken {
            occupy(block, address.ordinal, index);
        }
    }
    Ok(taken)
}

fn occupy(block: &mut Block, ordinal: Ordinal, attribute: usize) {
    let allocations = Arc::make_mut(&mut block.allocations);
    if let Some(slot) = usize::try_from(ordinal.0).ok().and_then(|index| allocations.get_mut(index)) {
        *slot = Some(attribute);
        Arc::make_mut(&mut block.sequence_for_allocation).insert(ordinal.0, block.sequence_number);
    }
}

/// Assigns one particular address. Reservations and selectors are not consulted.
///
/// # Errors
/// See [`TakeError`]; the block is then unchanged.
pub fn assign(
    block: &mut Block,
    address: IpAddr,
    handle: Option<&str>,
    attributes: &BTreeMap<String, String>,
    only_owner: Option<&Owner>,
) -> Result<Taken, TakeError> {
    check_owner(block, only_owner)?;
    let cidr = block.cidr;
    let ordinal = cidr.ordinal(address).ok_or(TakeError::OutOfBlock { block: cidr, address })?;
    let place = block
        .unallocated
        .iter()
        .position(|waiting| *waiting == ordinal.0)
        .ok_or(TakeError::AlreadyAssigned { block: cidr, address })?;
    block.unallocated.remove(place);
    let index = attribute_index(block, handle, attributes);
    occupy(block, ordinal, index);
    Ok(Taken { block: cidr, ordinal, address, sequence: block.sequence_number })
}

/// What is wrong with a block, for the assertion at the store's edge and for `calicoctl ipam check`; `None` if nothing.
///
/// Checks invariant 2: every ordinal is either allocated or once in the queue, and every reference has an attribute.
pub fn fault(block: &Block) -> Option<String> {
    let size = block.cidr.size();
    if u128::try_from(block.allocations.len()) != Ok(size) {
        return Some(format!("{} allocation entries for {size} addresses", block.allocations.len()));
    }
    for (ordinal, allocation) in block.allocations.iter().enumerate() {
        if let Some(index) = allocation.filter(|index| *index >= block.attributes.len()) {
            return Some(format!("allocation {ordinal} indexes a nonexistent attribute {index}"));
        }
    }
    let mut queued = vec![false; block.allocations.len()];
    for ordinal in &block.unallocated {
        let slot = usize::try_from(*ordinal).ok();
        match slot.and_then(|slot| block.allocations.get(slot).zip(queued.get_mut(slot))) {
            None => return Some(format!("ordinal {ordinal} is queued but out of the block")),
            Some((Some(_), _)) => return Some(format!("ordinal {ordinal} is allocated but queued")),
            Some((None, queued)) => {
                if std::mem::replace(queued, true) {
                    return Some(format!("ordinal {ordinal} is queued more than once"));
                }
            }
        }
    }
    let free = block.allocations.iter().filter(|allocation| allocation.is_none()).count();
    let waiting = block.unallocated.len();
    (free != waiting).then(|| format!("{free} ordinals are free but {waiting} are queued"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn owner() -> Owner {
        Owner::host("n1")
    }

    pub(super) fn fresh(cidr: &str) -> Block {
        new_block(cidr.parse().unwrap(), &owner(), at(0))
    }

    pub(super) fn take_as(block: &mut Block, count: usize, handle: &str) -> Vec<String> {
        let request = Take {
            count,
            handle: Some(handle),
            attributes: &BTreeMap::new(),
            reserved: &ReservationSet::default(),
            avoid: &BTreeSet::new(),
            only_owner: Some(&owner()),
        };
        let taken = take(block, &request).unwrap();
        advance(block);
        taken.iter().map(Taken::with_block_prefix).collect()
    }

    #[test]
    fn addresses_are_taken_in_queue_order_with_the_prefix_of_the_block() {
        let mut block = fresh("10.0.0.64/30");
        assert_eq!(take_as(&mut block, 2, "a"), ["10.0.0.64/30", "10.0.0.65/30"]);
        assert_eq!(take_as(&mut block, 9, "b"), ["10.0.0.66/30", "10.0.0.67/30"]);
        assert_eq!(take_as(&mut block, 1, "c"), [""; 0]);
        assert_eq!(block.attributes.len(), 2);
        assert_eq!(fault(&block), None);
    }

    #[test]
    fn reserved_and_avoided_ordinals_keep_their_place() {
        let mut block = fresh("10.0.0.0/29");
        let reserved = ReservationSet::new(&[api::Reservation {
            name: "r".to_owned(),
            cidrs: vec!["10.0.0.0/31".parse().unwrap()],
        }]);
        let request = Take {
            count: 2,
            handle: None,
            attributes: &BTreeMap::new(),
            reserved: &reserved,
            avoid: &BTreeSet::from([Ordinal(3)]),
            only_owner: None,
        };
        let taken = take(&mut block, &request).unwrap();
        assert_eq!(taken.iter().map(|taken| taken.ordinal.0).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(block.unallocated, [0, 1, 3, 5, 6, 7]);
        assert_eq!(free_count(&block, &reserved), 4);
    }

    #[test]
    fn strict_affinity_refuses_the_block_of_another() {
        let mut block = fresh("10.0.0.0/30");
        let before = block.clone();
        let other = Owner::host("n2");
        let error = assign(&mut block, "10.0.0.1".parse().unwrap(), None, &BTreeMap::new(), Some(&other));
        assert!(matches!(error, Err(TakeError::NotOwner { .. })));
        assert_eq!(block, before);
    }

    #[test]
    fn one_address_is_assigned_once_and_only_inside() {
        let mut block = fresh("10.0.0.0/30");
        let attributes = BTreeMap::new();
        let address = "10.0.0.2".parse().unwrap();
        assert!(assign(&mut block, address, Some("h"), &attributes, None).is_ok());
        assert_eq!(block.unallocated, [0, 1, 3]);
        assert!(matches!(
            assign(&mut block, address, Some("h"), &attributes, None),
            Err(TakeError::AlreadyAssigned { .. })
        ));
        assert!(matches!(
            assign(&mut block, "10.0.0.4".parse().unwrap(), None, &attributes, None),
            Err(TakeError::OutOfBlock { .. })
        ));
    }

    #[test]
    fn what_windows_keeps_does_not_make_a_block_used() {
        let mut block = fresh("10.0.0.0/30");
        take_as(&mut block, 1, "Windows-Reserved-IPAM-Handle");
        assert!(is_empty(&block));
        take_as(&mut block, 1, "h");
        assert!(!is_empty(&block));
    }

    #[test]
    fn faults_are_found() {
        let mut block = fresh("10.0.0.0/30");
        block.unallocated.push(0);
        assert!(fault(&block).is_some());
        let mut block = fresh("10.0.0.0/30");
        block.unallocated.pop();
        assert!(fault(&block).is_some());
        let mut block = fresh("10.0.0.0/30");
        Arc::make_mut(&mut block.allocations)[1] = Some(3);
        assert!(fault(&block).is_some());
    }
}
