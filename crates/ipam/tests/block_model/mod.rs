//! A block in the plainest form: who holds which ordinal, since when an ordinal rests, and who is next.

use api::Owner;
use ipam::block::{Release, WINDOWS_RESERVED_HANDLE, sanitized};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Handles as they occur on the wire. Number 5 is none.
pub(crate) fn handle(number: u8) -> Option<String> {
    let text = match number {
        0 => "a",
        1 => "a\rleft of an old migration",
        2 => "b",
        3 => "Windows-Reserved-IPAM-Handle",
        4 => "",
        _ => return None,
    };
    Some(text.to_owned())
}

/// Attributes of an owner.
pub(crate) fn attributes(tag: u8) -> BTreeMap<String, String> {
    if tag == 0 { BTreeMap::new() } else { BTreeMap::from([("pod".to_owned(), format!("p{tag}"))]) }
}

/// Number 0 owns the block at first.
pub(crate) fn owner(number: u8) -> Owner {
    Owner::host(format!("n{number}"))
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) size: u32,
    pub(crate) owned: bool,
    /// Handle and attributes of each ordinal in use.
    pub(crate) held: BTreeMap<u32, (Option<String>, u8)>,
    pub(crate) cooling: BTreeMap<u32, Timestamp>,
    pub(crate) queue: VecDeque<u32>,
    pub(crate) stamps: BTreeMap<u32, u64>,
    pub(crate) number: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) ordinals: BTreeSet<u32>,
    pub(crate) not_allocated: BTreeSet<u32>,
    pub(crate) by_handle: BTreeMap<String, u32>,
}

impl Model {
    pub(crate) fn new(size: u32, number: u64) -> Self {
        Self {
            size,
            owned: true,
            held: BTreeMap::new(),
            cooling: BTreeMap::new(),
            queue: (0..size).collect(),
            stamps: BTreeMap::new(),
            number,
        }
    }

    pub(crate) fn collect(&mut self, cooldown: u32, now: Timestamp) -> bool {
        let wait = SignedDuration::from_secs(i64::from(cooldown));
        let over: Vec<u32> = self
            .cooling
            .iter()
            .filter(|(_, at)| cooldown == 0 || now.duration_since(**at) > wait)
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in &over {
            self.cooling.remove(ordinal);
            self.stamps.remove(ordinal);
            self.queue.push_back(*ordinal);
        }
        !over.is_empty()
    }

    pub(crate) fn take(
        &mut self,
        count: usize,
        handle: Option<String>,
        tag: u8,
        skip: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let taken: Vec<u32> =
            self.queue.iter().copied().filter(|ordinal| !skip(*ordinal)).take(count).collect();
        for ordinal in &taken {
            assert!(self.assign(*ordinal, handle.clone(), tag));
        }
        taken
    }

    pub(crate) fn assign(&mut self, ordinal: u32, handle: Option<String>, tag: u8) -> bool {
        let Some(place) = self.queue.iter().position(|waiting| *waiting == ordinal) else { return false };
        self.queue.remove(place);
        self.held.insert(ordinal, (handle, tag));
        self.stamps.insert(ordinal, self.number);
        true
    }

    pub(crate) fn stamp(&self, ordinal: u32) -> u64 {
        self.stamps.get(&ordinal).copied().unwrap_or(0)
    }

    /// What is done, or the ordinals for which the release must be refused.
    pub(crate) fn release(
        &mut self,
        releases: &[(u32, Release)],
        cooldown: u32,
        now: Timestamp,
    ) -> Result<Done, Vec<u32>> {
        // I27: of several that name one ordinal the last counts.
        let distinct: BTreeMap<u32, &Release> =
            releases.iter().map(|(ordinal, release)| (*ordinal, release)).collect();
        let (mut done, mut refused) = (Done::default(), Vec::new());
        for (ordinal, release) in distinct {
            let holder = self.held.get(&ordinal).map(|(handle, _)| handle.as_deref().map(sanitized));
            let stamped = release.sequence.is_none_or(|wanted| wanted == self.stamp(ordinal));
            let wanted = release.handle.as_deref().map(sanitized);
            match holder {
                _ if ordinal >= self.size || !stamped => refused.push(ordinal),
                None => {
                    done.not_allocated.insert(ordinal);
                }
                Some(holder) if wanted.is_some() && wanted != holder => refused.push(ordinal),
                Some(holder) => {
                    done.ordinals.insert(ordinal);
                    if let Some(handle) = holder.filter(|handle| !handle.is_empty()) {
                        *done.by_handle.entry(handle.to_owned()).or_default() += 1;
                    }
                }
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        for ordinal in &done.ordinals {
            self.stamps.insert(*ordinal, self.number);
        }
        self.rest(&done.ordinals, cooldown, now);
        Ok(done)
    }

    pub(crate) fn release_by_handle(
        &mut self,
        handle: &str,
        sequence: Option<u64>,
        cooldown: u32,
        now: Timestamp,
    ) -> BTreeSet<u32> {
        let freed: BTreeSet<u32> = self
            .held_by(handle)
            .into_iter()
            .filter(|ordinal| sequence.is_none_or(|wanted| self.stamp(*ordinal) == wanted))
            .collect();
        self.rest(&freed, cooldown, now);
        freed
    }

    /// Collects only if something was given back, as the real one does.
    fn rest(&mut self, ordinals: &BTreeSet<u32>, cooldown: u32, now: Timestamp) {
        for ordinal in ordinals {
            self.held.remove(ordinal);
            self.cooling.insert(*ordinal, now);
        }
        if !ordinals.is_empty() {
            self.collect(cooldown, now);
        }
    }

    pub(crate) fn held_by(&self, handle: &str) -> Vec<u32> {
        self.held
            .iter()
            .filter(|(_, (holder, _))| holder.as_deref().map(sanitized) == Some(sanitized(handle)))
            .map(|(ordinal, _)| *ordinal)
            .collect()
    }

    /// I29: what Windows keeps for itself leaves a block empty, what rests does not.
    pub(crate) fn is_empty(&self) -> bool {
        self.cooling.is_empty()
            && self.held.values().all(|(handle, _)| {
                handle.as_deref().is_some_and(|handle| handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE))
            })
    }
}
