//! ADD without an agent.

use super::{chain, failed, refusal, unread};
use api::attachment::{AddReply, AddRequest, ErrorReply};
use api::{Block, Cidr, IpVersion, Owner, Use};
use datastore::{CommitError, Datastore};
use ipam::agent::{BAD_REQUEST, Demand, INTERFACE, NOT_SERVED, TRY_AGAIN};
use ipam::assign::{AssignError, AssignRequest, Assigned, assign};
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::block::{self, Taken};
use ipam::dual_stack::{BothError, assign_both};
use ipam::plan::{AddressRequest, Handles, Want};
use ipam::pools::SelectError;
use ipam::renewal::{Asker, plan_renewal};
use ipam::{Clock, Seen, StoreError, seen};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Times that what is held already is looked at again because somebody else wrote its block.
const ATTEMPTS: u32 = 20;

/// Assigns what is asked for, or answers what the same attachment holds already.
///
/// Datastore calls, as trips: 1 (the handle), and those of [`assign`] or [`assign_both`] (3 where commits are atomic, 4 on a
/// Kubernetes API, with room in an own block); one particular address: those of [`assign_address`]. What is held already: 1 read
/// of its blocks and 1 commit each.
///
/// # Errors
/// [`ErrorReply`]: code 7 for requests that nobody can serve, 11 for what may be tried again, 100 for the rest.
pub(super) async fn add<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
    request: &AddRequest,
    namespace_labels: BTreeMap<String, String>,
) -> Result<AddReply, ErrorReply> {
    let demand = Demand::pod(request, node, clock.now())?;
    let owner = Owner::host(node);
    if let Some(address) = demand.requested {
        let wanted = AddressRequest {
            intended_use: Some(Use::Workload),
            attributes: demand.attributes.clone(),
            ..AddressRequest::new(owner, address, Some(&demand.handle))
        };
        assign_address(store, clock, &wanted).await.map_err(|refused| address_refused(&refused.error))?;
        return Ok(AddReply { addresses: vec![Cidr::from(address).to_string()] });
    }
    let held = renew_held(store, &demand).await?;
    let mut addresses: BTreeMap<IpVersion, String> =
        held.iter().map(|taken| (IpVersion::of(taken.address), taken.with_block_prefix())).collect();
    let mut missing = Vec::new();
    for version in demand.versions.iter().filter(|version| !addresses.contains_key(version)) {
        let names = if *version == IpVersion::V4 { &request.ipv4_pools } else { &request.ipv6_pools };
        let want =
            Want { count: 1, handle: Some(demand.handle.clone()), attributes: demand.attributes.clone() };
        missing.push(AssignRequest {
            pools: pools(store, names).await?,
            namespace_labels: namespace_labels.clone(),
            ..AssignRequest::new(owner.clone(), *version, Use::Workload, want)
        });
    }
    let gained = match missing.as_slice() {
        [] => Vec::new(),
        [one] => vec![one_family(store, clock, one).await?],
        [first, second, ..] => {
            let both = assign_both(store, clock, first, second).await;
            let both = both.map_err(|refused| both_refused(&refused.error, &refused.to_string()))?;
            vec![both.first, both.second]
        }
    };
    for assigned in gained {
        addresses.extend(
            assigned.taken.iter().map(|taken| (IpVersion::of(taken.address), taken.with_block_prefix())),
        );
    }
    let answer = demand.versions.iter().filter_map(|version| addresses.remove(version));
    Ok(AddReply { addresses: answer.collect() })
}

async fn one_family<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AssignRequest,
) -> Result<Assigned, ErrorReply> {
    let assigned = assign(store, clock, request).await.map_err(|refused| assign_refused(&refused.error))?;
    match assigned.is_enough() {
        true => Ok(assigned),
        false => Err(refusal(
            NOT_SERVED,
            format!("failed to request {} addresses: {}", request.version, assigned.explain),
        )),
    }
}

