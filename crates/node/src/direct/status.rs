//! STATUS without an agent: whether the pools could serve a pod of this node.

use super::{refusal, unread};
use api::attachment::{ErrorReply, StatusRequest};
use api::{IpVersion, Node, Owner, Pool};
use datastore::{Datastore, Key};
use ipam::ReservationSet;
use ipam::servable::{Room, Surroundings, hindrance};
use ipam::{block, seen};

/// CNI error code of a plugin that cannot serve now (STATUS).
pub(super) const NOT_AVAILABLE: u32 = 50;

/// Looks whether such ADDs can be served.
///
/// Datastore calls: 5 reads at once (pools, blocks, reservations, configuration, node).
///
/// # Errors
/// Code 50 with the reason.
pub(super) async fn status<D: Datastore>(
    store: &D,
    node: &str,
    request: &StatusRequest,
) -> Result<(), ErrorReply> {
    let key = Key::Node(node.to_owned());
    let (pools, blocks, reservations, config, record) = futures::join!(
        seen::pools(store),
        seen::blocks(store),
        seen::reservations(store),
        seen::config(store),
        seen::get::<Node, D>(store, &key)
    );
    let (pools, blocks) = (pools.map_err(unread)?, blocks.map_err(unread)?);
    let (reservations, config) = (reservations.map_err(unread)?, config.map_err(unread)?);
    let record = record.map_err(unread)?;
    let reserved = ReservationSet::new(reservations.iter().map(|seen| &seen.value));
    let pools: Vec<Pool> = pools.into_iter().map(|seen| seen.value).collect();
    let room = |found: &api::Block| Room {
        cidr: found.cidr,
        owner: found.affinity.clone(),
        free: block::free_count(found, &reserved),
    };
    let blocks: Vec<Room> = blocks.iter().map(|seen| room(&seen.value)).collect();
    let around = Surroundings {
        owner: &Owner::host(node),
        labels: record.as_ref().map(|seen| &seen.value.labels),
        pools: &pools,
        blocks: &blocks,
        strict_affinity: config.strict_affinity,
    };
    let wanted = [
        (request.ipv4, IpVersion::V4, &request.ipv4_pools),
        (request.ipv6, IpVersion::V6, &request.ipv6_pools),
    ];
    let mut wanted = wanted.into_iter().filter(|(count, _, _)| *count > 0);
    match wanted.find_map(|(_, version, pools)| hindrance(&around, version, pools)) {
        Some(reason) => Err(refusal(NOT_AVAILABLE, reason)),
        None => Ok(()),
    }
}
