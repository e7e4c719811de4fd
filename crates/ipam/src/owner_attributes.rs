//! Who an allocated address is said to belong to: the active and the alternate owner (algorithm §2.10, §15).
//!
//! Both sides are maps of attributes; `pod` and `namespace` identify a pod. The alternate side is the target of a live
//! migration of a virtual machine ([`crate::vm`]).

use crate::block;
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::query;
use crate::renewal;
use crate::seen;
use api::{Attribute, Block, Cidr, Ordinal};
use datastore::{CommitError, Datastore, Record, Write};
use futures::future::try_join;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A pod as owner attributes name it. Both parts empty: nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// `namespace`.
    pub namespace: String,
    /// `pod`.
    pub name: String,
}

impl PodName {
    /// The pod that these attributes name; `None` if they name none.
    pub fn of(attributes: &BTreeMap<String, String>) -> Option<Self> {
        let (namespace, name) = (attributes.get("namespace")?.clone(), attributes.get("pod")?.clone());
        (!namespace.is_empty() || !name.is_empty()).then_some(Self { namespace, name })
    }

    /// Whether attributes say that this is the owner; nobody is the owner of empty ones only.
    pub fn owns(&self, attributes: &BTreeMap<String, String>) -> bool {
        if self.namespace.is_empty() && self.name.is_empty() {
            return attributes.is_empty();
        }
        attributes.get("pod") == Some(&self.name) && attributes.get("namespace") == Some(&self.namespace)
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() && self.name.is_empty() {
            return f.write_str("nobody");
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which of the two owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who uses the address: `secondary` on the wire.
    Active,
    /// Who is to take it over: `alternateOwnerAttrs` on the wire.
    Alternate,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Alternate => "alternate",
        })
    }
}

/// What becomes of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// It stays.
    #[default]
    Keep,
    /// It becomes empty.
    Clear,
    /// It becomes this.
    Set(BTreeMap<String, String>),
}

/// What one side must be for the update to be made. Asked only of a side that the update changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    #[default]
    Anything,
    /// No attributes at all.
    Empty,
    /// This pod.
    Owner(PodName),
}

/// An update of both sides, all or nothing. The default one changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerUpdate {
    /// What becomes of the active side.
    pub active: Change,
    /// What becomes of the alternate side.
    pub alternate: Change,
    /// What the active side must be.
    pub expected_active: Expected,
    /// What the alternate side must be.
    pub expected_alternate: Expected,
}

/// Why owners were not changed in a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetOwnerError {
    /// The address is free, or none of this block.
    #[error("address {address} is not assigned: assign it first")]
    NotAllocated {
        /// The address.
        address: IpAddr,
    },
    /// Another handle holds it, or none; an address in cooldown is held by none.
    #[error("address {address} is held by {}, not by {wanted}; look again", .found.as_deref().unwrap_or("no handle"))]
    OtherHandle {
        /// The address.
        address: IpAddr,
        /// Handle asked for.
        wanted: String,
        /// Handle that holds it.
        found: Option<String>,
    },
    /// A side is not what it was expected to be.
    #[error("the {side} owner of {address} is {found}, not {expected}; read it again and decide again")]
    Unexpected {
        /// The address.
        address: IpAddr,
        /// The side.
        side: Side,
        /// Owner expected; both parts empty for nobody.
        expected: PodName,
        /// Owner found, or nobody.
        found: PodName,
    },
}

impl OwnerUpdate {
    /// Whether somebody has the address from now on, or will have it.
    fn names_somebody(&self) -> bool {
        matches!(self.active, Change::Set(_)) || matches!(self.alternate, Change::Set(_))
    }
}

fn changed(before: &BTreeMap<String, String>, change: &Change) -> BTreeMap<String, String> {
    match change {
        Change::Keep => before.clone(),
        Change::Clear => BTreeMap::new(),
        Change::Set(attributes) => attributes.clone(),
    }
}

fn expect(
    address: IpAddr,
    side: Side,
    change: &Change,
    expected: &Expected,
    found: &BTreeMap<String, String>,
) -> Result<(), SetOwnerError> {
    let wanted = match expected {
        Expected::Empty => PodName::default(),
        Expected::Owner(pod) => pod.clone(),
        Expected::Anything => return Ok(()),
    };
    if *change == Change::Keep || wanted.owns(found) {
        return Ok(());
    }
    let found = PodName::of(found).unwrap_or_default();
    Err(SetOwnerError::Unexpected { address, side, expected: wanted, found })
}

