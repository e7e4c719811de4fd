//! Which pools a demand may use, remembered until a pool, a label or a reservation changes.

use super::Agent;
use super::job::{BAD_REQUEST, Demand, NOT_SERVED, TRY_AGAIN};
use crate::block;
use crate::candidate;
use crate::explain::{Relief, Shortage};
use crate::host_reserved::{self, HostReserved};
use crate::pools::{self, Considered, PoolRequest, SelectError, Selection};
use api::attachment::ErrorReply;
use api::{Cidr, IpVersion, Pool, Use};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Selections kept at once: demands differ by namespace at most.
const KEPT: usize = 64;

/// What a selection depends on besides the view.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    version: IpVersion,
    pools: Vec<String>,
    intended_use: Use,
    namespace_labels: BTreeMap<String, String>,
    reserved: Option<HostReserved>,
}

/// Why there are no pools for a demand.
#[derive(Clone, Debug)]
pub(super) struct Unselected {
    pub(super) error: ErrorReply,
    /// What became of the pools, as far as they were looked at.
    pub(super) considered: Vec<Considered>,
}

impl Unselected {
    fn of(code: u32, message: String) -> Self {
        Self { error: ErrorReply { code, message, details: String::new() }, considered: Vec::new() }
    }
}

/// Selections made before, and where this node starts in pools.
#[derive(Debug, Default)]
pub(super) struct Selections {
    /// The view's generation they were made in.
    generation: u64,
    made: Vec<(Question, Arc<Selection>)>,
    starts: BTreeMap<(Cidr, u8), u128>,
}

impl Agent {
    /// Number of the network of `pool` at which this node starts.
    pub(super) fn start_of(&mut self, pool: &Pool, now: Timestamp) -> u128 {
        // The start among single addresses depends on the time, not on the node.
        if pool.block_size == pool.cidr.version().bits() {
            return candidate::start(pool, &self.node, now);
        }
        let node = &self.node;
        *self
            .selections
            .starts
            .entry((pool.cidr, pool.block_size))
            .or_insert_with(|| candidate::start(pool, node, now))
    }

