//! Where the records live: one trait, and a driver per kind of store.
//!
//! A caller reads versioned records, and writes them as a *commit*: checks that must hold and writes to make.
//! Where the store has transactions (memory, etcd, the embedded API server) a commit is atomic. On a Kubernetes API
//! it is the ordered sequence of its writes with the checks re-read at the end (architecture D3).

pub mod backend;
pub mod conformance;
pub mod copy;
pub mod etcd;
pub mod follow;
pub mod gate;
pub mod kubernetes;
pub mod memory;
pub mod ordered;

use api::{Affinity, Block, Cidr, ClusterInformation, Handle, IpamConfig, Node, Owner, Pool, Reservation};
use futures::stream::BoxStream;
use jiff::Timestamp;
use std::fmt;
use std::future::Future;

/// Position in the store's history. On Kubernetes `metadata.resourceVersion`, on etcd the mod revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Kinds of record, as what is listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// IPPool.
    Pool,
    /// IPAMBlock.
    Block,
    /// BlockAffinity.
    Affinity,
    /// IPAMHandle.
    Handle,
    /// IPAMConfig, a singleton.
    Config,
    /// IPReservation.
    Reservation,
    /// Node.
    Node,
    /// ClusterInformation, a singleton.
    ClusterInformation,
}

/// Name of one record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Pool by object name.
    Pool(String),
    /// Block by CIDR.
    Block(Cidr),
    /// Affinity of this owner for this block.
    ///
    /// Where affinities are named per block (architecture D9) a read may answer another owner's record: compare.
    Affinity(Owner, Cidr),
    /// Handle by id, case preserved.
    Handle(String),
    /// The IPAM configuration.
    Config,
    /// Reservation by object name.
    Reservation(String),
    /// Node by name.
    Node(String),
    /// The cluster's information.
    ClusterInformation,
}

impl Key {
    /// What kind of record it names.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pool(_) => Kind::Pool,
            Self::Block(_) => Kind::Block,
            Self::Affinity(..) => Kind::Affinity,
            Self::Handle(_) => Kind::Handle,
            Self::Config => Kind::Config,
            Self::Reservation(_) => Kind::Reservation,
            Self::Node(_) => Kind::Node,
            Self::ClusterInformation => Kind::ClusterInformation,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Block(cidr) => write!(f, "block {cidr}"),
            Self::Affinity(owner, cidr) => write!(f, "affinity of {owner} for {cidr}"),
            Self::Handle(id) => write!(f, "handle {id}"),
            Self::Config => write!(f, "IPAM configuration"),
            Self::Reservation(name) => write!(f, "reservation {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::ClusterInformation => write!(f, "cluster information"),
        }
    }
}

/// One record's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A pool.
    Pool(Pool),
    /// A block.
    Block(Block),
    /// An affinity.
    Affinity(Affinity),
    /// A handle.
    Handle(Handle),
    /// The configuration.
    Config(IpamConfig),
    /// A reservation.
    Reservation(Reservation),
    /// A node. Writing one changes its annotations only.
    Node(Node),
    /// The cluster's information.
    ClusterInformation(ClusterInformation),
}

impl Record {
    /// The key it is stored under.
    pub fn key(&self) -> Key {
        match self {
            Self::Pool(pool) => Key::Pool(pool.name.clone()),
            Self::Block(block) => Key::Block(block.cidr),
            Self::Affinity(affinity) => Key::Affinity(affinity.owner.clone(), affinity.cidr),
            Self::Handle(handle) => Key::Handle(handle.id.clone()),
            Self::Config(_) => Key::Config,
            Self::Reservation(reservation) => Key::Reservation(reservation.name.clone()),
            Self::Node(node) => Key::Node(node.name.clone()),
            Self::ClusterInformation(_) => Key::ClusterInformation,
        }
    }