/// The attribute of `address` as `update` makes it, if its preconditions hold.
fn updated(
    block: &Block,
    address: IpAddr,
    handle: &str,
    update: &OwnerUpdate,
) -> Result<(Ordinal, Attribute), SetOwnerError> {
    let ordinal = block.cidr.ordinal(address).ok_or(SetOwnerError::NotAllocated { address })?;
    let found = block::attribute_of(block, address).ok_or(SetOwnerError::NotAllocated { address })?;
    let wanted = block::sanitized(handle);
    let holder = found.handle_id.as_deref().filter(|_| found.released_at.is_none()).map(block::sanitized);
    if holder != Some(wanted) {
        let found = holder.map(str::to_owned);
        return Err(SetOwnerError::OtherHandle { address, wanted: wanted.to_owned(), found });
    }
    expect(address, Side::Active, &update.active, &update.expected_active, &found.secondary)?;
    expect(address, Side::Alternate, &update.alternate, &update.expected_alternate, &found.alternate)?;
    let after = Attribute {
        secondary: changed(&found.secondary, &update.active),
        alternate: changed(&found.alternate, &update.alternate),
        ..found.clone()
    };
    Ok((ordinal, after))
}

/// Changes the owners of one address. Other addresses that were assigned together with it keep theirs (quirk Q2).
///
/// # Errors
/// See [`SetOwnerError`]; the block is then unchanged.
pub fn set_owner(
    block: &mut Block,
    address: IpAddr,
    handle: &str,
    update: &OwnerUpdate,
) -> Result<(), SetOwnerError> {
    let (ordinal, after) = updated(block, address, handle, update)?;
    let slot = usize::try_from(ordinal.0).ok();
    let Some(index) = slot.and_then(|slot| block.allocations.get(slot).copied().flatten()) else {
        return Err(SetOwnerError::NotAllocated { address });
    };
    let shared = block.allocations.iter().filter(|allocation| **allocation == Some(index)).count() > 1;
    if shared && block.attributes.get(index).is_some_and(|before| **before != after) {
        // Others that changed hands with it may refer to the same already.
        let same = block.attributes.iter().position(|attribute| **attribute == after);
        let split = same.unwrap_or(block.attributes.len());
        if same.is_none() {
            Arc::make_mut(&mut block.attributes).push(after.into());
        }
        if let Some(allocation) = slot.and_then(|slot| Arc::make_mut(&mut block.allocations).get_mut(slot)) {
            *allocation = Some(split);
        }
    } else if let Some(attribute) = Arc::make_mut(&mut block.attributes).get_mut(index) {
        *attribute = after.into();
    }
    Ok(())
}

