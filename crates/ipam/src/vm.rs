//! Addresses of virtual machines: they outlive the pods that run the machine and follow it in a live migration (algorithm §15).
//!
//! All pods of one machine ask by one handle with a cap of one address per IP version. The pod that runs the machine is the
//! active owner of the address, the pod that it migrates to the alternate one:
//!
//! ```text
//!  first ADD: assign, active = source        target ADD: alternate = target
//!  migration done: promote, active = target, alternate = source
//!  source DEL: alternate = nobody            last DEL of a machine that is deleted: release, its owner unchanged
//! ```

use crate::block::{self, Release};
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::owner_attributes::{
    Change, Expected, OwnerUpdate, PodName, SetOwnerAttributesError, SetOwnerError, set_owner_attributes,
};
use crate::query::{self, Holder};
use crate::release::{self, ReleaseFailure};
use crate::seen;
use api::{Cidr, IpVersion};
use datastore::Datastore;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How often an owner is changed anew after somebody else changed it, before giving up.
pub const SWAP_ATTEMPTS: usize = 5;

/// Length that a machine's handle has at most.
const MAX_HANDLE: usize = 128;

/// The handle of a virtual machine: `<network>.vmi.<namespace>.<name>`, the same for all its pods (data model §7.1).
///
/// `None` if that is longer than 128 characters: Calico's rule for such names fails in Calico itself, so that there is
/// nothing to be equal to (data model §15), and the machine's pods then have handles of their own.
pub fn handle(network: &str, namespace: &str, machine: &str) -> Option<String> {
    let handle = format!("{network}.vmi.{namespace}.{machine}");
    (handle.len() <= MAX_HANDLE).then_some(handle)
}

/// Why an address did not follow its machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmError {
    /// A migration needs an address to migrate.
    #[error("virtual machine handle {handle} holds no address: start the machine before it migrates")]
    NoAddress {
        /// The handle.
        handle: String,
    },
    /// Nobody was announced as the target of a migration.
    #[error("address {address} of {handle} has no alternate owner: ADD the migration target first")]
    AlternateOwnerEmpty {
        /// The address.
        address: IpAddr,
        /// The handle.
        handle: String,
    },
    /// Another pod was announced.
    #[error(
        "the alternate owner of {address} is {found}, not {wanted}: promote that pod, or ADD this one first"
    )]
    AlternateOwnerMismatch {
        /// The address.
        address: IpAddr,
        /// The pod to be promoted.
        wanted: PodName,
        /// The pod announced.
        found: PodName,
    },
    /// Others changed the owners at every attempt.
    #[error("the owners of {address} changed at each of {SWAP_ATTEMPTS} attempts: try again")]
    Contended {
        /// The address.
        address: IpAddr,
    },
    /// Its owners cannot be changed.
    #[error(transparent)]
    Owner(#[from] SetOwnerAttributesError),
}

impl From<StoreError> for VmError {
    fn from(error: StoreError) -> Self {
        Self::Owner(error.into())
    }
}

/// Hands a machine's addresses to the pod that starts to run it, and returns them; none: assign new ones with a cap of one.
///
/// Datastore calls: 1 read and 1 per block of the handle, and those of [`set_owner_attributes`] per address.
///
/// # Errors
/// See [`VmError`].
///
/// # Cancellation
/// May leave some of the addresses handed over; the call may be repeated.
pub async fn reuse<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    version: Option<IpVersion>,
    owner: &BTreeMap<String, String>,
) -> Result<Vec<IpAddr>, VmError> {
    let held = query::addresses_of(store, handle, version).await?;
    let update = OwnerUpdate { active: Change::Set(owner.clone()), ..OwnerUpdate::default() };
    for address in &held {
        set_owner_attributes(store, clock, *address, handle, &update).await?;
    }
    Ok(held)
}

