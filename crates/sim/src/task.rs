//! One thing that a client does: a future over the store, polled whenever the scheduler grants it a call.

use crate::faults::Operation;
use crate::invariants::Leave;
use crate::port::Port;
use datastore::{CommitError, Listing, ReadError, Stored, Version};
use ipam::agent::Ticket;
use ipam::collect::Records;
use ipam::release_queue::{Number, Replayed};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// How a task ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Addresses with their stamps, or why there are none.
    Added(Result<Vec<(IpAddr, u64)>, String>),
    /// Nothing is held any more, or why that is not known.
    Deleted(Result<(), String>),
    /// An agent's commit.
    Committed(Ticket, Result<Vec<Version>, CommitError>),
    /// An agent's read.
    Read(Ticket, Result<Option<Stored>, ReadError>),
    /// An agent's list.
    Listed(Ticket, Result<Listing, ReadError>),
    /// A queued release.
    Replayed(Number, Replayed),
    /// What the collector read, if it could.
    Records(Option<Arc<Records>>),
    /// A step of the cluster's administration; whether it was done.
    Administered(bool),
}

/// Whom the outcome of a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An ADD of an attachment, asked when it had been given up this often.
    Add {
        /// Number of the attachment.
        attachment: usize,
        /// Its epoch at the beginning.
        epoch: u32,
    },
    /// A DEL of an attachment.
    Del {
        /// Number of the attachment.
        attachment: usize,
        /// No ADD of it was under way when it was sent, and none was sent since.
        alone: bool,
    },
    /// An effect of a node's agent.
    Effect {
        /// Number of the node.
        node: usize,
    },
    /// The pool controller's work on a pool.
    Pool {
        /// Number of the pool.
        pool: usize,
    },
    /// What the collector reads.
    Collector,
    /// Nobody waits for it.
    Errand,
}

/// A task.
pub struct Task {
    /// Its number; never used twice.
    pub number: u64,
    /// What it does.
    pub operation: Operation,
    /// Node on which it runs; it dies with the node.
    pub node: Option<usize>,
    /// Whom it is for.
    pub purpose: Purpose,
    /// What it may free.
    pub leave: Leave,
    /// Where its calls wait.
    pub port: Port,
    /// What is left of it to be done.
    pub future: Pin<Box<dyn Future<Output = Outcome>>>,
    /// Its calls wait until this step.
    pub held_until: u64,
    /// Slow tasks are passed over more often.
    pub slow: bool,
    /// Revision of the store up to which whoever acts knew everything when this was begun.
    pub since: u64,
    /// Calls that it may make at most when nothing disturbs it.
    pub most_calls: u32,
    /// A fault befell it, or somebody else wrote while it was under way.
    pub disturbed: bool,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("number", &self.number)
            .field("operation", &self.operation)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

impl Task {
    /// Goes on as far as it can without another verdict.
    pub fn poll(&mut self) -> Poll<Outcome> {
        self.future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}
