//! DEL without an agent.

use super::{failed, refusal, unread};
use api::attachment::{DelRequest, ErrorReply};
use api::{Block, Cidr};
use datastore::Datastore;
use ipam::agent::{INTERFACE, Surrender, TRY_AGAIN};
use ipam::block::{self, Release};
use ipam::release::{ReleaseFailure, release_addresses, release_by_handle, release_by_handle_in};
use ipam::{Clock, Seen, seen};
use std::net::IpAddr;

/// Gives back what an attachment holds, and what the handle of old releases does.
///
/// `answered` are addresses that the ADD answered, where they are known: their blocks are read beside the handle.
///
/// Datastore calls, as trips: 1 (both handles and the blocks believed in), 1 if the belief is wrong, and those of
/// [`release_by_handle_in`] with the right blocks (2 where commits are atomic, 3 on a Kubernetes API). Where another interface of the
/// container holds something by the same handle: those of [`release_addresses`] instead.
///
/// # Errors
/// [`ErrorReply`]: code 11 for what may be tried again. What was released before stays released.
pub(super) async fn del<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &DelRequest,
    answered: &[String],
) -> Result<(), ErrorReply> {
    let Surrender { handle, interface, legacy_handle } = Surrender::pod(request)?;
    let guess: Vec<Cidr> = answered.iter().filter_map(|text| believed(text)).collect();
    let legacy = async {
        match &legacy_handle {
            Some(legacy) => seen::handle(store, legacy).await.map(|found| found.is_some()),
            None => Ok(false),
        }
    };
    let (found, legacy_there, early) =
        futures::join!(seen::handle(store, &handle), legacy, seen::blocks_of(store, &guess));
    if let Some(found) = found.map_err(unread)? {
        let cidrs: Vec<Cidr> = found.value.blocks.keys().copied().collect();
        let early: Vec<Seen<Block>> = early.unwrap_or_default().into_iter().flatten().collect();
        let known = cidrs.iter().all(|cidr| early.iter().any(|seen| seen.value.cidr == *cidr));
        let blocks = match known {
            true => early,
            false => seen::blocks_of(store, &cidrs).await.map_err(unread)?.into_iter().flatten().collect(),
        };
        release(store, clock, &handle, interface.as_deref(), &cidrs, &blocks).await?;
    }
    if let (true, Some(legacy)) = (legacy_there.map_err(unread)?, &legacy_handle) {
        release_by_handle(store, clock, legacy).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The block that an address of a result is of: by its prefix, or of the usual size where it is told alone.
fn believed(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    // What the main plugin answers is a single address of a block of the usual size.
    let (single, usual) = if address.is_ipv4() { (32, 26) } else { (128, 122) };
    Cidr::containing(address, if prefix == single { usual } else { prefix })
}

async fn release<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    interface: Option<&str>,
    cidrs: &[Cidr],
    blocks: &[Seen<Block>],
) -> Result<(), ErrorReply> {
    let (mut ours, mut others) = (Vec::new(), false);
    for seen in blocks {
        let held = block::held_by(&seen.value, handle);
        for (ordinal, address) in
            held.filter_map(|ordinal| Some((ordinal, seen.value.cidr.address(ordinal)?)))
        {
            let attribute = block::attribute_of(&seen.value, address);
            let of = attribute.and_then(|held| held.secondary.get(INTERFACE)).map(String::as_str);
            if of.is_some() && of != interface {
                others = true;
            } else {
                ours.push(Release {
                    address,
                    handle: Some(handle.to_owned()),
                    sequence: Some(block::stamp(&seen.value, ordinal)),
                });
            }
        }
    }
    if !others {
        let released = release_by_handle_in(store, clock, handle, cidrs).await;
        return released.map(drop).map_err(|failure| failed(&failure.error));
    }
    if ours.is_empty() {
        return Ok(());
    }
    let outcome = release_addresses(store, clock, &ours).await.map_err(|error| failed(&error))?;
    match outcome.failed.into_iter().next() {
        None => Ok(()),
        Some((_, ReleaseFailure::Store(error))) => Err(failed(&error)),
        // Somebody changed it in between: the next DEL looks again.
        Some((cidr, ReleaseFailure::Refused(error))) => {
            Err(refusal(TRY_AGAIN, format!("block {cidr} changed meanwhile: {error}; try again")))
        }
    }
}
