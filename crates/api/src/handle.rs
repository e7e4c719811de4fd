//! The back reference from an owner (a pod's sandbox, a tunnel) to the blocks that hold its addresses (data model §7).

use crate::Cidr;
use std::collections::BTreeMap;

/// How many addresses a handle holds in each block. The count is an upper bound on real allocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Handle id, case preserved (the Kubernetes object's name is its lower-cased form).
    pub id: String,
    /// Addresses per block, each count positive.
    pub blocks: BTreeMap<Cidr, u32>,
    /// First phase of a two-phase delete on Kubernetes.
    pub deleted: bool,
}