/// Announces the pod that a machine migrates to as alternate owner of its addresses, and returns them.
///
/// Datastore calls: as [`reuse`].
///
/// # Errors
/// [`VmError::NoAddress`] if the machine has none, and see [`VmError`].
///
/// # Cancellation
/// May leave it announced for some of the addresses; the call may be repeated.
pub async fn announce_target<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    version: Option<IpVersion>,
    target: &BTreeMap<String, String>,
) -> Result<Vec<IpAddr>, VmError> {
    let held = query::addresses_of(store, handle, version).await?;
    if held.is_empty() {
        return Err(VmError::NoAddress { handle: handle.to_owned() });
    }
    let update = OwnerUpdate { alternate: Change::Set(target.clone()), ..OwnerUpdate::default() };
    for address in &held {
        set_owner_attributes(store, clock, *address, handle, &update).await?;
    }
    Ok(held)
}

/// Makes `target` the active owner of an address once the machine runs there; who was active becomes the alternate owner.
///
/// Nothing is written if it is active already.
///
/// Datastore calls: 3 reads, and those of [`set_owner_attributes`]; as many more after each change by others, up to
/// [`SWAP_ATTEMPTS`] times.
///
/// # Errors
/// See [`VmError`].
///
/// # Cancellation
/// The owners are swapped or not swapped.
pub async fn promote<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    address: IpAddr,
    handle: &str,
    target: &PodName,
) -> Result<(), VmError> {
    for _ in 0..SWAP_ATTEMPTS {
        let (active, alternate) = owners(store, clock, address, handle).await?;
        if target.owns(&active) {
            return Ok(());
        }
        if alternate.is_empty() {
            return Err(VmError::AlternateOwnerEmpty { address, handle: handle.to_owned() });
        }
        if !target.owns(&alternate) {
            let found = PodName::of(&alternate).unwrap_or_default();
            return Err(VmError::AlternateOwnerMismatch { address, wanted: target.clone(), found });
        }
        let update = OwnerUpdate {
            expected_active: expected(&active),
            expected_alternate: expected(&alternate),
            alternate: if active.is_empty() { Change::Clear } else { Change::Set(active) },
            active: Change::Set(alternate),
        };
        if settled(set_owner_attributes(store, clock, address, handle, &update).await)? {
            return Ok(());
        }
    }
    Err(VmError::Contended { address })
}

/// Takes a pod that goes away off the addresses of its machine, and releases them if `machine_deleted` and no owner is left.
///
/// Returns how many addresses were released. A handle that holds nothing is success: a DEL may come twice.
///
/// Addresses of a deleted machine name a pod until they are released, so that the collector finds what a client leaves that
/// dies on the way: the last pod is not taken off, and one that is active makes room for the other.
///
/// Datastore calls: 1 read and 1 per block of the handle; per address 3 reads, as many again if the machine is deleted, and,
/// where the pod is an owner of it and not the last, those of [`set_owner_attributes`]; and those of
/// [`release::release_addresses`] where it releases.
///
/// # Errors
/// See [`VmError`].
///
/// # Cancellation
/// May leave the pod taken off some addresses only; the call may be repeated.
pub async fn forget<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    pod: &PodName,
    machine_deleted: bool,
) -> Result<usize, VmError> {
    // As they stood before anybody looked for owners: who is handed an address after that has renewed it, and keeps it.
    let held = held_by(store, handle).await?;
    let mut others = !machine_deleted;
    for release in held.iter().filter(|_| machine_deleted) {
        match owners(store, clock, release.address, handle).await {
            Err(VmError::NoAddress { .. }) => {}
            found => others |= <[_; 2]>::from(found?).iter().any(|side| !side.is_empty() && !pod.owns(side)),
        }
    }
    if !others {
        return give_back(store, clock, &held).await;
    }
    let mut owned = false;
    for release in &held {
        owned |= forget_one(store, clock, release.address, handle, pod, machine_deleted).await?;
    }
    if machine_deleted && !owned {
        return give_back(store, clock, &held).await;
    }
    Ok(0)
}

/// Gives back what still is as it was seen, and says how many addresses that are.
async fn give_back<D: Datastore>(store: &D, clock: &dyn Clock, held: &[Release]) -> Result<usize, VmError> {
    if held.is_empty() {
        return Ok(0);
    }
    let outcome = release::release_addresses(store, clock, held).await?;
    for (_, failure) in outcome.failed {
        match failure {
            ReleaseFailure::Refused(_) => {}
            ReleaseFailure::Store(error) => return Err(error.into()),
        }
    }
    Ok(outcome.released.len())
}

