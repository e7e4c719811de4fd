//! What is done for a node as a whole: labels of old records, and its end (algorithm §16). A block before its first pod is an
//! assignment of nothing: [`crate::assign::ensure_block`].

use crate::administration;
use crate::affinity::{ReleaseAffinityError, ReleaseTerms};
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::seen::{self, Seen};
use api::{Affinity, Cidr, Owner};
use datastore::{CommitError, Datastore, Kind, Record, Scope, Write};
use std::collections::BTreeSet;

/// Gives up everything that a node has, for one that does not come back (RemoveIPAMHost). Returns how many blocks the
/// last round gave up: where something changed meanwhile there are several.
///
/// Addresses in use stay in use in blocks without owner. Release the node's addresses before.
///
/// Calico's etcd driver deletes the key `/calico/ipam/v2/host/<node>` besides, which nothing has written for years. It is no
/// record of ours and is left.
///
/// Datastore calls: those of [`administration::release_affinities_of`].
///
/// # Errors
/// See [`ReleaseAffinityError`].
///
/// # Cancellation
/// Leaves the blocks not yet given up; the call may be repeated.
pub async fn remove_host<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
) -> Result<usize, ReleaseAffinityError> {
    let owner = Owner::host(node);
    let terms = ReleaseTerms { owner_gone: true, ..ReleaseTerms::default() };
    for _ in 0..ATTEMPTS {
        match administration::release_affinities_of(store, clock, &owner, terms).await {
            Err(ReleaseAffinityError::Changed { .. }) => {}
            result => return result,
        }
    }
    Err(StoreError::Contention { what: format!("the removal of node {node}") }.into())
}

/// Brings the affinities of a node that old releases wrote under their present labels (UpgradeHost). Returns how many.
///
/// On Kubernetes the affinities of one owner are listed by labels, and an object written before there were labels is not found.
/// The driver writes the labels with every write of an affinity, so that writing it again unchanged mends it; one without type
/// gets type and label `host` (quirk Q21). On other stores lists need no labels and there is nothing to do.
///
/// Datastore calls: 2 lists (all affinities, those of the node), and 1 commit per affinity that the second does not show. Each
/// conflict or lost answer adds as much again.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancellation
/// May leave some affinities as they were; the call may be repeated.
pub async fn upgrade_host<D: Datastore>(store: &D, node: &str) -> Result<usize, StoreError> {
    let owner = Owner::host(node);
    let mut upgraded = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let all: Vec<Seen<Affinity>> = seen::list(store, &Scope::All(Kind::Affinity)).await?;
        let found: Vec<Seen<Affinity>> = seen::list(store, &Scope::AffinitiesOf(owner.clone())).await?;
        let found: BTreeSet<Cidr> = found.into_iter().map(|seen| seen.value.cidr).collect();
        let mut settled = true;
        for affinity in all.into_iter().filter(|seen| seen.value.owner == owner) {
            let cidr = affinity.value.cidr;
            if found.contains(&cidr) {
                continue;
            }
            let write = Write::Update(Record::Affinity(affinity.value), affinity.version);
            match store.commit(&[], &[write]).await {
                Ok(_) => {
                    upgraded.insert(cidr);
                }
                Err(CommitError::Conflict { .. }) => settled = false,
                Err(CommitError::Unknown { .. }) => {
                    upgraded.insert(cidr);
                    settled = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if settled {
            return Ok(upgraded.len());
        }
    }
    Err(StoreError::Contention { what: format!("the labels of the affinities of node {node}") })
}
