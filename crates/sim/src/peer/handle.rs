//! Counting a handle up before its block is written, and down after it (algorithm §4).

use super::{Calico, Failure, RETRIES, is_conflict};
use api::{Cidr, Handle};
use datastore::{Datastore, Key, Record};
use ipam::Seen;
use std::collections::BTreeMap;

impl<D: Datastore> Calico<'_, D> {
    /// Adds `count` to the handle's entry for a block. Any write that fails is tried again, answered or not.
    pub(super) async fn count_up(
        &self,
        id: &str,
        cidr: Cidr,
        count: u32,
        cap: Option<u32>,
    ) -> Result<(), Failure> {
        for _ in 0..RETRIES {
            let found: Option<Seen<Handle>> = match self.get(&Key::Handle(id.to_owned())).await {
                Ok(found) => Some(found),
                Err(Failure::Missing(_)) => None,
                Err(error) => return Err(error),
            };
            let mut handle = found.as_ref().map_or_else(
                || Handle { id: id.to_owned(), blocks: BTreeMap::new(), deleted: false },
                |seen| seen.value.clone(),
            );
            if let Some(cap) = cap {
                let family = handle.blocks.iter().filter(|(block, _)| block.version() == cidr.version());
                let held: u32 = family.map(|(_, held)| *held).sum();
                if held.saturating_add(count) > cap {
                    return Err(Failure::MaxAllocReached(id.to_owned()));
                }
            }
            *handle.blocks.entry(cidr).or_insert(0) += count;
            let written = match found {
                Some(seen) => self.update(Record::Handle(handle), &seen.version).await,
                None => self.create(Record::Handle(handle)).await,
            };
            if written.is_ok() {
                return Ok(());
            }
        }
        Err(Failure::Retries)
    }

    /// Takes `count` off the handle's entry for a block; the handle goes with its last entry.
    ///
    /// `cached` is used on the first pass in place of a read. Callers go on when this fails.
    pub(super) async fn count_down(
        &self,
        id: &str,
        cidr: Cidr,
        count: u32,
        cached: Option<&Seen<Handle>>,
    ) -> Result<(), Failure> {
        let mut cached = cached.cloned();
        for _ in 0..RETRIES {
            let seen: Seen<Handle> = match cached.take() {
                Some(seen) => seen,
                None => self.get(&Key::Handle(id.to_owned())).await?,
            };
            let mut handle = seen.value.clone();
            let left =
                handle.blocks.get(&cidr).and_then(|held| held.checked_sub(count)).ok_or_else(|| {
                    Failure::Refused(format!("handle {id} does not hold {count} addresses of {cidr}"))
                })?;
            if left == 0 {
                handle.blocks.remove(&cidr);
            } else {
                handle.blocks.insert(cidr, left);
            }
            let written = if handle.blocks.is_empty() {
                match self.delete(Record::Handle(handle), &seen.version).await {
                    Err(Failure::Missing(_)) => Ok(()),
                    deleted => deleted,
                }
            } else {
                self.update(Record::Handle(handle), &seen.version).await.map(|_| ())
            };
            match written {
                Err(error) if is_conflict(&error) => {}
                written => return written,
            }
        }
        Err(Failure::Retries)
    }
}
