//! What must hold after every step (architecture §5), judged from what changed.
//!
//! Lines begin with the number of the invariant; 0 is for answers that are not what was asked for.
//!
//! Nothing here calls the code it judges: blocks are counted, compared and looked through anew.

use crate::db::{Applied, Db};
use crate::promises::Promises;
use api::{AffinityState, Attribute, Block, Cidr, Handle, IpVersion, IpamConfig, Ordinal};
use datastore::{Key, Kind, Record, Stored};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What whoever is acting may free (invariant 6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// Anything that is nobody's by the promises: for clients whose requests are followed there.
    #[default]
    Unpromised,
    /// What this handle holds.
    Handle(String),
    /// These allocations: address, handle, stamp.
    Named(Vec<(IpAddr, String, u64)>),
    /// Nothing that is allocated.
    Nothing,
}

/// Whose addresses a task may answer once more, in a new life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serves<'a> {
    /// It serves no ADD.
    Nobody,
    /// It serves one of this handle.
    Handle(&'a str),
    /// It may serve any: an agent writes for all its pods at once, and what arrives late may have been sent for anybody.
    #[default]
    Anybody,
}

impl Serves<'_> {
    fn is_for(self, handle: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Handle(of) => of == handle,
            Self::Anybody => true,
        }
    }
}

/// What the judge is told about a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Number of the task that acted; 0 for nobody's.
    pub task: u64,
    /// What it may free.
    pub leave: &'a Leave,
    /// Whose addresses it may renew.
    pub serves: Serves<'a>,
    /// A peer did it, which takes off a handle again what it put there itself, whatever the handle says by then.
    pub by_peer: bool,
    /// The node whose rules of automatic assignment it keeps; `None`: it keeps none.
    pub node: Option<&'a str>,
    /// Revision of the store up to which it knew everything when it was decided on; 0: nothing is known of that.
    pub since: u64,
    /// The latest instant that any clock has shown.
    pub latest: Timestamp,
}

/// An allocation that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held<'a> {
    ordinal: u32,
    handle: &'a str,
    stamp: u64,
}

fn held(block: Option<&Block>, ordinal: u32) -> Option<Held<'_>> {
    let block = block?;
    Some(Held { ordinal, handle: holder(block, ordinal)?, stamp: stamp(block, ordinal) })
}

/// What is remembered between steps.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Ranges of the pools, in each of which a node's blocks are counted towards its limit.
    pub ranges: Vec<Cidr>,
    /// Handles that may hold one address of a family.
    pub capped: BTreeSet<String>,
    /// Handles that ask for particular addresses, whom reservations do not bind.
    pub may_be_reserved: BTreeSet<String>,
    /// Handles whose counts a peer may have spoilt: invariant 5 is not asked of them.
    pub spoilt: BTreeSet<String>,
    /// Since when each affinity has been there.
    affinities: BTreeMap<(String, Cidr), u64>,
    /// How many addresses each handle holds in each block.
    counts: BTreeMap<Cidr, Vec<(String, u32)>>,
    /// Every stamp that an ordinal was ever given, and by which task.
    issued: BTreeMap<(IpAddr, u64), u64>,
    /// Blocks whose affinity is confirmed and that are missing or another's, with the task that may yet take that back.
    hollow: Vec<(Cidr, u64)>,
    /// Pairs of blocks that overlap: tolerated while one of them does not count yet.
    overlapping: Vec<(Cidr, Cidr)>,
}

fn block_of(stored: &Stored) -> Option<&Block> {
    match &stored.record {
        Record::Block(block) => Some(block),
        _ => None,
    }
}

fn handle_of(stored: &Stored) -> Option<&Handle> {
    match &stored.record {
        Record::Handle(handle) => Some(handle),
        _ => None,
    }
}

fn attribute(block: &Block, ordinal: u32) -> Option<&Attribute> {
    let index = usize::try_from(ordinal).ok()?;
    block.attributes.get((*block.allocations.get(index)?)?).map(|held| &**held)
}

/// The holder of an ordinal that is allocated and not cooling; handles compare without what follows a `\r`.
fn holder(block: &Block, ordinal: u32) -> Option<&str> {
    let held = attribute(block, ordinal).filter(|held| held.released_at.is_none() && !is_kept(held))?;
    held.handle_id.as_deref().map(|id| id.split('\r').next().unwrap_or_default())
}

/// Whether a host keeps an ordinal for itself: nobody's by any handle's record, and nobody else's either.
pub fn is_kept(held: &Attribute) -> bool {
    held.handle_id.as_deref() == Some(ipam::block::WINDOWS_RESERVED_HANDLE)
}