/// Why owners were not changed in the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetOwnerAttributesError {
    /// It is not what the caller takes it for.
    #[error(transparent)]
    Refused(#[from] SetOwnerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes the owners of one address that `handle` holds, if the preconditions of `update` hold. Its pool may be disabled or
/// gone: a machine that runs must be able to move and to end.
///
/// An update that changes nothing writes the block all the same, so that whoever reads it next sees a new revision. One that
/// names an owner renews the address: a collector that has judged by the earlier owners does not free it (see [`renewal`]).
///
/// Datastore calls: 2 reads at once (pools, configuration), 1 read (block) and 1 commit; a list of blocks more where the block is not of its
/// pool's size; 1 read and 1 commit more after each conflict or lost answer.
///
/// # Errors
/// See [`SetOwnerAttributesError`]. A commit whose answer was lost counts as made if the address then is as it was to become.
///
/// # Cancellation
/// The update is made or not made.
pub async fn set_owner_attributes<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    address: IpAddr,
    handle: &str,
    update: &OwnerUpdate,
) -> Result<(), SetOwnerAttributesError> {
    let (pools, config) =
        try_join(seen::pools(store), seen::config(store)).await.map_err(StoreError::from)?;
    let cooldown = config.ip_cooldown_seconds;
    let pool = pools.iter().map(|seen| &seen.value).find(|pool| pool.cidr.contains(address));
    let found = query::block_of(store, address, pool.map(|pool| pool.block_size)).await?;
    let Some(mut found) = found else { return Err(SetOwnerError::NotAllocated { address }.into()) };
    let cidr: Cidr = found.value.cidr;
    let mut lost: Option<(Attribute, u64)> = None;
    for _ in 0..ATTEMPTS {
        let stamp_of = |block: &Block| cidr.ordinal(address).map_or(0, |at| block::stamp(block, at));
        if let Some((wanted, incarnation)) = &lost
            && *incarnation == stamp_of(&found.value)
            && block::attribute_of(&found.value, address) == Some(wanted)
        {
            return Ok(());
        }
        let mut changed = found.value.clone();
        block::collect(&mut changed, cooldown, clock.now());
        set_owner(&mut changed, address, handle, update)?;
        if update.names_somebody() {
            renewal::restamp(&mut changed, address, handle);
        }
        let after = block::attribute_of(&changed, address).cloned();
        let stamp = stamp_of(&changed);
        block::advance(&mut changed);
        match store.commit(&[], &[Write::Update(Record::Block(changed), found.version)]).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Unknown { .. }) => lost = after.map(|after| (after, stamp)),
            Err(error) => return Err(StoreError::from(error).into()),
        }
        found = seen::block(store, cidr)
            .await
            .map_err(StoreError::from)?
            .ok_or(SetOwnerError::NotAllocated { address })?;
    }
    Err(StoreError::Contention { what: format!("the owners of {address}") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Take, new_block, take};
    use api::Owner;
    use std::collections::BTreeSet;

    fn pod(name: &str) -> PodName {
        PodName { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn attributes(name: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("pod".to_owned(), name.to_owned()), ("namespace".to_owned(), "shop".to_owned())])
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// A block whose first two addresses were assigned together.
    fn together() -> Block {
        let mut block =
            new_block("10.0.0.0/30".parse().unwrap(), &Owner::host("n"), jiff::Timestamp::UNIX_EPOCH);
        let request = Take {
            count: 2,
            handle: Some("h\rjunk"),
            attributes: &attributes("a"),
            reserved: &crate::ReservationSet::default(),
            avoid: &BTreeSet::new(),
            only_owner: None,
        };
        assert_eq!(take(&mut block, &request).unwrap().len(), 2);
        block
    }

    fn to_b() -> OwnerUpdate {
        OwnerUpdate { active: Change::Set(attributes("b")), ..OwnerUpdate::default() }
    }

    #[test]
    fn one_address_changes_hands_and_the_other_stays() {
        let mut block = together();
        set_owner(&mut block, address(0), "h", &to_b()).unwrap();
        assert_eq!(block::attribute_of(&block, address(0)).unwrap().secondary, attributes("b"));
        assert_eq!(block::attribute_of(&block, address(1)).unwrap().secondary, attributes("a"));
        assert_eq!(block.attributes.len(), 2);
        set_owner(&mut block, address(1), "h", &to_b()).unwrap();
        assert_eq!(block.attributes.len(), 2, "nobody else refers to it: changed in place");
        assert_eq!(block::fault(&block), None);
    }

    #[test]
    fn an_update_that_changes_nothing_splits_nothing() {
        let mut block = together();
        let before = block.clone();
        set_owner(&mut block, address(0), "h", &OwnerUpdate::default()).unwrap();
        assert_eq!(block, before);
    }

    #[test]
    fn a_failed_precondition_of_either_side_changes_neither() {
        let mut block = together();
        let before = block.clone();
        let update = OwnerUpdate {
            alternate: Change::Set(attributes("c")),
            expected_active: Expected::Owner(pod("a")),
            expected_alternate: Expected::Owner(pod("x")),
            ..to_b()
        };
        assert_eq!(
            set_owner(&mut block, address(0), "h", &update),
            Err(SetOwnerError::Unexpected {
                address: address(0),
                side: Side::Alternate,
                expected: pod("x"),
                found: PodName::default()
            })
        );
        assert_eq!(block, before);
        let update = OwnerUpdate { expected_alternate: Expected::Empty, ..update };
        set_owner(&mut block, address(0), "h", &update).unwrap();
        let again = set_owner(&mut block, address(0), "h", &update).unwrap_err();
        assert_eq!(
            again.to_string(),
            "the active owner of 10.0.0.0 is shop/b, not shop/a; read it again and decide again"
        );
    }

    #[test]
    fn a_side_that_is_not_changed_may_be_anything() {
        let mut block = together();
        let update = OwnerUpdate {
            alternate: Change::Set(attributes("c")),
            expected_active: Expected::Empty,
            ..OwnerUpdate::default()
        };
        set_owner(&mut block, address(0), "h", &update).unwrap();
        assert_eq!(block::attribute_of(&block, address(0)).unwrap().alternate, attributes("c"));
    }

    #[test]
    fn nobody_is_expected_by_empty_names_and_found_by_empty_attributes_only() {
        assert!(PodName::default().owns(&BTreeMap::new()));
        assert!(!PodName::default().owns(&attributes("a")));
        assert!(!PodName::default().owns(&BTreeMap::from([("node".to_owned(), "n".to_owned())])));
        assert!(pod("a").owns(&attributes("a")));
        assert!(!pod("a").owns(&BTreeMap::from([("pod".to_owned(), "a".to_owned())])));
    }

    #[test]
    fn only_what_the_handle_holds_can_be_changed() {
        let mut block = together();
        let outcome = |block: &mut Block, last, handle| set_owner(block, address(last), handle, &to_b());
        assert_eq!(outcome(&mut block, 2, "h"), Err(SetOwnerError::NotAllocated { address: address(2) }));
        assert_eq!(outcome(&mut block, 9, "h"), Err(SetOwnerError::NotAllocated { address: address(9) }));
        assert!(matches!(outcome(&mut block, 0, "other"), Err(SetOwnerError::OtherHandle { .. })));
        block::release_by_handle(&mut block, "h", None, 60, jiff::Timestamp::UNIX_EPOCH);
        let cooling = outcome(&mut block, 0, "h");
        assert!(matches!(cooling, Err(SetOwnerError::OtherHandle { found: None, .. })));
    }
}