/// What a handle holds, each address with its stamp.
async fn held_by<D: Datastore>(store: &D, handle: &str) -> Result<Vec<Release>, StoreError> {
    let id = block::sanitized(handle);
    let Some(found) = seen::handle(store, id).await? else { return Ok(Vec::new()) };
    let cidrs: Vec<Cidr> = found.value.blocks.into_keys().collect();
    let blocks = seen::blocks_of(store, &cidrs).await?;
    let held = blocks.iter().flatten().flat_map(|seen| {
        block::held_by(&seen.value, id).filter_map(|ordinal| {
            Some(Release {
                address: seen.value.cidr.address(ordinal)?,
                handle: Some(id.to_owned()),
                sequence: Some(block::stamp(&seen.value, ordinal)),
            })
        })
    });
    Ok(held.collect())
}

/// Takes a pod off one address. Whether an owner is left.
async fn forget_one<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    address: IpAddr,
    handle: &str,
    pod: &PodName,
    machine_deleted: bool,
) -> Result<bool, VmError> {
    for _ in 0..SWAP_ATTEMPTS {
        let (active, alternate) = match owners(store, clock, address, handle).await {
            // Released since it was looked up: nobody owns it as this machine's.
            Err(VmError::NoAddress { .. }) => return Ok(false),
            found => found?,
        };
        let (is_active, is_alternate) = (pod.owns(&active), pod.owns(&alternate));
        if !is_active && !is_alternate {
            return Ok(!active.is_empty() || !alternate.is_empty());
        }
        let clear = |it_is: bool| if it_is { Change::Clear } else { Change::Keep };
        let makes_room = machine_deleted && is_active && !is_alternate && !alternate.is_empty();
        let update = if makes_room {
            OwnerUpdate {
                expected_active: Expected::Owner(pod.clone()),
                expected_alternate: expected(&alternate),
                active: Change::Set(alternate.clone()),
                alternate: Change::Clear,
            }
        } else {
            OwnerUpdate {
                active: clear(is_active),
                alternate: clear(is_alternate),
                expected_active: Expected::Owner(pod.clone()),
                expected_alternate: Expected::Owner(pod.clone()),
            }
        };
        let outcome = set_owner_attributes(store, clock, address, handle, &update).await;
        if let Err(SetOwnerAttributesError::Refused(
            SetOwnerError::NotAllocated { .. } | SetOwnerError::OtherHandle { .. },
        )) = outcome
        {
            return Ok(false);
        }
        // A promotion that came in between moved the pod to the other side: look again.
        if settled(outcome)? {
            return Ok((!is_active && !active.is_empty()) || (!is_alternate && !alternate.is_empty()));
        }
    }
    Err(VmError::Contended { address })
}

/// The active and the alternate owner of an address that the handle holds.
async fn owners<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    address: IpAddr,
    handle: &str,
) -> Result<(BTreeMap<String, String>, BTreeMap<String, String>), VmError> {
    match query::holder_of(store, clock, address).await? {
        Holder::Allocated { handle: Some(holder), active, alternate, .. }
            if holder == crate::block::sanitized(handle) =>
        {
            Ok((active, alternate))
        }
        _ => Err(VmError::NoAddress { handle: handle.to_owned() }),
    }
}

/// The precondition that a side is still whose these attributes say; attributes that name no pod cannot be asked for.
fn expected(attributes: &BTreeMap<String, String>) -> Expected {
    match PodName::of(attributes) {
        Some(pod) => Expected::Owner(pod),
        None if attributes.is_empty() => Expected::Empty,
        None => Expected::Anything,
    }
}

/// Whether an update was made; false if an owner was not the expected one any more.
fn settled(outcome: Result<(), SetOwnerAttributesError>) -> Result<bool, VmError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(SetOwnerAttributesError::Refused(SetOwnerError::Unexpected { .. })) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
