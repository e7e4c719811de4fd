//! `datastore migrate`: moves a cluster from etcd to Kubernetes, and stops its writers meanwhile (calicoctl §11).
//!
//! ```text
//!   lock ─► export > FILE ─► import -f FILE (into Kubernetes, which stays locked) ─► unlock
//! ```

mod definitions;
mod export;
mod file;
mod import;
mod names;
mod others;

use crate::arguments::Migrate;
use crate::failure::Failure;
use api::ClusterInformation;
use datastore::backend::Backend;
use datastore::{Datastore, Key, Record, Write};
use ipam::Seen;
use ipam::seen;

/// Runs the command.
pub(crate) async fn run(store: &Backend, command: &Migrate) -> Result<String, Failure> {
    match command {
        Migrate::Export { keep_node_names } => export::run(store, *keep_node_names).await,
        Migrate::Import { filename } => import::run(store, filename).await,
        Migrate::Lock => set(store, false).await,
        Migrate::Unlock => set(store, true).await,
    }
}

/// Locks, or unlocks with `ready`.
async fn set<D: Datastore>(store: &D, ready: bool) -> Result<String, Failure> {
    let (doing, done) =
        if ready { ("unlocking", "Datastore unlocked.\n") } else { ("locking", "Datastore locked.\n") };
    let what = format!("ClusterInformation for {doing}");
    let found: Option<Seen<ClusterInformation>> = seen::get(store, &Key::ClusterInformation)
        .await
        .map_err(|error| Failure::new(format!("error retrieving {what}: {error}")))?;
    let write = match found {
        Some(seen) if seen.value.datastore_ready == ready => return Ok(done.to_owned()),
        Some(seen) => {
            let cluster = ClusterInformation { datastore_ready: ready, ..seen.value };
            Write::Update(Record::ClusterInformation(cluster), seen.version)
        }
        // What is not there is ready.
        None if ready => return Ok(done.to_owned()),
        None => Write::Create(Record::ClusterInformation(ClusterInformation::default())),
    };
    store
        .commit(&[], &[write])
        .await
        .map_err(|error| Failure::new(format!("error updating {what}: {error}")))?;
    Ok(done.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::memory::Memory;
    use futures::executor::block_on;

    fn ready(store: &Memory) -> Option<bool> {
        let found = block_on(store.get(&Key::ClusterInformation)).unwrap()?;
        let Record::ClusterInformation(cluster) = found.record else { panic!("{found:?}") };
        Some(cluster.datastore_ready)
    }

    #[test]
    fn a_lock_is_made_where_there_is_none_and_both_may_be_repeated() {
        let store = Memory::new();
        assert_eq!(block_on(set(&store, true)).unwrap(), "Datastore unlocked.\n");
        assert_eq!(ready(&store), None);
        for _ in 0..2 {
            assert_eq!(block_on(set(&store, false)).unwrap(), "Datastore locked.\n");
            assert_eq!(ready(&store), Some(false));
        }
        let at = store.revision();
        block_on(set(&store, false)).unwrap();
        assert_eq!(store.revision(), at);
        block_on(set(&store, true)).unwrap();
        assert_eq!(ready(&store), Some(true));
    }
}
