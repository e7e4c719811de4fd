//! Looking things up without changing them (algorithm §14).

use crate::block;
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::reservations::ReservationSet;
use crate::seen::{self, Seen};
use crate::utilization::{Utilization, utilization};
use api::{Block, Cidr, IpVersion, Pool, Reservation};
use datastore::{Datastore, Kind, Scope};
use futures::future::{try_join, try_join3};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Counts every pool and block. Nothing is written and nothing collected.
///
/// Datastore calls: 3 lists at once (pools, reservations, blocks).
///
/// # Errors
/// [`StoreError`].
pub async fn utilization_of<D: Datastore>(store: &D) -> Result<(Utilization, ReservationSet), StoreError> {
    utilization_of_pools(store, &[]).await
}

/// Counts the pools named, each by its name or CIDR, and their blocks; none named: everything, with the blocks of no pool.
///
/// Datastore calls: 3 lists at once (pools, reservations, blocks).
///
/// # Errors
/// [`StoreError`].
pub async fn utilization_of_pools<D: Datastore>(
    store: &D,
    wanted: &[String],
) -> Result<(Utilization, ReservationSet), StoreError> {
    let all_reservations = Scope::All(Kind::Reservation);
    let (pools, reservations, blocks) = try_join3(
        seen::pools(store),
        seen::list::<Reservation, D>(store, &all_reservations),
        seen::blocks(store),
    )
    .await?;
    let reserved = ReservationSet::new(reservations.iter().map(|seen| &seen.value));
    let named = |pool: &&Pool| {
        wanted.is_empty()
            || wanted.iter().any(|text| *text == pool.name || text.parse::<Cidr>() == Ok(pool.cidr))
    };
    let pools = pools.iter().map(|seen| &seen.value).filter(named);
    let mut counted = utilization(pools, blocks.iter().map(|seen| &seen.value), &reserved);
    if !wanted.is_empty() {
        counted.orphans.clear();
    }
    Ok((counted, reserved))
}

/// What holds an address, as `calicoctl ipam show --ip` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it is free, or in no block.
    Nobody,
    /// It was released and may not be used again yet.
    Cooling,
    /// It is allocated.
    Allocated {
        /// Handle, cut at the first `\r`.
        handle: Option<String>,
        /// Attributes of the active owner.
        active: BTreeMap<String, String>,
        /// Attributes of the alternate owner.
        alternate: BTreeMap<String, String>,
        /// Stamp of the allocation.
        sequence: u64,
    },
}

/// The first enabled pool that has this address.
pub(crate) fn enabled_pool<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    address: IpAddr,
) -> Option<&'a Pool> {
    pools.into_iter().find(|pool| pool.is_enabled() && pool.cidr.contains(address))
}

/// The block that has this address: looked for under its pool's block size, and among all blocks if it is not there, because
/// blocks keep their size when a pool is made anew with another one (quirk Q20).
///
/// Datastore calls: 1 read, or 1 list, or both.
pub(crate) async fn block_of<D: Datastore>(
    store: &D,
    address: IpAddr,
    block_size: Option<u8>,
) -> Result<Option<Seen<Block>>, StoreError> {
    if let Some(cidr) = block_size.and_then(|size| Cidr::containing(address, size))
        && let Some(found) = seen::block(store, cidr).await?
    {
        return Ok(Some(found));
    }
    Ok(seen::blocks(store).await?.into_iter().find(|seen| seen.value.cidr.contains(address)))
}

/// Who holds an address, whether its pool is enabled or even there.
///
/// Datastore calls: 2 reads at once (pools, configuration) and 1 read (block); a list of blocks besides if it lies in no block
/// of its pool's size, and in its place if it lies in no pool.
///
/// # Errors
/// [`StoreError`].
pub async fn holder_of<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    address: IpAddr,
) -> Result<Holder, StoreError> {
    let (pools, config) = try_join(seen::pools(store), seen::config(store)).await?;
    let pool = pools.iter().map(|seen| &seen.value).find(|pool| pool.cidr.contains(address));
    let found = block_of(store, address, pool.map(|pool| pool.block_size)).await?;
    let Some(seen) = found else { return Ok(Holder::Nobody) };
    let mut block = seen.value;
    block::collect(&mut block, config.ip_cooldown_seconds, clock.now());
    let Some(attribute) = block::attribute_of(&block, address) else { return Ok(Holder::Nobody) };
    if attribute.released_at.is_some() {
        return Ok(Holder::Cooling);
    }
    Ok(Holder::Allocated {
        handle: attribute.handle_id.as_deref().map(block::sanitized).map(str::to_owned),
        active: attribute.secondary.clone(),
        alternate: attribute.alternate.clone(),
        sequence: block.cidr.ordinal(address).map_or(0, |ordinal| block::stamp(&block, ordinal)),
    })
}

/// The addresses that a handle holds, of one family or both, in block order. A handle that does not exist holds none, and what
/// cools down is held by nobody. A block that cannot be understood is passed over (algorithm §14).
///
/// Datastore calls: 1 read, and 1 per block, 24 at a time.
///
/// # Errors
/// [`StoreError`].
pub async fn addresses_of<D: Datastore>(
    store: &D,
    handle: &str,
    version: Option<IpVersion>,
) -> Result<Vec<IpAddr>, StoreError> {
    let id = block::sanitized(handle);
    let Some(seen) = seen::handle(store, id).await? else { return Ok(Vec::new()) };
    let wanted = |cidr: &Cidr| version.is_none_or(|version| version == cidr.version());
    let cidrs: Vec<Cidr> = seen.value.blocks.into_keys().filter(wanted).collect();
    Ok(addresses_in(&seen::blocks_of(store, &cidrs).await?, id))
}

/// The addresses that a handle holds in these blocks, in their order.
pub(crate) fn addresses_in(blocks: &[Option<Seen<Block>>], id: &str) -> Vec<IpAddr> {
    blocks
        .iter()
        .flatten()
        .flat_map(|seen| {
            block::held_by(&seen.value, id).filter_map(|ordinal| seen.value.cidr.address(ordinal))
        })
        .collect()
}
