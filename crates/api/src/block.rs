//! The allocation record of one block of addresses (data model §5).

use crate::{Cidr, Owner};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an allocated (or cooling) ordinal refers to. Ordinals assigned together share one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribute {
    /// Handle, verbatim as stored; compare through `sanitized` (cut at the first `\r`).
    pub handle_id: Option<String>,
    /// Attributes of the active owner, `secondary` on the wire.
    pub secondary: BTreeMap<String, String>,
    /// Attributes of the alternate owner (live migration), `alternateOwnerAttrs` on the wire.
    pub alternate: BTreeMap<String, String>,
    /// Set only while the ordinal cools down after a release; handle and attributes are then empty.
    pub released_at: Option<Timestamp>,
}

/// One block: which of its ordinals are allocated, to whom, and in which order free ones are used next.
///
/// What grows with its allocations is shared between copies and copied by whoever changes it ([`Arc::make_mut`]): blocks are read
/// far more often than written, the full ones of a node above all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The addresses it holds.
    pub cidr: Cidr,
    /// Owner, the truth about affinity. `None`: nobody owns it, addresses in it are still in use.
    pub affinity: Option<Owner>,
    /// When the owner claimed it, whole seconds on the wire. `None`: very old.
    pub claim_time: Option<Timestamp>,
    /// For each ordinal `None` (free) or an index into `attributes`. Length is the block's size.
    pub allocations: Arc<Vec<Option<usize>>>,
    /// Free ordinals in the order of use: head first, freed ordinals are appended.
    pub unallocated: Vec<u32>,
    /// What allocations refer to. Each is shared by itself too: a write changes one of them.
    pub attributes: Arc<Vec<Arc<Attribute>>>,
    /// Nanoseconds since the epoch at creation, +1 at every write.
    pub sequence_number: u64,
    /// Stamp per allocated ordinal: the block's sequence number before the write that allocated it.
    pub sequence_for_allocation: Arc<BTreeMap<u32, u64>>,
    /// First phase of a two-phase delete on Kubernetes.
    pub deleted: bool,
    /// etcd only, deprecated, carried along untouched.
    pub legacy_host_affinity: Option<String>,
}
