//! Commits under checks that would delete a block (architecture D3, invariants 4 and 6).
//!
//! A store without transactions reads the checks after the writes and takes the writes back where one fails. A delete that
//! is taken back comes too late: while the block was away, somebody may have claimed across it.

use crate::block;
use api::Block;
use datastore::{Check, CommitError, Datastore, Record, Version, Write};

/// Commits under checks. Where the store may have to take writes back, a block that is to be deleted is first written empty and
/// without owner, and deleted when the checks have held: it stays where it is all the time.
///
/// What keeps the delete from being made leaves an empty block of nobody, which the collector deletes.
///
/// Datastore calls: 1 commit; with a block to delete on a store without transactions 1 more.
///
/// # Errors
/// See [`CommitError`]: of the commit under checks.
pub(crate) async fn commit_guarded<D: Datastore>(
    store: &D,
    checks: &[Check],
    writes: Vec<Write>,
) -> Result<Vec<Version>, CommitError> {
    if checks.is_empty() || store.capabilities().atomic_commit {
        return store.commit(checks, &writes).await;
    }
    let softened: Vec<Write> = writes.iter().cloned().map(softened).collect();
    let versions = store.commit(checks, &softened).await?;
    for ((write, emptied), version) in writes.iter().zip(softened).zip(&versions) {
        if let (Write::Delete(..), Write::Update(record, _)) = (write, emptied) {
            let _ = store.commit(&[], &[Write::Delete(record, version.clone())]).await;
        }
    }
    Ok(versions)
}

/// The write of an empty block of nobody instead of its delete; any other write as it is.
fn softened(write: Write) -> Write {
    match write {
        Write::Delete(Record::Block(block), version) => {
            let mut block = Block { affinity: None, claim_time: None, ..block };
            block::advance(&mut block);
            Write::Update(Record::Block(block), version)
        }
        write => write,
    }
}
