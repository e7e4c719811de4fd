//! A new sandbox of the same pod takes over the addresses of the old one, whose namespace is gone: new handle, new attributes and
//! new stamp in one write of the block, so that what was decided about the old sandbox frees nothing of the new one.

use crate::agent::{Demand, INTERFACE};
use crate::block::{self, Release};
use crate::clock::Clock;
use crate::collect::POD_UID;
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{handle_gain, handle_write};
use crate::seen::{self, Seen};
use api::attachment::{NETWORK, SANDBOX};
use api::{Block, Cidr, Handle};
use datastore::{CommitError, Datastore, Record, Write};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An address that an earlier sandbox of the same pod holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// The block that it is of.
    pub block: Cidr,
    /// The address.
    pub address: IpAddr,
    /// Handle of the earlier sandbox.
    pub handle: String,
    /// Its stamp.
    pub sequence: u64,
    /// The earlier sandbox's namespace, as its ADD recorded it.
    pub sandbox: String,
}

/// What earlier sandboxes of the pod that `demand` is for hold in these blocks: same pod, same UID, same network and interface, of
/// another container. Nothing where the pod's UID is not known, one particular address is wanted, or the sandbox itself holds
/// something already.
pub fn predecessors<'a>(blocks: impl IntoIterator<Item = &'a Block>, demand: &Demand) -> Vec<Predecessor> {
    let wanted = |key: &str| demand.attributes.get(key).filter(|value| !value.is_empty());
    let known = ["pod", "namespace", POD_UID, NETWORK, INTERFACE, "node"];
    if demand.requested.is_some() || known.iter().any(|key| wanted(key).is_none()) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for block in blocks {
        for (ordinal, held) in block::allocated(block).filter(|(_, held)| held.released_at.is_none()) {
            if known.iter().any(|key| held.secondary.get(*key) != wanted(key)) {
                continue;
            }
            let handle = held.handle_id.as_deref().map(block::sanitized).unwrap_or_default();
            if handle == block::sanitized(&demand.handle) {
                return Vec::new();
            }
            let (Some(address), Some(sandbox)) = (block.cidr.address(ordinal), held.secondary.get(SANDBOX))
            else {
                continue;
            };
            let is_wanted = demand.versions.contains(&block.cidr.version());
            if is_wanted && held.alternate.is_empty() && !handle.is_empty() {
                found.push(Predecessor {
                    block: block.cidr,
                    address,
                    handle: handle.to_owned(),
                    sequence: block::stamp(block, ordinal),
                    sandbox: sandbox.clone(),
                });
            }
        }
    }
    found
}

/// Plans the take-over of `old` in its block as read. `None`: it is no longer what was seen.
///
/// The new handle is written before the block and the old one after it, as for every assignment and release.
fn plan(
    seen: &Seen<Block>,
    old: &Predecessor,
    demand: &Demand,
    handles: (Option<&Seen<Handle>>, Option<&Seen<Handle>>),
    clock: &dyn Clock,
) -> Option<Vec<Write>> {
    let mut block = seen.value.clone();
    let release =
        Release { address: old.address, handle: Some(old.handle.clone()), sequence: Some(old.sequence) };
    // Without a cooldown: it goes from hand to hand.
    let released = block::release(&mut block, &[release], 0, clock.now()).ok()?;
    if released.ordinals.is_empty() {
        return None;
    }
    block::assign(&mut block, old.address, Some(&demand.handle), &demand.attributes, None).ok()?;
    block::advance(&mut block);
    let (new, before) = handles;
    let mut writes = Vec::new();
    writes.extend(handle_gain(&demand.handle, new, block.cidr, block::count_of(&block, &demand.handle)));
    let left = block::count_of(&block, &old.handle);
    writes.push(Write::Update(Record::Block(block), seen.version.clone()));
    writes.extend(handle_write(&old.handle, before, old.block, left));
    Some(writes)
}

