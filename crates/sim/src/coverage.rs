//! Which faults met which operations, and how often.

use crate::faults::{Fault, Operation};
use std::fmt;

const FAULTS: usize = Fault::ALL.len();
const OPERATIONS: usize = Operation::ALL.len();

/// Counts of fault × operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: [[u64; OPERATIONS]; FAULTS],
    /// Times that each operation ran.
    runs: [u64; OPERATIONS],
}

/// Both lists name the variants in their order, which a test keeps so.
fn row(fault: Fault) -> usize {
    fault as usize
}

fn column(operation: Operation) -> usize {
    operation as usize
}

impl Coverage {
    /// A fault befell an operation.
    pub fn hit(&mut self, fault: Fault, operation: Operation) {
        self.counts[row(fault)][column(operation)] += 1;
    }

    /// An operation was begun.
    pub fn ran(&mut self, operation: Operation) {
        self.runs[column(operation)] += 1;
    }

    /// How often this fault befell this operation.
    pub fn count(&self, fault: Fault, operation: Operation) -> u64 {
        self.counts[row(fault)][column(operation)]
    }

    /// Takes another simulation's counts in.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
        for (mine, theirs) in self.runs.iter_mut().zip(&other.runs) {
            *mine += theirs;
        }
    }

    /// Pairs that can occur and did not.
    pub fn missed(&self) -> Vec<(Fault, Operation)> {
        let pairs = Fault::ALL.iter().flat_map(|fault| Operation::ALL.iter().map(|what| (*fault, *what)));
        pairs.filter(|(fault, what)| possible(*fault, *what) && self.count(*fault, *what) == 0).collect()
    }
}

/// Whether a fault can befall an operation at all.
///
/// What only reads has no write that could take effect later than its sender waits. What happens on one node is nothing
/// to what runs on none, and watches and agents are nothing to plugins that do without.
pub fn possible(fault: Fault, operation: Operation) -> bool {
    use Operation::{
        AgentBatch, AgentClaim, AgentRead, AgentReclaim, CollectorRead, PeerAdd, PeerDel, PluginAdd,
        PluginBoth, PluginDel, PluginExact, QueueRelease,
    };
    let of_agents = matches!(operation, AgentBatch | AgentClaim | AgentReclaim | AgentRead | QueueRelease);
    let of_peers = matches!(operation, PeerAdd | PeerDel);
    let on_nodes =
        of_agents || of_peers || matches!(operation, PluginAdd | PluginBoth | PluginExact | PluginDel);
    match fault {
        Fault::Late => !matches!(operation, AgentRead | CollectorRead),
        Fault::WatchLost | Fault::WatchRepeats | Fault::AgentRestarted => of_agents,
        Fault::LogFails => operation == QueueRelease,
        // Calico lets blocks of several sizes overlap: no world has both.
        Fault::PoolRecreated => !of_peers,
        Fault::DelDelayed | Fault::DelRepeated | Fault::DelEarly => on_nodes,
        _ => true,
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20}", "")?;
        for operation in Operation::ALL {
            write!(f, " {:>15}", operation.name())?;
        }
        write!(f, "\n{:<20}", "(times run)")?;
        for runs in self.runs {
            write!(f, " {runs:>15}")?;
        }
        writeln!(f)?;
        for fault in Fault::ALL {
            write!(f, "{:<20}", fault.name())?;
            for operation in Operation::ALL {
                match self.count(fault, operation) {
                    0 if !possible(fault, operation) => write!(f, " {:>15}", "-")?,
                    count => write!(f, " {count:>15}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_and_operation_has_its_own_place() {
        assert!(Fault::ALL.iter().enumerate().all(|(place, fault)| row(*fault) == place));
        assert!(Operation::ALL.iter().enumerate().all(|(place, what)| column(*what) == place));
    }

    #[test]
    fn a_pair_is_missed_until_it_was_hit_anywhere() {
        let mut one = Coverage::default();
        let mut other = Coverage::default();
        let pair = (Fault::ReplyLost, Operation::PluginAdd);
        assert!(one.missed().contains(&pair));
        other.hit(pair.0, pair.1);
        one.add(&other);
        assert!(!one.missed().contains(&pair));
        assert!(one.to_string().contains("plugin ADD"));
    }
}