    /// Whether the first half of its delete is done, so that readers count it as absent.
    pub fn is_deleted(&self) -> bool {
        match self {
            Self::Block(block) => block.deleted,
            Self::Affinity(affinity) => affinity.deleted,
            Self::Handle(handle) => handle.deleted,
            _ => false,
        }
    }
}

/// Which state of a record was seen: what an update or delete is conditional on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Revision of the record's last change.
    pub revision: Revision,
    /// The object's own identity where the store has one (Kubernetes): a successor of the same name differs.
    pub uid: Option<String>,
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Content.
    pub record: Record,
    /// State it was read in.
    pub version: Version,
    /// When it was created, where the store knows.
    pub created: Option<Timestamp>,
}

/// All records of a scope at one revision, in key order (pools: name order).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The records.
    pub items: Vec<Stored>,
    /// The store's revision that the list shows; a watch continues from here.
    pub revision: Revision,
    /// Records that exist and cannot be understood, as far as it can be told what they are of. They are not to be taken
    /// for absent: nothing may be put in their place.
    pub unreadable: Vec<Key>,
    /// Records among the items that were mended as they were read, and what was wrong with each as it stands in the store.
    pub mended: Vec<(Key, String)>,
}

/// What to list or watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every record of a kind.
    All(Kind),
    /// Affinities of one owner.
    AffinitiesOf(Owner),
}

impl Scope {
    /// Kind of its records.
    pub fn kind(&self) -> Kind {
        match self {
            Self::All(kind) => *kind,
            Self::AffinitiesOf(_) => Kind::Affinity,
        }
    }

    /// Whether the record named `key` belongs to it.
    pub fn holds(&self, key: &Key) -> bool {
        match self {
            Self::All(kind) => key.kind() == *kind,
            Self::AffinitiesOf(owner) => matches!(key, Key::Affinity(of, _) if of == owner),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pools",
            Self::Block => "blocks",
            Self::Affinity => "affinities",
            Self::Handle => "handles",
            Self::Config => "IPAM configurations",
            Self::Reservation => "reservations",
            Self::Node => "nodes",
            Self::ClusterInformation => "cluster informations",
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(kind) => kind.fmt(f),
            Self::AffinitiesOf(owner) => write!(f, "affinities of {owner}"),
        }
    }
}

/// Something that must hold when a commit is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The record is still in this state.
    Unchanged(Key, Revision),
    /// There is no such record.
    Absent(Key),
}

/// One change of a commit. Each is itself conditional: no write is blind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create; refused if the key exists.
    Create(Record),
    /// Replace the record last seen as `Version`; refused if it changed or is gone.
    Update(Record, Version),
    /// Delete the record last seen as `Version`; refused if it changed or is gone.
    ///
    /// Carries the record as its caller knows it.
    Delete(Record, Version),
    /// A record that is to be seen as `passing` while the other writes of the commit are made, and ends as `last`.
    ///
    /// Where commits are atomic only `last` is written. Elsewhere `passing` is written in its turn and `last` once
    /// the other writes are made and the checks held again: an affinity that is pending until its block stands
    /// (architecture D5). Both name the same record.
    Pass {
        /// What others see meanwhile.
        passing: Box<Record>,
        /// What it ends as.
        last: Record,
        /// The state it was last seen in; `None` to create it.
        seen: Option<Version>,
    },
}

impl Write {
    /// The record that it leaves, or takes away.
    pub fn record(&self) -> &Record {
        match self {
            Self::Create(record)
            | Self::Update(record, _)
            | Self::Delete(record, _)
            | Self::Pass { last: record, .. } => record,
        }
    }

    /// The key it changes.
    pub fn key(&self) -> Key {
        self.record().key()
    }
}

/// What a driver can do. For reports only: callers write one code path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A commit is all or nothing.
    pub atomic_commit: bool,
    /// Name shown to people: `memory`, `kubernetes`, `etcd`.
    pub name: &'static str,
}

