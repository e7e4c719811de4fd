//! One commit on one block, planned again after each conflict.

use crate::affinity::holds;
use crate::block::{self, Taken};
use crate::clock::Clock;
use crate::explain::Explain;
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{BlockPlan, Handles, PlanRefusal};
use crate::seen::{self, HandleInHand, Seen};
use api::Block;
use datastore::{CommitError, Datastore};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnBlock {
    /// It was written, and these addresses are in it.
    Took(Vec<Taken>),
    /// The plan had nothing to write: it is full.
    Full,
    /// It does not exist any more.
    Gone,
    /// It may not be written.
    Refused(PlanRefusal),
}

/// Plans on a block, commits, and starts over on a conflict.
///
/// Datastore calls: 1 commit, and 1 read before it if the handle in hand is not known; after each conflict 2 reads at once
/// and 1 commit more.
///
/// # Errors
/// [`StoreError`]. A commit whose answer was lost is looked up and not repeated blindly (invariant I40).
pub(crate) async fn commit_on<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: Seen<Block>,
    hand: &mut HandleInHand,
    cooldown_seconds: u32,
    explain: &mut Explain,
    planned: impl Fn(&Seen<Block>, &Handles) -> Result<BlockPlan, PlanRefusal>,
) -> Result<OnBlock, StoreError> {
    let cidr = block.value.cidr;
    let mut block = block;
    for _ in 0..ATTEMPTS {
        hand.look(store).await?;
        block::collect(&mut block.value, cooldown_seconds, clock.now());
        let plan = match planned(&block, &hand.handles()) {
            Ok(plan) if plan.writes.is_empty() => return Ok(OnBlock::Full),
            Ok(plan) => plan,
            Err(refusal) => return Ok(OnBlock::Refused(refusal)),
        };
        let unknown = match store.commit(&[], &plan.writes).await {
            Ok(versions) => {
                hand.wrote(&plan.writes, &versions);
                return Ok(OnBlock::Took(plan.taken.into_iter().flatten().collect()));
            }
            Err(CommitError::Conflict { key, .. }) => {
                explain.conflict(&key);
                false
            }
            Err(CommitError::Unknown { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        hand.forget();
        let (again, known) = futures::join!(seen::block(store, cidr), hand.look(store));
        known?;
        let Some(again) = again? else { return Ok(OnBlock::Gone) };
        if unknown && holds(&again.value, &plan.taken, hand.id()) {
            return Ok(OnBlock::Took(plan.taken.into_iter().flatten().collect()));
        }
        block = again;
    }
    Err(StoreError::Contention { what: format!("addresses of block {cidr}") })
}
