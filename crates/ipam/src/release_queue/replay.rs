//! A queued release meets the store.

use super::{Entry, Held};
use crate::agent::INTERFACE;
use crate::block::{self, Release};
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::release::{ReleaseFailure, release_addresses};
use crate::seen::{self, Seen};
use api::{Block, ClusterInformation};
use datastore::{Datastore, Key, ReadError};

/// How a queued release ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Nothing is owed any more: what was named is given back, or is not what it was.
    Done,
    /// The store is another cluster's.
    Foreign,
    /// The store did not do it, or did not say so, or is locked.
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// Gives back what an entry owes, and nothing else: stamp and handle of every address must be those of the entry.
///
/// Datastore calls: 1 read (the cluster's information), those of [`release_addresses`] per address; where the entry names no
/// addresses 1 read of the handle and 1 per block, or a list of the blocks if there is no handle.
///
/// # Cancellation
/// May be repeated.
pub async fn replay<D: Datastore>(store: &D, clock: &dyn Clock, entry: &Entry) -> Replayed {
    match try_replay(store, clock, entry).await {
        Ok(outcome) => outcome,
        Err(error) => Replayed::Unavailable { reason: error.to_string() },
    }
}

async fn try_replay<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    entry: &Entry,
) -> Result<Replayed, StoreError> {
    let information: Option<Seen<ClusterInformation>> = match store.get(&Key::ClusterInformation).await {
        Ok(found) => found.and_then(Seen::from_stored),
        // Nobody can tell whose it is, so it is not touched until somebody mends it.
        Err(error) => return Err(error.into()),
    };
    if information.as_ref().is_some_and(|seen| !seen.value.datastore_ready) {
        let reason = "the datastore is locked while it is migrated".to_owned();
        return Ok(Replayed::Unavailable { reason });
    }
    let here = information.map(|seen| seen.value.cluster_guid).filter(|guid| !guid.is_empty());
    if let (Some(here), Some(there)) = (here, entry.cluster.as_ref().filter(|guid| !guid.is_empty()))
        && here != *there
    {
        return Ok(Replayed::Foreign);
    }
    let held = match &entry.held {
        Some(held) => held.clone(),
        None => find(store, entry).await?,
    };
    for Held { address, sequence } in held {
        let release = Release { address, handle: Some(entry.handle.clone()), sequence: Some(sequence) };
        // One by one: an address that is another's by now does not hold up the rest.
        for (_, failure) in release_addresses(store, clock, &[release]).await?.failed {
            match failure {
                ReleaseFailure::Refused(_) => {}
                ReleaseFailure::Store(error) => return Err(error),
            }
        }
    }
    Ok(Replayed::Done)
}

/// What the attachment of an entry holds.
async fn find<D: Datastore>(store: &D, entry: &Entry) -> Result<Vec<Held>, ReadError> {
    let blocks = match seen::handle(store, block::sanitized(&entry.handle)).await? {
        Some(handle) => {
            let mut blocks = Vec::new();
            for cidr in handle.value.blocks.keys() {
                blocks.extend(seen::block(store, *cidr).await?);
            }
            blocks
        }
        None => seen::blocks(store).await?,
    };
    Ok(blocks.iter().flat_map(|seen| held_in(&seen.value, entry)).collect())
}

fn held_in(block: &Block, entry: &Entry) -> Vec<Held> {
    block::held_by(block, &entry.handle)
        .filter_map(|ordinal| {
            let address = block.cidr.address(ordinal)?;
            let interface = block::attribute_of(block, address)?.secondary.get(INTERFACE);
            interface
                .is_none_or(|interface| *interface == entry.attachment.interface)
                .then(|| Held { address, sequence: block::stamp(block, ordinal) })
        })
        .collect()
}
