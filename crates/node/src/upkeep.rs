//! CNI's CHECK and GC over the datastore: whether an attachment still holds what it was answered, and giving back what no
//! attachment holds any more. What is decided is decided in [`ipam::attachments`].

use api::Block;
use api::attachment::{CheckRequest, ErrorReply, GcReply, GcRequest};
use datastore::{Datastore, Kind, Scope};
use ipam::agent::{BAD_REQUEST, NOT_SERVED, TRY_AGAIN};
use ipam::attachments::{difference, leftovers};
use ipam::block::Release;
use ipam::release::{ReleaseFailure, release_addresses};
use ipam::{Clock, StoreError, query, seen};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Plugin error code of an attachment that is not as it was left (CHECK).
pub(crate) const DIFFERS: u32 = 101;

fn failed(error: &StoreError) -> ErrorReply {
    let code = if error.is_retryable() { TRY_AGAIN } else { NOT_SERVED };
    ErrorReply { code, message: error.to_string(), details: String::new() }
}

/// Compares what an ADD answered with what the datastore says.
///
/// Datastore calls: those of [`query::holder_of`] for each address.
///
/// # Errors
/// [`ErrorReply`]: code [`DIFFERS`] naming every difference, 11 where the datastore does not answer.
pub(crate) async fn check<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &CheckRequest,
) -> Result<(), ErrorReply> {
    let mut differences = Vec::new();
    for text in &request.addresses {
        let address: IpAddr =
            text.split_once('/').map_or(text.as_str(), |(ip, _)| ip).parse().map_err(|_| ErrorReply {
                code: BAD_REQUEST,
                message: format!("{text:?} in the earlier result is no address"),
                details: String::new(),
            })?;
        let holder = query::holder_of(store, clock, address).await.map_err(|error| failed(&error))?;
        if let Some(difference) = difference(&holder, &request.attachment) {
            differences.push(format!("address {address}: {difference}"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let attachment = &request.attachment;
    let message = format!(
        "{} of container {} is not as it was added: {}; delete it and add it again",
        attachment.interface,
        attachment.container,
        differences.join("; ")
    );
    Err(ErrorReply { code: DIFFERS, message, details: String::new() })
}

/// Gives back what `request.network` holds on `node` for attachments that are not valid.
///
/// Each address goes only if it is still what was seen, so that an attachment that is made meanwhile keeps its own. An
/// address whose ADD recorded its namespace goes only when the caller has found that gone; the others are asked for in the answer.
///
/// Datastore calls: 1 list (blocks), and those of [`release_addresses`].
///
/// # Errors
/// [`ErrorReply`] after everything that could be released was: code 11 where the datastore does not answer, 100 otherwise.
pub(crate) async fn gc<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
    request: &GcRequest,
) -> Result<GcReply, ErrorReply> {
    let blocks = seen::list::<Block, D>(store, &Scope::All(Kind::Block)).await;
    let blocks = blocks.map_err(|error| failed(&error.into()))?;
    let valid = request.valid.iter().cloned().collect();
    let found = leftovers(blocks.iter().map(|seen| &seen.value), node, &request.network, &valid);
    let (mut reply, mut releases, mut asked) = (GcReply::default(), Vec::new(), BTreeSet::new());
    for leftover in found {
        match leftover.sandbox {
            Some(sandbox) if !request.gone.contains(&sandbox) => drop(asked.insert(sandbox)),
            _ => releases.push(leftover.release),
        }
    }
    reply.asked = asked.into_iter().collect();
    if releases.is_empty() {
        return Ok(reply);
    }
    let outcome = release_addresses(store, clock, &releases).await.map_err(|error| failed(&error))?;
    reply.released = outcome.released;
    let changed = |failure: &ReleaseFailure| matches!(failure, ReleaseFailure::Refused(_));
    // One address of a block that came to be another's keeps the rest of it: those are tried one by one.
    for (cidr, _) in outcome.failed.iter().filter(|(_, failure)| changed(failure)) {
        for release in releases.iter().filter(|release| cidr.contains(release.address)) {
            release_one(store, clock, release, &mut reply).await?;
        }
    }
    match outcome.failed.iter().find(|(_, failure)| !changed(failure)) {
        None => Ok(reply),
        Some((_, ReleaseFailure::Store(error))) => Err(failed(error)),
        Some((cidr, failure)) => Err(ErrorReply {
            code: NOT_SERVED,
            message: format!("addresses of block {cidr} could not be given back: {failure}"),
            details: String::new(),
        }),
    }
}

/// One of several; what it became meanwhile is not touched, and that is no failure.
async fn release_one<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    release: &Release,
    reply: &mut GcReply,
) -> Result<(), ErrorReply> {
    let alone = std::slice::from_ref(release);
    let outcome = release_addresses(store, clock, alone).await.map_err(|error| failed(&error))?;
    reply.released.extend(outcome.released);
    match outcome.failed.into_iter().next() {
        Some((_, ReleaseFailure::Store(error))) => Err(failed(&error)),
        Some((_, ReleaseFailure::Refused(_))) | None => Ok(()),
    }
}
