//! Commits of the batcher on a store without transactions: handles side by side, the block between them.
//!
//! A batch writes many handles and one block. Handles do not depend on each other, only on coming before the block (on
//! the way in) or after it (on the way out). So they are written several at a time, which is what makes thirty pods at
//! once take as long as four.

use datastore::{Check, CommitError, Datastore, Key, Version, Write};
use futures::StreamExt;

/// Handles written side by side: each takes a connection of its own.
const SIDE_BY_SIDE: usize = 8;

/// Makes a commit as [`Datastore::commit`] does, with its handles several at a time.
///
/// # Errors
/// [`CommitError`]; `written` counts what was written, or may have been.
///
/// # Cancellation
/// As [`Datastore::commit`].
pub(crate) async fn commit<D: Datastore>(
    store: &D,
    checks: &[Check],
    writes: &[Write],
) -> Result<Vec<Version>, CommitError> {
    let is_handle = |write: &Write| matches!(write.key(), Key::Handle(_));
    let Some(block) = writes.iter().position(|write| !is_handle(write)) else {
        return store.commit(checks, writes).await;
    };
    let after = writes.iter().rposition(|write| !is_handle(write)).map_or(writes.len(), |last| last + 1);
    let outside = block + writes.len() - after;
    if store.capabilities().atomic_commit || outside < 2 {
        return store.commit(checks, writes).await;
    }
    let mut versions = side_by_side(store, &writes[..block], 0).await?;
    let middle = store.commit(checks, &writes[block..after]).await;
    versions.extend(middle.map_err(|error| after_writes(error, block))?);
    versions.extend(side_by_side(store, &writes[after..], after).await?);
    Ok(versions)
}

async fn side_by_side<D: Datastore>(
    store: &D,
    writes: &[Write],
    before: usize,
) -> Result<Vec<Version>, CommitError> {
    let results: Vec<Result<Vec<Version>, CommitError>> = futures::stream::iter(writes.to_vec())
        .map(|write| async move { store.commit(&[], &[write]).await })
        .buffered(SIDE_BY_SIDE)
        .collect()
        .await;
    // One whose answer was lost may be written too: then all of them are to be read again.
    let may_be_written = |result: &&Result<_, _>| matches!(result, Ok(_) | Err(CommitError::Unknown { .. }));
    let written = before + results.iter().filter(may_be_written).count();
    let mut versions = Vec::with_capacity(writes.len());
    for result in results {
        versions.extend(result.map_err(|error| after_writes(error, written))?);
    }
    Ok(versions)
}

/// An error of a later part, `before` writes having been made already.
fn after_writes(error: CommitError, before: usize) -> CommitError {
    match error {
        CommitError::Conflict { key, written } => CommitError::Conflict { key, written: written + before },
        CommitError::Refused { key, reason, written } => {
            CommitError::Refused { key, reason, written: written + before }
        }
        // Unavailable means that nothing was written, which is no longer true.
        CommitError::Unavailable { key, reason } if before > 0 => CommitError::Unknown { key, reason },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Handle, IpamConfig};
    use datastore::memory::Memory;
    use datastore::{Capabilities, Event, Listing, ReadError, Record, Revision, Scope, Stored};
    use futures::stream::BoxStream;
    use std::sync::Mutex;

    /// The store in memory, without transactions, and a record of what came together.
    struct Ordered {
        memory: Memory,
        commits: Mutex<Vec<Vec<Key>>>,
        /// The answer to its write is lost.
        lost: Option<Key>,
    }

    impl Datastore for Ordered {
        fn capabilities(&self) -> Capabilities {
            Capabilities { atomic_commit: false, name: "ordered" }
        }

        async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
            self.memory.get(key).await
        }

        async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
            self.memory.list(scope).await
        }

        async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
            self.commits.lock().unwrap().push(writes.iter().map(Write::key).collect());
            let answer = self.memory.commit(checks, writes).await;
            match &self.lost {
                Some(key) if writes.iter().any(|write| write.key() == *key) => {
                    Err(CommitError::Unknown { key: key.clone(), reason: "lost".to_owned() })
                }
                _ => answer,
            }
        }

        async fn watch(
            &self,
            scope: &Scope,
            from: Revision,
        ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
            self.memory.watch(scope, from).await
        }
    }

    fn ordered() -> Ordered {
        Ordered { memory: Memory::new(), commits: Mutex::default(), lost: None }
    }

    fn handle(id: &str) -> Record {
        Record::Handle(Handle { id: id.to_owned(), blocks: Default::default(), deleted: false })
    }

    #[tokio::test]
    async fn handles_come_before_and_after_what_stands_between_them() {
        let store = ordered();
        let old = store.commit(&[], &[Write::Create(handle("old"))]).await.unwrap().remove(0);
        let writes = [
            Write::Create(handle("a")),
            Write::Create(handle("b")),
            Write::Create(Record::Config(IpamConfig::default())),
            Write::Delete(handle("old"), old),
        ];
        let versions = commit(&store, &[], &writes).await.unwrap();
        assert_eq!(versions.len(), 4);
        let commits = store.commits.lock().unwrap();
        let last: Vec<usize> = commits.iter().skip(1).map(Vec::len).collect();
        assert_eq!(last, [1, 1, 1, 1]);
        assert_eq!(commits[3], [Key::Config]);
    }

    #[tokio::test]
    async fn handle_in_the_way_stops_the_commit_before_the_block() {
        let store = ordered();
        store.commit(&[], &[Write::Create(handle("b"))]).await.unwrap();
        let writes = [
            Write::Create(handle("a")),
            Write::Create(handle("b")),
            Write::Create(Record::Config(IpamConfig::default())),
        ];
        let error = commit(&store, &[], &writes).await.unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Handle("b".to_owned()), written: 1 });
        assert_eq!(store.get(&Key::Config).await.unwrap(), None);
    }

    #[tokio::test]
    async fn handle_whose_answer_was_lost_counts_as_written_beside_a_conflict() {
        let lost = Key::Handle("b".to_owned());
        let store = Ordered { lost: Some(lost), ..ordered() };
        store.commit(&[], &[Write::Create(handle("a"))]).await.unwrap();
        let writes = [
            Write::Create(handle("a")),
            Write::Create(handle("b")),
            Write::Create(Record::Config(IpamConfig::default())),
        ];
        let error = commit(&store, &[], &writes).await.unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Handle("a".to_owned()), written: 1 });
    }

    #[tokio::test]
    async fn conflict_of_the_block_tells_how_many_handles_were_written() {
        let store = ordered();
        store.commit(&[], &[Write::Create(Record::Config(IpamConfig::default()))]).await.unwrap();
        let writes = [
            Write::Create(handle("a")),
            Write::Create(handle("b")),
            Write::Create(Record::Config(IpamConfig::default())),
        ];
        let error = commit(&store, &[], &writes).await.unwrap_err();
        assert_eq!(error, CommitError::Conflict { key: Key::Config, written: 2 });
    }
}
