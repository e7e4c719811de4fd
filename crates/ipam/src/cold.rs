//! Bringing addresses whose cooldown is over back into use in blocks that nobody writes (algorithm §16, quirk Q22).
//!
//! A cooled ordinal is noticed by whoever writes its block next. In a block that is idle nobody does, so that a block without
//! owner would never become empty and its addresses would be lost. The collector passes every idle block through here.

use crate::block;
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::seen::{self, Seen};
use api::Block;
use datastore::{CommitError, Datastore, Record, Write};

/// What a pass found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing to collect; nothing was written.
    Nothing,
    /// Ordinals were freed: the block as written.
    Freed(Box<Seen<Block>>),
    /// It was empty and without owner, and is deleted.
    Deleted,
    /// Somebody wrote or deleted it since it was read. Whoever writes a block collects it too.
    Changed,
}

/// Frees the ordinals of a block as read whose cooldown is over, and deletes it if it then is empty and without owner.
///
/// A block that is empty and without owner is deleted also where there is nothing to free: a writer that died before it
/// deleted the block, or one that does not delete such blocks, left it.
///
/// Datastore calls: none where there is nothing to do, else 1 commit; 1 read more if its answer was lost.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancellation
/// The write is made or not made.
pub async fn collect_cold<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cooldown_seconds: u32,
    seen: &Seen<Block>,
) -> Result<Pass, StoreError> {
    let mut block = seen.value.clone();
    let changed = block::collect(&mut block, cooldown_seconds, clock.now());
    let useless = block.affinity.is_none() && block::is_empty(&block);
    if !changed && !useless {
        return Ok(Pass::Nothing);
    }
    let cidr = block.cidr;
    let write = if useless {
        Write::Delete(Record::Block(block.clone()), seen.version.clone())
    } else {
        block::advance(&mut block);
        Write::Update(Record::Block(block.clone()), seen.version.clone())
    };
    match store.commit(&[], &[write]).await {
        Ok(_) if useless => Ok(Pass::Deleted),
        Ok(versions) => Ok(versions.into_iter().next().map_or(Pass::Changed, |version| {
            Pass::Freed(Box::new(Seen::written(block, version, seen.created)))
        })),
        Err(CommitError::Conflict { .. }) => Ok(Pass::Changed),
        Err(CommitError::Unknown { .. }) => Ok(match seen::block(store, cidr).await? {
            None if useless => Pass::Deleted,
            Some(found) if !useless && found.value == block => Pass::Freed(Box::new(found)),
            // Not written, or written over since: the next pass sees which.
            _ => Pass::Changed,
        }),
        Err(error) => Err(error.into()),
    }
}
