//! Whose processor time an operation costs: this process's, which has all clients in it, and the store's.
//!
//! Clients and store share one machine here. Where a rate is bound by its processors, this says by whom.

use std::fs::{read_dir, read_to_string};
use std::time::Duration;

/// Processor time used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// By this process.
    pub(crate) clients: Duration,
    /// By the processes that it started: the store.
    pub(crate) store: Duration,
}

impl Used {
    /// As it is now.
    pub(crate) fn now() -> Self {
        let own = std::process::id();
        let mut store = Duration::ZERO;
        let mut family = children(own);
        while let Some(process) = family.pop() {
            store += of(process);
            family.extend(children(process));
        }
        Self { clients: of(own), store }
    }

    /// What was used since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            clients: self.clients.saturating_sub(before.clients),
            store: self.store.saturating_sub(before.store),
        }
    }
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.clients += other.clients;
        self.store += other.store;
    }
}

/// Of all threads that a process has. A thread that ends takes its time with it; those of the stores stay.
fn of(process: u32) -> Duration {
    let tasks = read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

fn children(process: u32) -> Vec<u32> {
    let tasks = read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| read_to_string(task.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}
