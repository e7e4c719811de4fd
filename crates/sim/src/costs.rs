//! What operations cost when nothing disturbs them: datastore calls, and sequential trips (invariant 10).

use crate::faults::Operation;
use ipam::collect::Task;
use std::collections::BTreeSet;
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
/// sixteen blocks, each of which it may have to look at, take from its owner, or find full. The collector's tasks each have
/// their own (see [`of_task`]).
pub fn most_calls(operation: Operation) -> u32 {
    match operation {
        Operation::PluginAdd | Operation::PluginExact | Operation::EmptyPool => 120,
        Operation::PluginBoth => 240,
        Operation::AgentRead | Operation::Administer => 2,
        Operation::CollectorRead => 4,
        Operation::AgentBatch | Operation::AgentClaim | Operation::AgentReclaim => 40,
        Operation::PluginDel | Operation::QueueRelease | Operation::MoveOwner => 40,
        Operation::CollectorTask => 40,
        // Calico's costs are its own.
        Operation::PeerAdd | Operation::PeerDel => u32::MAX,
    }
}

/// Requests of a Kubernetes API that giving up one block takes at most.
const GIVING_UP: u32 = 8;

/// Blocks in a world at most.
const BLOCKS: u32 = 16;

/// Calls beyond which a task of the collector is not bounded as its documentation says, each record that is written being a
/// request of a Kubernetes API, and with checks one more that looks at what it replaces.
pub fn of_task(task: &Task) -> u32 {
    let many = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    match task {
        // The block, its handles, the node; and what becomes of the block where that leaves it empty.
        Task::Release { releases, .. } => {
            let handles = many(releases.iter().map(|release| &release.handle).collect::<BTreeSet<_>>().len());
            2 + handles + 2 * (1 + handles) + 2 + GIVING_UP
        }
        Task::GiveUpNode { .. } => 1 + BLOCKS * GIVING_UP,
        Task::GiveUpBlock { .. } => 2 + GIVING_UP,
        Task::Abandon { .. } => 6,
        Task::Tidy { .. } => 2,
        Task::DropAffinity { .. } => 5,
        // The handle written and affinities listed before, where a block is gone.
        Task::LowerHandle { blocks, .. } => 5 + 4 * many(blocks.len()),
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
