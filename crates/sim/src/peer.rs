//! A peer that behaves like Calico on the same records: its sequence of datastore calls, its warts included.
//!
//! Written from the list of calls and rules in algorithm §4 to §13, §16 and §17. Two uses: in the simulator it lives beside
//! our own clients, so that both must bear each other; in benchmarks it is the yardstick.
//!
//! What is kept on purpose: every step is one call of one record, for Calico has no transactions. A handle is counted up
//! by what was *requested* (Q3), a fresh affinity is written pending twice, borrowing reads every possible block of a
//! pool one by one (Q13), a lost claim fails a request for one address (Q6) and a conflict there counts the handle twice
//! (Q7), a release by handle leaves the entry of a block that holds nothing of it (Q9), an affinity whose block is missing
//! stays (Q4), and a block write that was made but not answered is rolled back as if it had not been (W14).
//!
//! So a peer breaks promises of ours by itself: where answers are lost its handles do not reach its addresses (invariant 5),
//! and where a pool comes back with another block size it makes overlapping blocks (invariant 4). It needs a store with
//! affinities named per node (architecture D9).
//!
//! The maths on one block is [`ipam::block`]'s: there both do the same (algorithm §2).
//!
//! ```
//! use api::{IpVersion, Node, Pool};
//! use datastore::{Datastore, Record, Write, memory::Memory};
//! use ipam::clock::FixedClock;
//! use sim::peer::{Calico, Wanted};
//!
//! let store = Memory::new();
//! let pool = Pool::with_defaults("p", "10.0.0.0/24".parse()?);
//! let node = Node { name: "n".to_owned(), ..Node::default() };
//! let writes = [Write::Create(Record::Pool(pool)), Write::Create(Record::Node(node))];
//! futures::executor::block_on(async {
//!     store.commit(&[], &writes).await?;
//!     let calico = Calico { store: &store, clock: &FixedClock(jiff::Timestamp::UNIX_EPOCH) };
//!     let answer = calico.auto_assign(&Wanted::one("n", IpVersion::V4, "net.c1")).await;
//!     assert_eq!(answer.addresses.len(), 1);
//!     Ok::<(), datastore::CommitError>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod affinity;
mod assign;
mod assign_address;
mod find;
mod handle;
mod release;

pub use assign::{Answer, Wanted};
pub use assign_address::WantedAddress;
pub use release::ReleasedByPeer;

use api::{Block, Cidr, IpamConfig, Owner, Pool, Reservation};
use datastore::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Version, Write};
use ipam::seen::Recorded;
use ipam::{Clock, ReservationSet, Seen, block};

/// Passes of every compare-and-set loop; there is no pause between them.
const RETRIES: usize = 100;

/// One Calico: the functions of its allocator over a store.
#[derive(Clone, Copy)]
pub struct Calico<'a, D> {
    /// Its datastore.
    pub store: &'a D,
    /// Its clock.
    pub clock: &'a dyn Clock,
}

impl<D> std::fmt::Debug for Calico<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calico").finish_non_exhaustive()
    }
}

/// What its calls end with when they do not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The record changed since it was read.
    #[error("update conflict: {0}")]
    Conflict(String),
    /// There is no such record.
    #[error("resource does not exist: {0}")]
    Missing(String),
    /// There is such a record already.
    #[error("resource already exists: {0}")]
    Exists(String),
    /// An answer did not come, or was a refusal. The write may have happened.
    #[error("datastore: {0}")]
    Store(String),
    /// Another owner has the block, or nobody.
    #[error("{0} block is already claimed by another host")]
    ClaimConflict(Cidr),
    /// The block of our affinity is not ours.
    #[error("affinity for {0} is stale")]
    Stale(Cidr),
    /// The block was to be empty and is not.
    #[error("block {0} is not empty")]
    NotEmpty(Cidr),
    /// No block is left to claim.
    #[error("no free blocks")]
    NoFreeBlocks,
    /// The node has as many blocks as it may.
    #[error("cannot allocate new block due to per host block limit")]
    BlockLimit,
    /// The handle holds as many addresses as it may.
    #[error("handle {0} has reached its maximum of addresses")]
    MaxAllocReached(String),
    /// The request cannot be served as it is.
    #[error("{0}")]
    Refused(String),
    /// Every pass of a loop met a conflict.
    #[error("Max retries hit - excessive concurrent IPAM requests")]
    Retries,
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Store(error.to_string())
    }
}