/// Pools by name or CIDR.
///
/// Datastore calls: 1 list if any is named.
async fn pools<D: Datastore>(store: &D, names: &[String]) -> Result<Vec<Cidr>, ErrorReply> {
    let is_name = |name: &String| name.parse::<Cidr>().is_err();
    let known =
        if names.iter().any(is_name) { seen::pools(store).await.map_err(unread)? } else { Vec::new() };
    names
        .iter()
        .map(|name| {
            let named = known.iter().find(|seen| seen.value.name == *name).map(|seen| seen.value.cidr);
            named.or_else(|| name.parse().ok()).ok_or_else(|| {
                let message =
                    format!("pool {name:?} is neither an IPPool's name nor a CIDR; name one that exists");
                refusal(BAD_REQUEST, message)
            })
        })
        .collect()
}

/// Renews what the attachment holds of the families wanted: it is the answer to the same ADD once more.
async fn renew_held<D: Datastore>(store: &D, demand: &Demand) -> Result<Vec<Taken>, ErrorReply> {
    for _ in 0..ATTEMPTS {
        let Some(handle) = seen::handle(store, &demand.handle).await.map_err(unread)? else {
            return Ok(Vec::new());
        };
        let cidrs: Vec<Cidr> = handle.value.blocks.keys().copied().collect();
        let blocks = seen::blocks_of(store, &cidrs).await.map_err(unread)?;
        let handles = Handles::from([(demand.handle.clone(), handle)]);
        match renewed(store, demand, blocks.into_iter().flatten().collect(), &handles).await {
            Ok(taken) => return Ok(taken),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(failed(&error.into())),
        }
    }
    Err(failed(&StoreError::Contention { what: format!("the renewal of {}", demand.handle) }))
}

async fn renewed<D: Datastore>(
    store: &D,
    demand: &Demand,
    blocks: Vec<Seen<Block>>,
    handles: &Handles,
) -> Result<Vec<Taken>, CommitError> {
    let mut taken: Vec<Taken> = Vec::new();
    for seen in blocks {
        let has = |version: IpVersion| taken.iter().any(|taken| IpVersion::of(taken.address) == version);
        let version = seen.value.cidr.version();
        if !demand.versions.contains(&version) || has(version) {
            continue;
        }
        let Some(address) = held_in(&seen.value, demand) else { continue };
        let asker = Asker { handle: &demand.handle, attributes: &demand.attributes };
        let plan = plan_renewal(&seen, &[address], asker, handles);
        if plan.writes.is_empty() {
            continue;
        }
        store.commit(&[], &plan.writes).await?;
        taken.extend(plan.taken.into_iter().flatten());
    }
    Ok(taken)
}

/// An address of the block that the attachment holds; what names no interface is anybody's of the container.
fn held_in(found: &Block, demand: &Demand) -> Option<IpAddr> {
    let interface = demand.attributes.get(INTERFACE);
    block::held_by(found, &demand.handle).filter_map(|ordinal| found.cidr.address(ordinal)).find(|address| {
        let held = block::attribute_of(found, *address).and_then(|held| held.secondary.get(INTERFACE));
        held.is_none() || held == interface
    })
}

fn select_code(error: &SelectError) -> u32 {
    match error {
        SelectError::NoSuchPool { .. } | SelectError::WrongFamily { .. } => BAD_REQUEST,
        _ => NOT_SERVED,
    }
}

fn assign_refused(error: &AssignError) -> ErrorReply {
    let code = match error {
        AssignError::Pools(error) => select_code(error),
        AssignError::NoSuchNode { .. } => TRY_AGAIN,
        AssignError::Interrupted { source, .. } => failed(source).code,
        AssignError::HostReserved(_) | AssignError::StrictAffinityRequired { .. } => NOT_SERVED,
    };
    refusal(code, chain(error))
}

fn both_refused(error: &BothError, told: &str) -> ErrorReply {
    match error {
        BothError::Short { .. } => refusal(NOT_SERVED, told),
        BothError::Failed { source, .. } => ErrorReply { message: chain(error), ..assign_refused(source) },
        BothError::Left { source, .. } => ErrorReply { message: chain(error), ..failed(source) },
    }
}

fn address_refused(error: &AssignAddressError) -> ErrorReply {
    let code = match error {
        AssignAddressError::Store(error) => failed(error).code,
        _ => NOT_SERVED,
    };
    refusal(code, chain(error))
}
