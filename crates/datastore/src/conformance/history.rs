//! Histories of concurrent clients, and whether a store that does one thing after another could have made them.
//!
//! Each key is judged by itself: linearizability of the whole follows. The judge walks through the beginnings and ends of
//! operations in time and keeps every state that the key may be in, together with the unfinished operations that have
//! taken effect in it. An operation that ends must have taken effect in one of them; where it cannot have, the history is
//! impossible.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a key holds: a value that no other write ever wrote, or nothing.
pub type Held = Option<u32>;

/// What was done and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// Read this.
    Read(Held),
    /// Replaced `expected` by `to`.
    Wrote {
        /// What the write was conditional on.
        expected: Held,
        /// What it left.
        to: Held,
    },
    /// Was told that the key does not hold `expected`.
    Refused {
        /// What the write was conditional on.
        expected: Held,
    },
    /// Was told nothing: the write may be made at any later time, or never.
    Unknown {
        /// What the write was conditional on.
        expected: Held,
        /// What it would leave.
        to: Held,
    },
}

/// One operation of a client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which key.
    pub key: String,
    /// When it was asked for: a number that grows with every beginning and end of an operation.
    pub begun: u64,
    /// When the answer was there. Of no meaning for [`Did::Unknown`].
    pub ended: u64,
    /// What came of it.
    pub did: Did,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} between {} and {}", self.did, self.key, self.begun, self.ended)
    }
}

/// States that may be while the history is judged: what is held, and which unfinished operations have taken effect.
type Possible = BTreeSet<(Held, BTreeSet<usize>)>;

/// Whether every key of `history` began empty and did one thing after another.
///
/// # Errors
/// The first operation that cannot have been.
pub fn judge(history: &[Operation]) -> Result<(), String> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys.values().try_for_each(|operations| judge_key(operations))
}

fn judge_key(operations: &[&Operation]) -> Result<(), String> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        moments.push((operation.begun, false, at));
        if !matches!(operation.did, Did::Unknown { .. }) {
            moments.push((operation.ended, true, at));
        }
    }
    moments.sort_unstable();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let mut possible: Possible = BTreeSet::from([(None, BTreeSet::new())]);
    for (_, is_end, at) in moments {
        if !is_end {
            open.insert(at);
            continue;
        }
        let mut after = Possible::new();
        for (held, mut done) in reachable(&possible, &open, operations) {
            if done.remove(&at) {
                after.insert((held, done));
            }
        }
        if after.is_empty() {
            return Err(format!("no order of the operations explains this one: {}", operations[at]));
        }
        open.remove(&at);
        possible = after;
    }
    Ok(())
}

/// Every state that is reached from `possible` by operations of `open` taking effect, in any order.
fn reachable(possible: &Possible, open: &BTreeSet<usize>, operations: &[&Operation]) -> Possible {
    let mut found = possible.clone();
    let mut waiting: Vec<_> = possible.iter().cloned().collect();
    while let Some((held, done)) = waiting.pop() {
        for at in open.difference(&done) {
            let Some(then) = effect(operations[*at].did, held) else { continue };
            let mut done = done.clone();
            done.insert(*at);
            let state = (then, done);
            if found.insert(state.clone()) {
                waiting.push(state);
            }
        }
    }
    found
}

/// What is held after the operation took effect; `None` if it cannot have while `held` was held.
fn effect(did: Did, held: Held) -> Option<Held> {
    match did {
        Did::Read(read) => (read == held).then_some(held),
        Did::Wrote { expected, to } | Did::Unknown { expected, to } => (expected == held).then_some(to),
        Did::Refused { expected } => (expected != held).then_some(held),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(begun: u64, ended: u64, did: Did) -> Operation {
        Operation { key: "k".to_owned(), begun, ended, did }
    }

    fn wrote(expected: Held, to: Held) -> Did {
        Did::Wrote { expected, to }
    }

    #[test]
    fn reads_beside_a_write_may_see_either_state_but_not_back_and_forth() {
        let create = operation(0, 1, wrote(None, Some(1)));
        let update = operation(2, 9, wrote(Some(1), Some(2)));
        let read = |begun, ended, held| operation(begun, ended, Did::Read(held));
        let old_then_new = [create.clone(), update.clone(), read(3, 4, Some(1)), read(5, 6, Some(2))];
        assert_eq!(judge(&old_then_new), Ok(()));
        let new_then_old = [create, update, read(3, 4, Some(2)), read(5, 6, Some(1))];
        assert!(judge(&new_then_old).unwrap_err().contains("Read(Some(1))"));
    }

    #[test]
    fn stale_read_is_rejected() {
        let history = [
            operation(0, 1, wrote(None, Some(1))),
            operation(2, 3, wrote(Some(1), Some(2))),
            operation(4, 5, Did::Read(Some(1))),
        ];
        assert!(judge(&history).is_err());
    }

    #[test]
    fn two_creates_cannot_both_be_made() {
        let history = [operation(0, 5, wrote(None, Some(1))), operation(1, 4, wrote(None, Some(2)))];
        assert!(judge(&history).is_err());
    }

    #[test]
    fn lost_update_is_rejected() {
        let history = [
            operation(0, 1, wrote(None, Some(1))),
            operation(2, 6, wrote(Some(1), Some(2))),
            operation(3, 7, wrote(Some(1), Some(3))),
        ];
        assert!(judge(&history).is_err());
    }

    #[test]
    fn unanswered_write_may_be_made_late_or_never_but_only_once() {
        let create = operation(0, 1, wrote(None, Some(1)));
        let unknown = operation(2, 3, Did::Unknown { expected: Some(1), to: Some(2) });
        let read = |at, held| operation(at, at + 1, Did::Read(held));
        assert_eq!(judge(&[create.clone(), unknown.clone(), read(4, Some(1)), read(6, Some(2))]), Ok(()));
        assert_eq!(judge(&[create.clone(), unknown.clone(), read(4, Some(1)), read(6, Some(1))]), Ok(()));
        let again =
            [create, unknown, read(4, Some(2)), operation(6, 7, wrote(Some(2), Some(1))), read(8, Some(2))];
        assert!(judge(&again).is_err());
    }

    #[test]
    fn refusal_without_a_reason_is_rejected() {
        let history =
            [operation(0, 1, wrote(None, Some(1))), operation(2, 3, Did::Refused { expected: Some(1) })];
        assert!(judge(&history).is_err());
    }
}