    /// Pools for a demand.
    pub(super) fn select(
        &mut self,
        demand: &Demand,
        version: IpVersion,
    ) -> Result<Arc<Selection>, Unselected> {
        let generation = self.view.generation();
        if self.selections.generation != generation {
            self.selections = Selections { generation, ..Selections::default() };
        }
        let fits = |question: &Question| {
            question.version == version
                && question.pools == demand.pools
                && question.intended_use == demand.intended_use
                && question.namespace_labels == demand.namespace_labels
                && question.reserved == demand.reserved
        };
        if let Some((_, made)) = self.selections.made.iter().find(|(question, _)| fits(question)) {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(self.select_afresh(demand, version)?);
        if self.selections.made.len() >= KEPT {
            self.selections.made.clear();
        }
        let question = Question {
            version,
            pools: demand.pools.clone(),
            intended_use: demand.intended_use,
            namespace_labels: demand.namespace_labels.clone(),
            reserved: demand.reserved.clone(),
        };
        self.selections.made.push((question, Arc::clone(&made)));
        Ok(made)
    }

    /// What became of the pools that a demand may mean.
    pub(super) fn considered(&mut self, demand: &Demand, version: IpVersion) -> Vec<Considered> {
        match demand.requested {
            Some(address) => pools::considered_around(self.view.pools(), address, Some(demand.intended_use)),
            None => match self.select(demand, version) {
                Ok(selection) => selection.considered.clone(),
                Err(none) => none.considered,
            },
        }
    }

    fn select_afresh(&self, demand: &Demand, version: IpVersion) -> Result<Selection, Unselected> {
        let requested = self.requested_pools(demand, version)?;
        let Some(labels) = self.view.labels() else {
            return Err(Unselected::of(
                TRY_AGAIN,
                format!("there is no Node {} in the cluster; addresses are for nodes that are", self.node),
            ));
        };
        let max_prefix = host_reserved::max_prefix(version, demand.reserved.as_ref())
            .map_err(|error| Unselected::of(BAD_REQUEST, error.to_string()))?;
        let request = PoolRequest {
            version,
            requested: &requested,
            node: &self.node,
            node_labels: labels,
            namespace_labels: &demand.namespace_labels,
            intended_use: demand.intended_use,
            max_prefix,
        };
        pools::select(self.view.pools(), &request).map_err(|error| {
            let code = match error {
                SelectError::NoSuchPool { .. } | SelectError::WrongFamily { .. } => BAD_REQUEST,
                _ => NOT_SERVED,
            };
            Unselected { considered: error.considered().to_vec(), ..Unselected::of(code, error.to_string()) }
        })
    }

    /// Pools asked for, as CIDRs of this family.
    fn requested_pools(&self, demand: &Demand, version: IpVersion) -> Result<Vec<Cidr>, Unselected> {
        let mut cidrs = Vec::new();
        for name in &demand.pools {
            let named = self.view.pool(name).map(|seen| seen.value.cidr);
            match named.or_else(|| name.parse().ok()) {
                Some(cidr) if cidr.version() == version => cidrs.push(cidr),
                Some(_) => {}
                None => {
                    return Err(Unselected::of(
                        BAD_REQUEST,
                        format!("pool {name:?} is neither an IPPool's name nor a CIDR; name one that exists"),
                    ));
                }
            }
        }
        Ok(cidrs)
    }

    /// What in the usable pools could come free, by what is known: what cools down in blocks of others is not.
    pub(super) fn relief(&self, selection: &Selection) -> Relief {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let mut relief = Relief::default();
        for seen in self.view.own_blocks() {
            let block = &seen.value;
            if !super::place::in_pools(block.cidr, &selection.usable) {
                continue;
            }
            let cooling = block::allocated(block).filter(|(_, held)| held.released_at.is_some()).count();
            let reserved = block.unallocated.len() - block::free_count(block, self.view.reserved());
            relief.cooling = relief.cooling.saturating_add(count(cooling));
            relief.reserved = relief.reserved.saturating_add(count(reserved));
        }
        let blocks = self.view.blocks();
        let lendable = selection.usable.iter().flat_map(|pool| blocks.lendable(pool, 0));
        for entry in lendable.filter_map(|cidr| blocks.get(cidr)) {
            relief.elsewhere = relief.elsewhere.saturating_add(count(entry.free));
            relief.reserved = relief.reserved.saturating_add(count(entry.waiting() - entry.free));
        }
        let withheld = selection.usable.iter().flat_map(|pool| blocks.withheld(pool));
        let withheld = withheld.filter_map(|cidr| blocks.get(cidr)).map(|entry| count(entry.waiting()));
        relief.reserved = withheld.fold(relief.reserved, u64::saturating_add);
        let unused = selection.usable.iter().flat_map(|pool| blocks.unused(pool, 0));
        relief.empty_blocks = count(unused.filter(|(_, entry)| entry.owner.is_some()).count());
        relief
    }

    /// Why there is no network to claim and no address to borrow, by what is known of the pools.
    pub(super) fn shortage(&self, selection: &Selection) -> Shortage {
        let blocks = self.view.blocks();
        let pools = selection.usable.iter().map(|pool| blocks.fill(pool)).collect();
        let others = selection
            .usable
            .iter()
            .any(|pool| blocks.lendable(pool, 0).next().is_some() || blocks.withheld(pool).next().is_some());
        let own =
            self.view.affinities().keys().filter(|cidr| super::place::in_pools(**cidr, &selection.usable));
        let own = own.filter_map(|cidr| blocks.get(*cidr)).any(|entry| entry.waiting() > 0);
        match (self.view.config().strict_affinity, (others || own) && !self.view.reserved().is_empty()) {
            (true, _) => Shortage::StrictAffinity { pools },
            (false, true) => Shortage::Reserved { pools },
            (false, false) => Shortage::PoolsFull { pools },
        }
    }
}
