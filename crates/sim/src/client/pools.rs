//! The pool controller: takes a pool out of use, gives its blocks up, deletes it, and makes it anew.
//!
//! ```text
//!   Steady ──disable──► Disabled ──pause, give up all blocks──► Emptied ──delete──► Absent ──create──► Steady
//!      ▲                   │
//!      └───── enable ──────┘
//! ```

use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::port::SimStore;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use api::Pool;
use datastore::{CommitError, Datastore as _, Key, Record, Write};
use ipam::administration::release_affinities_in;
use std::time::Duration;

/// How long a disabled pool is left alone before its blocks are given up.
const PAUSE: Duration = Duration::from_millis(500);

/// How far a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Steady,
    Disabled,
    Emptied,
    Absent,
}

/// What is being done about a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Disable,
    Enable,
    Empty,
    Delete,
    Create,
}

/// A pool and the work on it.
#[derive(Clone, Debug)]
pub struct PoolWork {
    pool: Pool,
    stage: Stage,
    /// When it came to its stage.
    since: Duration,
    /// What is under way.
    deed: Option<Deed>,
}

impl PoolWork {
    /// A pool that is there.
    pub fn new(pool: Pool) -> Self {
        Self { pool, stage: Stage::Steady, since: Duration::ZERO, deed: None }
    }
}

impl World {
    /// Goes on with the work on some pool.
    pub(crate) fn work_on_pool(&mut self) {
        let index = self.rng.below(self.pools.len());
        let work = self.pools[index].clone();
        if work.deed.is_some() {
            return;
        }
        let deed = match work.stage {
            Stage::Steady if self.has(Fault::PoolDisabled) => Deed::Disable,
            Stage::Disabled if self.has(Fault::PoolDeleted) && self.rng.chance(2, 3) => {
                if self.time.ran() < work.since + PAUSE {
                    return;
                }
                Deed::Empty
            }
            Stage::Disabled => Deed::Enable,
            Stage::Emptied => Deed::Delete,
            Stage::Absent => Deed::Create,
            Stage::Steady => return,
        };
        self.pools[index].deed = Some(deed);
        let mut pool = work.pool;
        let purpose = Purpose::Pool { pool: index };
        let leave = Leave::Nothing;
        match deed {
            Deed::Disable | Deed::Enable => {
                if deed == Deed::Disable {
                    self.met(Fault::PoolDisabled, None);
                }
                pool.disabled = deed == Deed::Disable;
                self.begin(Operation::Administer, None, purpose, leave, |store, _| async move {
                    Outcome::Administered(put(&store, Record::Pool(pool)).await)
                });
            }
            Deed::Empty => {
                self.begin(Operation::EmptyPool, None, purpose, leave, |store, clock| async move {
                    Outcome::Administered(release_affinities_in(&store, &clock, pool.cidr).await.is_ok())
                });
            }
            Deed::Delete => {
                self.met(Fault::PoolDeleted, None);
                self.begin(Operation::Administer, None, purpose, leave, |store, _| async move {
                    Outcome::Administered(delete(&store, Key::Pool(pool.name)).await)
                });
            }
            Deed::Create => {
                pool.disabled = false;
                if self.has(Fault::PoolRecreated) {
                    self.met(Fault::PoolRecreated, None);
                    let bits = pool.cidr.version().bits();
                    let sizes = [bits - 3, bits - 2, bits - 1];
                    pool.block_size = self.rng.pick(&sizes).unwrap_or(bits - 2);
                    self.pools[index].pool.block_size = pool.block_size;
                }
                self.begin(Operation::Administer, None, purpose, leave, |store, _| async move {
                    Outcome::Administered(put(&store, Record::Pool(pool)).await)
                });
            }
        }
    }

    /// A deed of the pool controller ended; what is not done is done again later.
    pub(crate) fn pool_work_ended(&mut self, index: usize, done: bool) {
        let now = self.time.ran();
        let work = &mut self.pools[index];
        let deed = work.deed.take();
        if !done {
            return;
        }
        work.stage = match deed {
            Some(Deed::Disable) => Stage::Disabled,
            Some(Deed::Enable | Deed::Create) => Stage::Steady,
            Some(Deed::Empty) => Stage::Emptied,
            Some(Deed::Delete) => Stage::Absent,
            None => work.stage,
        };
        work.since = now;
    }
}

/// Makes a record what it should be. False: try again.
pub(crate) async fn put(store: &SimStore, record: Record) -> bool {
    let Ok(found) = store.get(&record.key()).await else { return false };
    let write = match found {
        Some(found) if found.record == record => return true,
        Some(found) => Write::Update(record, found.version),
        None => Write::Create(record),
    };
    store.commit(&[], &[write]).await.is_ok()
}

/// Deletes a record. False: try again.
pub(crate) async fn delete(store: &SimStore, key: Key) -> bool {
    let Ok(found) = store.get(&key).await else { return false };
    let Some(found) = found else { return true };
    match store.commit(&[], &[Write::Delete(found.record, found.version)]).await {
        Ok(_) => true,
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => false,
        Err(_) => false,
    }
}