/// Hands what earlier sandboxes hold to the handle of `demand`, at most one address of a family. Returns the addresses; one that is no
/// longer what was seen is left alone.
///
/// Answer the ADD afterwards as one that is repeated: the handle holds them.
///
/// Datastore calls, per address: 3 reads at once (block, both handles) and 1 commit; again after a conflict. On a Kubernetes API
/// the commit is 3 requests (new handle, block, old handle).
///
/// # Errors
/// [`StoreError`]. After a commit without answer the handle of `demand` may hold the address or not.
///
/// # Cancellation
/// Each address is handed over or as before.
pub async fn take_over<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    demand: &Demand,
    old: &[Predecessor],
) -> Result<Vec<IpAddr>, StoreError> {
    let mut taken: Vec<IpAddr> = Vec::new();
    let mut families = BTreeSet::new();
    for old in old {
        if families.contains(&old.block.version()) {
            continue;
        }
        for attempt in 1..=ATTEMPTS {
            let (block, new, before) = futures::try_join!(
                seen::block(store, old.block),
                seen::handle(store, block::sanitized(&demand.handle)),
                seen::handle(store, &old.handle)
            )?;
            let Some(block) = block else { break };
            let Some(writes) = plan(&block, old, demand, (new.as_ref(), before.as_ref()), clock) else {
                break;
            };
            match store.commit(&[], &writes).await {
                Ok(_) => {
                    families.insert(old.block.version());
                    taken.push(old.address);
                    break;
                }
                Err(CommitError::Conflict { .. }) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::FixedClock;
    use crate::query::{Holder, addresses_of, holder_of};
    use crate::release::release_by_handle;
    use api::{IpVersion, Owner};
    use datastore::memory::Memory;
    use jiff::Timestamp;
    use std::collections::BTreeMap;

    const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

    fn demand(container: &str, uid: &str) -> Demand {
        let pairs = [
            ("pod", "web-0"),
            ("namespace", "default"),
            (POD_UID, uid),
            (NETWORK, "net"),
            (INTERFACE, "eth0"),
            ("node", "n1"),
        ];
        let mut attributes: BTreeMap<String, String> =
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        attributes.insert(SANDBOX.to_owned(), format!("7:/run/netns/{container}"));
        Demand::new(format!("net.{container}"), vec![IpVersion::V4], attributes)
    }

    /// A block in which `old` holds 10.0.0.1, and its handle, in a store.
    async fn held(old: &Demand) -> (Memory, Block) {
        let store = Memory::new();
        let mut block =
            block::new_block("10.0.0.0/30".parse().unwrap(), &Owner::host("n1"), Timestamp::UNIX_EPOCH);
        let address = "10.0.0.1".parse().unwrap();
        block::assign(&mut block, address, Some(&old.handle), &old.attributes, None).unwrap();
        block::advance(&mut block);
        let handle = Handle { id: old.handle.clone(), blocks: [(block.cidr, 1)].into(), deleted: false };
        let writes = [Record::Handle(handle), Record::Block(block.clone())].map(Write::Create);
        store.commit(&[], &writes).await.unwrap();
        (store, block)
    }

    #[tokio::test]
    async fn a_new_sandbox_takes_over_and_what_was_meant_for_the_old_one_frees_nothing() {
        let (old, new) = (demand("old", "u1"), demand("new", "u1"));
        let (store, block) = held(&old).await;
        let found = predecessors([&block], &new);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].sandbox, "7:/run/netns/old");
        let address = found[0].address;
        assert_eq!(take_over(&store, &CLOCK, &new, &found).await.unwrap(), [address]);
        assert_eq!(addresses_of(&store, "net.new", None).await.unwrap(), [address]);
        let holder = holder_of(&store, &CLOCK, address).await.unwrap();
        let Holder::Allocated { handle, active, sequence, .. } = holder else { panic!("{holder:?}") };
        assert_eq!(handle.as_deref(), Some("net.new"));
        assert_eq!(active, new.attributes);
        assert_ne!(sequence, found[0].sequence, "a new life");
        // The old sandbox's DEL comes late, and so does another look of the same kind.
        assert_eq!(release_by_handle(&store, &CLOCK, "net.old").await.unwrap(), 0);
        assert!(take_over(&store, &CLOCK, &demand("third", "u1"), &found).await.unwrap().is_empty());
        assert_eq!(addresses_of(&store, "net.new", None).await.unwrap(), [address]);
    }

    #[tokio::test]
    async fn only_the_same_pods_address_is_a_predecessors() {
        let old = demand("old", "u1");
        let (_, block) = held(&old).await;
        let mut others = vec![demand("new", "u2"), demand("new", ""), demand("old", "u1")];
        for key in ["pod", "namespace", NETWORK, INTERFACE, "node"] {
            let mut other = demand("new", "u1");
            other.attributes.insert(key.to_owned(), "other".to_owned());
            others.push(other);
        }
        others.push(Demand { requested: Some("10.0.0.2".parse().unwrap()), ..demand("new", "u1") });
        others.push(Demand { versions: vec![IpVersion::V6], ..demand("new", "u1") });
        for other in others {
            assert_eq!(predecessors([&block], &other), [], "{other:?}");
        }
    }
}