/// A change seen by a watch, in revision order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Created or changed.
    ///
    /// Where affinities are named per block (architecture D9), a block has one affinity: this one replaces another
    /// owner's that was known.
    Put(Stored),
    /// Deleted at this revision (a peer's delete in two phases is reported at its first).
    Deleted(Key, Revision),
    /// It was changed at this revision and cannot be understood any more: as [`Listing::unreadable`], it is not to be taken for
    /// absent.
    Unreadable(Key, Revision),
    /// Nothing else up to this revision.
    Progress(Revision),
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No answer, or the server is not able to answer now: try again later.
    #[error("the datastore cannot be reached while reading {what}: {reason}")]
    Unavailable {
        /// Object or scope.
        what: String,
        /// Cause in one sentence.
        reason: String,
    },
    /// The history asked for is gone: list again.
    #[error("the history of {what} is gone: list it again")]
    Expired {
        /// Scope.
        what: String,
    },
    /// Credentials are refused.
    #[error("reading {what} is not permitted: {reason}; check the credentials and their roles")]
    Forbidden {
        /// Object or scope.
        what: String,
        /// The server's words.
        reason: String,
    },
    /// The record does not make sense.
    #[error("{what} cannot be understood: {reason}")]
    Malformed {
        /// Object.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a commit was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A record is not in the state that was expected: read again and decide again.
    #[error("{key} changed since it was read")]
    Conflict {
        /// The first record found changed, present though it should be absent, or gone.
        key: Key,
        /// Writes of this commit that took effect before the refusal (0 where commits are atomic).
        written: usize,
    },
    /// No answer before the deadline. **The write may have happened**: read before repeating.
    #[error("the datastore did not answer while writing {key}: {reason}")]
    Unknown {
        /// The write in question.
        key: Key,
        /// Cause in one sentence.
        reason: String,
    },
    /// Refused before anything was written: the store cannot be reached or does not accept writes now.
    #[error("the datastore cannot be reached to write {key}: {reason}")]
    Unavailable {
        /// The write in question.
        key: Key,
        /// Cause in one sentence.
        reason: String,
    },
    /// The store refuses this content or these credentials for good.
    #[error("writing {key} was refused: {reason}")]
    Refused {
        /// The write in question.
        key: Key,
        /// The server's words.
        reason: String,
        /// Writes of this commit that took effect before it.
        written: usize,
    },
}

/// A store of IPAM records.
///
/// Drivers own deadlines, connections and retries of reads. No driver repeats a write whose answer was lost.
pub trait Datastore: Send + Sync {
    /// What it can do, for reports.
    fn capabilities(&self) -> Capabilities;

    /// Reads one record; `None` if there is none. Records with `deleted` set count as absent.
    ///
    /// Datastore calls: 1.
    fn get(&self, key: &Key) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Reads all records of `scope` at one revision.
    ///
    /// Datastore calls: 1 per 500 records on Kubernetes, 1 per 1,000 on etcd, else 1.
    fn list(&self, scope: &Scope) -> impl Future<Output = Result<Listing, ReadError>> + Send;

    /// Makes `writes` if `checks` hold, and returns the written records' new versions in the order of `writes`
    /// (for a delete, the version deleted).
    ///
    /// All or nothing where [`Capabilities::atomic_commit`]. Elsewhere in order, stopping at the first refusal, checks
    /// read again after the last write and, where one fails, the writes undone.
    ///
    /// Datastore calls: 1 where atomic (on etcd more for more records than the servers take in one transaction, and one
    /// more to change a node). Otherwise as [`ordered::commit`] says (two per write of
    /// a node).
    ///
    /// # Errors
    /// See [`CommitError`].
    ///
    /// # Cancellation
    /// Dropping the future may leave writes done or not done, never one half done.
    fn commit(
        &self,
        checks: &[Check],
        writes: &[Write],
    ) -> impl Future<Output = Result<Vec<Version>, CommitError>> + Send;

    /// Changes of `scope` after `from`, until the stream ends or fails; then list again and watch from there.
    fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Event, ReadError>>, ReadError>> + Send;
}
