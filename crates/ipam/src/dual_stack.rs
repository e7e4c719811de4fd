//! Addresses of both families for one owner: as many as wanted of each, or none of either (algorithm §24).

use crate::assign::{AssignError, AssignRequest, Assigned, assign_in};
use crate::block::{Release, Taken};
use crate::clock::Clock;
use crate::explain::Explain;
use crate::failure::StoreError;
use crate::release::{ReleaseFailure, release_addresses, release_by_handle_in};
use crate::seen::HandleInHand;
use crate::setting::World;
use api::{Cidr, IpVersion};
use datastore::Datastore;
use std::fmt;
use std::net::IpAddr;

/// What was handed out of both families, as many as wanted of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BothAssigned {
    /// Of the family asked for first.
    pub first: Assigned,
    /// Of the other one.
    pub second: Assigned,
}

/// Why nothing is assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BothError {
    /// One family has too few addresses; what was taken of the other is given back.
    #[error(
        "{found} of {wanted} {version} addresses were found, and those of both families are given together or not at all"
    )]
    Short {
        /// The family.
        version: IpVersion,
        /// How many there were.
        found: usize,
        /// How many were wanted.
        wanted: usize,
    },
    /// One family could not be worked on; what was taken of the other is given back.
    #[error(
        "assigning {version} addresses failed, and those of both families are given together or not at all"
    )]
    Failed {
        /// The family.
        version: IpVersion,
        /// Why.
        #[source]
        source: AssignError,
    },
    /// What was taken could not be given back: release it by its handle.
    #[error("{} addresses could not be given back after one IP version came short: release them by their handle", left.len())]
    Left {
        /// Addresses that may still be assigned.
        left: Vec<IpAddr>,
        /// What failed.
        #[source]
        source: StoreError,
    },
}

/// Nothing is assigned, and how it came to that in each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BothRefused {
    /// What went wrong.
    pub error: BothError,
    /// The account of the family asked for first.
    pub first: Explain,
    /// The account of the other one; empty if it was not tried.
    pub second: Explain,
}

impl fmt::Display for BothRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for BothRefused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Hands out the addresses of two requests, one per family, of one owner and one handle: all of them or none.
///
/// Where one family comes short, what this call took of the other is given back, and nothing else: addresses that the
/// handle held before stay.
///
/// Datastore calls: those of [`crate::assign::assign`] for each, the first trip once for both; with room in an own block of
/// each family 5 trips where commits are atomic, 7 on a Kubernetes API. Coming short: those of a release besides.
///
/// # Errors
/// See [`BothError`]; the account of each family comes with it.
///
/// # Cancellation
/// May leave addresses assigned that nobody was told of; they are found by their handle.
pub async fn assign_both<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    first: &AssignRequest,
    second: &AssignRequest,
) -> Result<BothAssigned, Box<BothRefused>> {
    let account =
        |request: &AssignRequest| Explain::new(&request.owner.name, request.version, request.want.count);
    let refused = |error, first, second| Err(Box::new(BothRefused { error, first, second }));
    let mut hand = HandleInHand::unread(first.want.handle.as_deref());
    let mut world = match World::read(store, &first.owner, &mut hand).await {
        Ok(world) => Some(world),
        Err(source) => {
            let source = AssignError::Interrupted { taken: Vec::new(), source };
            let error = BothError::Failed { version: first.version, source };
            return refused(error, account(first), account(second));
        }
    };
    let new = hand.id().filter(|_| hand.record().is_none()).map(str::to_owned);
    let mut done: Vec<Assigned> = Vec::with_capacity(2);
    for request in [first, second] {
        let (error, explain, mut taken) = match assign_in(store, clock, request, &mut world, &mut hand).await
        {
            Ok(assigned) if assigned.is_enough() => {
                done.push(assigned);
                continue;
            }
            Ok(Assigned { explain, taken, .. }) => {
                let (found, wanted) = (explain.assigned, explain.wanted);
                (BothError::Short { version: request.version, found, wanted }, explain, taken)
            }
            Err(failure) => {
                let taken = match &failure.error {
                    AssignError::Interrupted { taken, .. } => taken.clone(),
                    _ => Vec::new(),
                };
                let error = BothError::Failed { version: request.version, source: failure.error };
                (error, failure.explain, taken)
            }
        };
        let mut accounts = done.into_iter();
        let (first_account, second_account) = match accounts.next() {
            Some(assigned) => {
                taken.extend(assigned.taken);
                (Explain { assigned: 0, ..assigned.explain }, explain)
            }
            None => (explain, account(second)),
        };
        // What a lost answer hides is found by the handle alone, if that did not exist before. Everything else is given back
        // as it was taken: another call of the same handle may have been answered meanwhile.
        let hidden = matches!(
            &error,
            BothError::Failed { source: AssignError::Interrupted { source: StoreError::Commit(_), .. }, .. }
        );
        let back = Back { new: new.clone().filter(|_| hidden), first };
        let error = match back.give(store, clock, &taken).await {
            Ok(()) => error,
            Err(source) => {
                BothError::Left { left: taken.iter().map(|taken| taken.address).collect(), source }
            }
        };
        return refused(error, first_account, second_account);
    }
    let mut done = done.into_iter();
    match (done.next(), done.next()) {
        (Some(first), Some(second)) => Ok(BothAssigned { first, second }),
        _ => {
            let error = BothError::Short { version: first.version, found: 0, wanted: first.want.count };
            refused(error, account(first), account(second))
        }
    }
}

/// How what was taken is given back.
struct Back<'a> {
    /// The handle, if all that it holds is to be given back.
    new: Option<String>,
    first: &'a AssignRequest,
}

impl Back<'_> {
    async fn give<D: Datastore>(
        &self,
        store: &D,
        clock: &dyn Clock,
        taken: &[Taken],
    ) -> Result<(), StoreError> {
        if let Some(handle) = &self.new {
            let blocks: Vec<Cidr> = taken.iter().map(|taken| taken.block).collect();
            let released = release_by_handle_in(store, clock, handle, &blocks).await;
            return released.map(drop).map_err(|failure| failure.error);
        }
        if taken.is_empty() {
            return Ok(());
        }
        let releases: Vec<Release> = taken
            .iter()
            .map(|taken| Release {
                address: taken.address,
                handle: self.first.want.handle.clone(),
                sequence: Some(taken.sequence),
            })
            .collect();
        let outcome = release_addresses(store, clock, &releases).await?;
        for (_, failure) in outcome.failed {
            // One that is no longer what was taken is not ours to give back.
            if let ReleaseFailure::Store(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }
}
