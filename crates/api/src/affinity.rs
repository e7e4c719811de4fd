//! Which node (or virtual owner) a block belongs to, and the state of that claim (data model §6).

use crate::Cidr;
use std::fmt;

/// What kind of owner a block has: a node, or something that is not a node (the LoadBalancer allocator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// A node, written `host:<name>`.
    Host,
    /// Not a node, written `virtual:<name>`.
    Virtual,
}

/// Owner of a block: rendered `host:<node>` or `virtual:<name>`. Names are verbatim, never folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Node or virtual.
    pub kind: OwnerKind,
    /// The node's name.
    pub name: String,
}

impl Owner {
    /// The node `name` as owner.
    pub fn host(name: impl Into<String>) -> Self {
        Self { kind: OwnerKind::Host, name: name.into() }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            OwnerKind::Host => "host",
            OwnerKind::Virtual => "virtual",
        };
        write!(f, "{kind}:{}", self.name)
    }
}

/// State of an affinity. An empty string on the wire means confirmed (old data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffinityState {
    /// Claimed, the block not yet known to be ours.
    Pending,
    /// The block exists and carries this owner.
    Confirmed,
    /// Being given up; written before the block is touched.
    PendingDeletion,
}

/// A node's claim on a block: an index and a lock; the block's own `affinity` is the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Who claims.
    pub owner: Owner,
    /// The block claimed.
    pub cidr: Cidr,
    /// How far the claim has got.
    pub state: AffinityState,
    /// First phase of a two-phase delete on Kubernetes (data model §3.3).
    pub deleted: bool,
}

/// How BlockAffinity objects are named in a Kubernetes datastore (architecture D9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AffinityNaming {
    /// `<node>-192-168-1-64-26`, Calico's way; mandatory where Calico shares the datastore.
    #[default]
    PerNode,
    /// `ipam-block-affinity-192-168-1-64-26`, what a datastore gets that Tortie set up for itself.
    PerBlock,
}