impl<D: Datastore> Calico<'_, D> {
    /// Reads one record; one that is not there is an error to Calico.
    async fn get<T: Recorded>(&self, key: &Key) -> Result<Seen<T>, Failure> {
        let found = self.store.get(key).await?.and_then(Seen::from_stored);
        found.ok_or_else(|| Failure::Missing(key.to_string()))
    }

    async fn list<T: Recorded>(&self, scope: &Scope) -> Result<Vec<Seen<T>>, Failure> {
        Ok(self.store.list(scope).await?.items.into_iter().filter_map(Seen::from_stored).collect())
    }

    async fn config(&self) -> Result<IpamConfig, Failure> {
        match self.get(&Key::Config).await {
            Ok(seen) => Ok(seen.value),
            Err(Failure::Missing(_)) => Ok(IpamConfig::default()),
            Err(error) => Err(error),
        }
    }

    async fn reservations(&self) -> Result<ReservationSet, Failure> {
        let found: Vec<Seen<Reservation>> = self.list(&Scope::All(Kind::Reservation)).await?;
        Ok(ReservationSet::new(found.iter().map(|seen| &seen.value)))
    }

    async fn pools(&self) -> Result<Vec<Pool>, Failure> {
        let found: Vec<Seen<Pool>> = self.list(&Scope::All(Kind::Pool)).await?;
        Ok(found.into_iter().map(|seen| seen.value).collect())
    }

    /// Reads a block and collects what has cooled down, as after every load.
    async fn block(&self, cidr: Cidr, config: &IpamConfig) -> Result<Seen<Block>, Failure> {
        let mut seen: Seen<Block> = self.get(&Key::Block(cidr)).await?;
        block::collect(&mut seen.value, config.ip_cooldown_seconds, self.clock.now());
        Ok(seen)
    }

    async fn write(&self, write: Write) -> Result<Version, CommitError> {
        let key = write.key();
        let versions = self.store.commit(&[], &[write]).await?;
        let reason = "a write was answered without a version".to_owned();
        versions.into_iter().next().ok_or(CommitError::Unknown { key, reason })
    }

    async fn create(&self, record: Record) -> Result<Version, Failure> {
        self.write(Write::Create(record)).await.map_err(|error| match error {
            CommitError::Conflict { key, .. } => Failure::Exists(key.to_string()),
            error => Failure::Store(error.to_string()),
        })
    }

    async fn update(&self, record: Record, version: &Version) -> Result<Version, Failure> {
        self.write(Write::Update(record, version.clone())).await.map_err(|error| match error {
            CommitError::Conflict { key, .. } => Failure::Conflict(key.to_string()),
            error => Failure::Store(error.to_string()),
        })
    }

    /// Writes a block that was read in `version` back, one sequence number higher.
    async fn update_block(&self, mut block: Block, version: &Version) -> Result<Seen<Block>, Failure> {
        block::advance(&mut block);
        let version = self.update(Record::Block(block.clone()), version).await?;
        Ok(Seen::written(block, version, None))
    }

    /// Deletes a record in the state it was read in.
    ///
    /// A store of ours does not say whether a refused record changed or is gone, and Calico's does in the same answer: one more
    /// read finds out, after a refusal only.
    async fn delete(&self, record: Record, version: &Version) -> Result<(), Failure> {
        let key = record.key();
        match self.write(Write::Delete(record, version.clone())).await {
            Ok(_) => Ok(()),
            Err(CommitError::Conflict { .. }) => match self.store.get(&key).await? {
                Some(_) => Err(Failure::Conflict(key.to_string())),
                None => Err(Failure::Missing(key.to_string())),
            },
            Err(error) => Err(Failure::Store(error.to_string())),
        }
    }
}

/// A failure that the caller of a loop's pass answers with another pass.
fn is_conflict(error: &Failure) -> bool {
    matches!(error, Failure::Conflict(_))
}

/// The enabled pool that has this block or address.
fn enabled_pool_of(pools: &[Pool], cidr: Cidr) -> Option<&Pool> {
    pools.iter().find(|pool| pool.is_enabled() && pool.cidr.contains(cidr.network()))
}

/// Affinity records of this owner.
fn affinity_key(owner: &Owner, cidr: Cidr) -> Key {
    Key::Affinity(owner.clone(), cidr)
}