fn stamp(block: &Block, ordinal: u32) -> u64 {
    block.sequence_for_allocation.get(&ordinal).copied().unwrap_or(0)
}

fn ordinals(block: &Block) -> impl Iterator<Item = u32> + use<> {
    0..u32::try_from(block.allocations.len()).unwrap_or(0)
}

impl Judge {
    /// Knows nothing yet.
    pub fn new(ranges: Vec<Cidr>) -> Self {
        Self {
            ranges,
            affinities: BTreeMap::new(),
            capped: BTreeSet::new(),
            may_be_reserved: BTreeSet::new(),
            spoilt: BTreeSet::new(),
            counts: BTreeMap::new(),
            issued: BTreeMap::new(),
            hollow: Vec::new(),
            overlapping: Vec::new(),
        }
    }

    /// Judges what was done; `wrong` gets a line for each broken invariant, which begins with its number.
    pub fn see(
        &mut self,
        db: &Db,
        applied: &[Applied],
        step: Step<'_>,
        promises: &Promises,
        wrong: &mut Vec<String>,
    ) {
        for change in applied {
            match &change.key {
                Key::Block(cidr) => {
                    let before = change.before.as_deref().and_then(block_of);
                    let after = change.after.as_deref().and_then(block_of);
                    self.block_changed(db, *cidr, before, after, step, promises, wrong);
                }
                Key::Handle(_) => {
                    let before = change.before.as_deref().and_then(handle_of);
                    if let Some(before) = before {
                        let blocks = before.blocks.keys().copied();
                        let unreachable: Vec<String> =
                            blocks.filter_map(|cidr| self.unreachable(db, &before.id, cidr)).collect();
                        if step.by_peer && !unreachable.is_empty() {
                            // The collector lowered the handle while the peer paused, and the peer lowers it once more.
                            self.spoilt.insert(before.id.clone());
                        } else {
                            wrong.extend(unreachable);
                        }
                    }
                }
                Key::Affinity(owner, cidr) => {
                    self.is_confirmed(db, *cidr, step, wrong);
                    let place = (owner.name.clone(), *cidr);
                    match (&change.before, &change.after) {
                        (None, Some(made)) => {
                            wrong.extend(self.beyond_limit(db, &owner.name, *cidr, step));
                            self.affinities.insert(place, made.version.revision.0);
                        }
                        (_, None) => drop(self.affinities.remove(&place)),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if !self.overlapping.is_empty() {
            self.overlaps(db, promises, wrong);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one change, seen from every side that is judged")]
    fn block_changed(
        &mut self,
        db: &Db,
        cidr: Cidr,
        before: Option<&Block>,
        after: Option<&Block>,
        step: Step<'_>,
        promises: &Promises,
        wrong: &mut Vec<String>,
    ) {
        let mut counts: Vec<(String, u32)> = Vec::new();
        if let Some(block) = after {
            wrong.extend(miscounted(block));
            for ordinal in ordinals(block) {
                if let Some(handle) = holder(block, ordinal) {
                    match counts.iter_mut().find(|(of, _)| of == handle) {
                        Some((_, count)) => *count += 1,
                        None => counts.push((handle.to_owned(), 1)),
                    }
                }
            }
        }
        if before.is_none() && step.task == 0 && !db.kind().is_atomic() {
            // A block that is made later than its maker waited. No condition could keep it out, its handle may be gone by
            // now: what nobody was told of, the collector frees.
            self.spoilt.extend(counts.iter().map(|(handle, _)| handle.clone()));
        }
        for (handle, count) in &counts {
            wrong.extend(self.uncounted(db, handle, cidr, *count));
        }
        self.counts.insert(cidr, counts);
        wrong.extend(self.over_cap(cidr));
        self.transitions(db, cidr, before, after, step, promises, wrong);
        // Without atomic commits a block that is about to be taken back may lie across: the promise is kept by its own.
        for (address, promise) in promises.of_block(cidr) {
            let kept = after.zip(cidr.ordinal(*address)).is_some_and(|(block, Ordinal(ordinal))| {
                holder(block, ordinal) == Some(promise.handle.as_str())
            });
            if !kept {
                wrong
                    .push(format!("9: {address} was promised to {} and is not its any more", promise.handle));
            }
        }
        if before.is_none() && after.is_some() {
            let others = db.all(Kind::Block).filter_map(|stored| block_of(stored));
            let others = others.filter(|other| other.cidr != cidr && other.cidr.overlaps(cidr));
            self.overlapping.extend(others.map(|other| (cidr, other.cidr)));
        }
        self.is_confirmed(db, cidr, step, wrong);
    }

    /// No handle of this block holds more than it may.
    fn over_cap(&self, cidr: Cidr) -> Option<String> {
        if self.capped.is_empty() {
            return None;
        }
        let here = self.counts.get(&cidr)?.iter();
        let bound = |handle: &String| self.capped.contains(handle) && !self.spoilt.contains(handle);
        here.filter(|(handle, _)| bound(handle)).find_map(|(handle, _)| {
            let family = self.counts.iter().filter(|(other, _)| other.version() == cidr.version());
            let held = family.flat_map(|(_, counts)| counts).filter(|(of, _)| of == handle);
            let held: u32 = held.map(|(_, count)| count).sum();
            (held > 1).then(|| format!("0: {handle} holds {held} addresses and may hold 1"))
        })
    }

    /// Without atomic commits a commit whose checks fail after its writes takes them back: it is judged when it has ended.
    fn is_confirmed(&mut self, db: &Db, cidr: Cidr, step: Step<'_>, wrong: &mut Vec<String>) {
        let found = confirmed(db, cidr);
        if found.is_some() && !db.kind().is_atomic() && step.task != 0 {
            self.hollow.push((cidr, step.task));
        } else {
            wrong.extend(found);
        }
    }

    /// Answers what a task left wrong that was tolerated while it ran. A task that died leaves it to whoever comes next.
    pub fn task_ended(&mut self, db: &Db, task: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        self.hollow.retain(|(cidr, by)| {
            if *by == task {
                wrong.extend(confirmed(db, *cidr));
            }
            *by != task
        });
        wrong
    }

    /// Invariants 2, 6 and the stamps: what became of each ordinal.
    #[expect(clippy::too_many_arguments, reason = "one change, seen from every side that is judged")]
    fn transitions(
        &mut self,
        db: &Db,
        cidr: Cidr,
        before: Option<&Block>,
        after: Option<&Block>,
        step: Step<'_>,
        promises: &Promises,
        wrong: &mut Vec<String>,
    ) {
        let Some(any) = after.or(before) else { return };
        let undone = matches!((before, after), (Some(before), Some(after))
            if after.sequence_number < before.sequence_number);
        if let Some(before) = before.filter(|_| undone) {
            // A commit that was undone: what it stamped was never told to anybody.
            let undone = before.sequence_number;
            self.issued.retain(|(address, stamp), _| !cidr.contains(*address) || *stamp >= undone);
        }
        for ordinal in ordinals(any) {
            let (was, is) = (held(before, ordinal), held(after, ordinal));
            if was == is && was.is_some() {
                continue;
            }
            let Some(address) = cidr.address(Ordinal(ordinal)) else { continue };
            let kept = |block: Option<&Block>| {
                block.and_then(|block| attribute(block, ordinal)).is_some_and(is_kept)
            };
            if kept(before) && after.is_some() && !kept(after) {
                wrong.push(format!("2: {address} is kept by its host and was freed or handed out"));
            }
            // Answered once more, in a new life: the same holder under a later stamp.
            let renewed = is.is_some_and(|is| step.serves.is_for(is.handle))
                && was.zip(is).is_some_and(|(was, is)| was.handle == is.handle && was.stamp < is.stamp);
            if let Some(was) = was.filter(|_| !renewed) {
                wrong.extend(self.freed(address, was, step, promises));
                let told = promises.of(address).is_some_and(|promise| promise.sequence == was.stamp);
                if after.is_none() && !told && self.wrote(address, was, step) {
                    // A block that was made and undone: what it stamped was never told to anybody, and one made anew by
                    // another clock may stamp the same.
                    self.issued.remove(&(address, was.stamp));
                }
            }
            if let Some(is) = is {
                wrong.extend(self.taken(address, is, before, step));
                let owner = after.and_then(|block| block.affinity.as_ref()).map(|owner| owner.name.as_str());
                // What a commit takes back that was undone, it had before.
                if !renewed && !undone {
                    wrong.extend(self.strangely(db, address, is, owner, step));
                }
            }
            let cooled = before.and_then(|block| attribute(block, ordinal)?.released_at);
            let cools = after.and_then(|block| attribute(block, ordinal)?.released_at);
            if let Some(released) = cooled.filter(|_| cools.is_none() && !undone) {
                let shortest = configured(db, step.since).map(|config| config.ip_cooldown_seconds).min();
                let needed = SignedDuration::from_secs(i64::from(shortest.unwrap_or(0)) - 1);
                if shortest > Some(0) && step.latest.duration_since(released) < needed {
                    wrong.push(format!("2: {address} did not cool down before it was used or freed"));
                }
            }
        }
    }

    /// Whether the present task itself made this allocation.
    fn wrote(&self, address: IpAddr, held: Held<'_>, step: Step<'_>) -> bool {
        self.issued.get(&(address, held.stamp)).is_some_and(|task| *task == step.task && *task != 0)
    }

    /// Invariant 6: whoever frees an allocation named it.
    fn freed(&self, address: IpAddr, was: Held<'_>, step: Step<'_>, promises: &Promises) -> Option<String> {
        if self.wrote(address, was, step) {
            // It takes back what it wrote itself.
            return None;
        }
        let named = match step.leave {
            Leave::Unpromised => promises.of(address).is_none(),
            Leave::Handle(handle) => *handle == was.handle,
            Leave::Named(named) => named
                .iter()
                .any(|(of, handle, stamp)| *of == address && *handle == was.handle && *stamp == was.stamp),
            Leave::Nothing => false,
        };
        (!named).then(|| format!("6: {address} of {} was freed by whoever did not name it", was.handle))
    }

    /// A new allocation has a stamp that this address never had.
    fn taken(
        &mut self,
        address: IpAddr,
        is: Held<'_>,
        before: Option<&Block>,
        step: Step<'_>,
    ) -> Option<String> {
        if let Some(task) = self.issued.insert((address, is.stamp), step.task)
            && before.is_none_or(|block| stamp(block, is.ordinal) != is.stamp)
            && task != step.task
        {
            return Some(format!("6: {address} of {} has the stamp of an earlier allocation", is.handle));
        }
        None
    }

    /// What whoever assigns by itself keeps to, from when it could know: what is reserved is given to nobody, and under strict
    /// affinity no address of another node's block. Neither binds who asks for that address.
    fn strangely(
        &self,
        db: &Db,
        address: IpAddr,
        is: Held<'_>,
        owner: Option<&str>,
        step: Step<'_>,
    ) -> Option<String> {
        if self.may_be_reserved.contains(is.handle) {
            return None;
        }
        // What was reserved when the task knew everything, and is still.
        let reserved = db.all(Kind::Reservation).any(|stored| match &stored.record {
            Record::Reservation(kept) if stored.version.revision.0 <= step.since => {
                kept.cidrs.iter().any(|cidr| cidr.contains(address))
            }
            _ => false,
        });
        if reserved {
            return Some(format!("2: {address} is reserved and was handed out to {}", is.handle));
        }
        let node = step.node.filter(|node| owner != Some(node))?;
        let strict = configured(db, step.since).map(|config| config.strict_affinity).min() == Some(true);
        strict.then(|| {
            let owner = owner.unwrap_or("nobody");
            format!(
                "0: {address} of {owner}'s block was given to {} on {node} under strict affinity",
                is.handle
            )
        })
    }

    /// The limit of blocks, from when whoever claims could know of them: those of the same pool that have been the node's all the
    /// time. Where particular addresses are asked for, which no limit binds, nobody can tell what a block is claimed for.
    fn beyond_limit(&self, db: &Db, owner: &str, cidr: Cidr, step: Step<'_>) -> Option<String> {
        let limit = configured(db, step.since).map(|config| config.max_blocks_per_host).min()?;
        let limit = usize::try_from(if limit == 0 { 20 } else { limit }).unwrap_or(usize::MAX);
        if step.node != Some(owner) || !self.may_be_reserved.is_empty() {
            return None;
        }
        let range = self.ranges.iter().find(|range| range.contains_cidr(cidr))?;
        let counts = |((name, of), since): &(&(String, Cidr), &u64)| {
            name == owner && *of != cidr && range.contains_cidr(*of) && **since <= step.since
        };
        let owned = self.affinities.iter().filter(counts).count();
        (owned >= limit).then(|| format!("0: {owner} claims {cidr} and has {owned} blocks of {limit}"))
    }

    /// Invariant 5: what a block holds for a handle, the handle counts.
    fn unreachable(&self, db: &Db, handle: &str, cidr: Cidr) -> Option<String> {
        let (_, count) = self.counts.get(&cidr)?.iter().find(|(of, _)| of == handle)?;
        self.uncounted(db, handle, cidr, *count)
    }

    fn uncounted(&self, db: &Db, handle: &str, cidr: Cidr, count: u32) -> Option<String> {
        let counted = db
            .peek(&Key::Handle(handle.to_owned()))
            .and_then(|stored| handle_of(stored)?.blocks.get(&cidr).copied())
            .unwrap_or(0);
        (counted < count && !self.spoilt.contains(handle))
            .then(|| format!("5: handle {handle} counts {counted} of its {count} addresses in {cidr}"))
    }

    /// Invariant 4. Without atomic commits a block counts once somebody may rely on it: until then its commit looks at
    /// the pool once more and takes the block back.
    fn overlaps(&mut self, db: &Db, promises: &Promises, wrong: &mut Vec<String>) {
        let exists = |cidr: Cidr| db.peek(&Key::Block(cidr)).is_some();
        self.overlapping.retain(|(one, other)| exists(*one) && exists(*other));
        let counts = |cidr: Cidr| {
            db.kind().is_atomic()
                || promises.of_block(cidr).next().is_some()
                || db.all(Kind::Affinity).any(|stored| {
                    matches!(&stored.record, Record::Affinity(affinity)
                        if affinity.cidr == cidr && affinity.state == AffinityState::Confirmed)
                })
        };
        for (one, other) in &self.overlapping {
            if counts(*one) && counts(*other) {
                wrong.push(format!("4: blocks {one} and {other} overlap"));
            }
        }
    }

    /// Pairs of blocks that overlap now, whether they count or not: at rest there is none.
    pub fn overlapping(&self) -> &[(Cidr, Cidr)] {
        &self.overlapping
    }

    /// Invariant 9, asked once more when a reply is given: the block in which the promise stands in the store.
    ///
    /// # Errors
    /// What is wrong, if there is none.
    pub fn promised(db: &Db, address: IpAddr, handle: &str, sequence: u64) -> Result<Cidr, String> {
        let full = if IpVersion::of(address) == IpVersion::V4 { 32 } else { 128 };
        let of_block = db.all(Kind::Block).filter_map(|stored| block_of(stored)).find_map(|block| {
            let Ordinal(ordinal) = block.cidr.ordinal(address)?;
            // A peer is told no stamp.
            let is_this = holder(block, ordinal) == Some(handle)
                && (sequence == 0 || stamp(block, ordinal) == sequence);
            is_this.then_some(block.cidr)
        });
        of_block.ok_or_else(|| {
            format!("9: {handle} was promised {address}/{full}, which the store does not know")
        })
    }
}

/// The configurations that have been in force since a revision, the one then included.
fn configured(db: &Db, since: u64) -> impl Iterator<Item = &IpamConfig> {
    let history = db.history(Kind::Config);
    let start = history.partition_point(|change| change.revision <= since).saturating_sub(1);
    history.iter().skip(start).filter_map(|change| match &change.stored.as_ref()?.record {
        Record::Config(config) => Some(config),
        _ => None,
    })
}

/// Invariant 3: a confirmed affinity has its block.
fn confirmed(db: &Db, cidr: Cidr) -> Option<String> {
    let block = db.peek(&Key::Block(cidr)).and_then(|stored| block_of(stored));
    let owner = block.and_then(|block| block.affinity.as_ref());
    db.all(Kind::Affinity).find_map(|stored| {
        let Record::Affinity(affinity) = &stored.record else { return None };
        let stands = affinity.cidr != cidr
            || affinity.state != AffinityState::Confirmed
            || owner == Some(&affinity.owner);
        let found = match (block, owner) {
            _ if stands => return None,
            (None, _) => "there is no such block".to_owned(),
            (_, None) => "the block is nobody's".to_owned(),
            (_, Some(owner)) => format!("the block is of {owner}"),
        };
        Some(format!("3: {cidr} is confirmed for {}, but {found}", affinity.owner))
    })
}

/// Invariant 2: every ordinal is free, once, or allocated, and refers to something that is there.
fn miscounted(block: &Block) -> Option<String> {
    let size = block.allocations.len();
    let mut free = vec![false; size];
    for ordinal in &block.unallocated {
        let slot = usize::try_from(*ordinal).ok().and_then(|index| free.get_mut(index));
        match slot {
            Some(slot) if !*slot => *slot = true,
            _ => return Some(format!("2: block {}: ordinal {ordinal} is queued wrongly", block.cidr)),
        }
    }
    for (index, allocation) in block.allocations.iter().enumerate() {
        if allocation.is_some() == free[index] {
            return Some(format!("2: block {}: ordinal {index} is neither free nor allocated", block.cidr));
        }
        if allocation.is_some_and(|attribute| attribute >= block.attributes.len()) {
            return Some(format!("2: block {}: ordinal {index} has no attribute", block.cidr));
        }
    }
    let fits = u128::try_from(size).is_ok_and(|size| size == block.cidr.size());
    (!fits).then(|| format!("2: block {} has {size} ordinals", block.cidr))
}
