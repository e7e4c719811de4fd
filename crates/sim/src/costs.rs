//! What operations cost when nothing disturbs them: datastore calls, and sequential trips (invariant 10).

use crate::faults::Operation;
use std::fmt;

const OPERATIONS: usize = Operation::ALL.len();

/// Of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Undisturbed runs.
    pub runs: u64,
    /// Calls of all of them.
    pub calls: u64,
    /// Calls of the dearest.
    pub most_calls: u32,
    /// Sequential trips of the longest.
    pub most_trips: u32,
}

/// Calls beyond which an operation that nothing disturbs is not bounded as its documentation says: in worlds of at most
/// sixteen blocks, each of which it may have to look at, take from its owner, or find full.
pub fn most_calls(operation: Operation) -> u32 {
    match operation {
        Operation::PluginAdd | Operation::PluginExact | Operation::EmptyPool => 120,
        Operation::PluginBoth => 240,
        Operation::AgentRead | Operation::Administer => 2,
        Operation::CollectorRead => 4,
        Operation::AgentBatch | Operation::AgentClaim => 40,
        Operation::PluginDel | Operation::QueueRelease | Operation::MoveOwner => 40,
        // To give up a block is 8 requests of a Kubernetes API, and a node that is gone may have had all of them.
        Operation::CollectorTask => 1 + 16 * 8,
        // Calico's costs are its own.
        Operation::PeerAdd | Operation::PeerDel => u32::MAX,
    }
}

/// Of every kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    of: [Cost; OPERATIONS],
}

impl Costs {
    /// An operation ended that nothing disturbed, after these calls and trips.
    pub fn note(&mut self, operation: Operation, (calls, trips): (u32, u32)) {
        let cost = &mut self.of[operation as usize];
        cost.runs += 1;
        cost.calls += u64::from(calls);
        cost.most_calls = cost.most_calls.max(calls);
        cost.most_trips = cost.most_trips.max(trips);
    }

    /// What a kind of operation cost.
    pub fn of(&self, operation: Operation) -> Cost {
        self.of[operation as usize]
    }

    /// Takes another simulation's costs in.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.of.iter_mut().zip(&other.of) {
            mine.runs += theirs.runs;
            mine.calls += theirs.calls;
            mine.most_calls = mine.most_calls.max(theirs.most_calls);
            mine.most_trips = mine.most_trips.max(theirs.most_trips);
        }
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:>12} {:>12} {:>12} {:>12}",
            "undisturbed", "runs", "mean calls", "most calls", "most trips"
        )?;
        for operation in Operation::ALL {
            let cost = self.of(operation);
            let tenths = cost.calls * 10 / cost.runs.max(1);
            let mean = format!("{}.{}", tenths / 10, tenths % 10);
            writeln!(
                f,
                "{:<16} {:>12} {mean:>12} {:>12} {:>12}",
                operation.name(),
                cost.runs,
                cost.most_calls,
                cost.most_trips
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearest_run_is_remembered_over_all_simulations() {
        let (mut one, mut other) = (Costs::default(), Costs::default());
        one.note(Operation::PluginAdd, (4, 3));
        other.note(Operation::PluginAdd, (9, 2));
        one.add(&other);
        assert_eq!(one.of(Operation::PluginAdd), Cost { runs: 2, calls: 13, most_calls: 9, most_trips: 3 });
    }
}
