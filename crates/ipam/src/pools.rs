//! Which pools a request may use (algorithm §6), with the reason for each that it may not.

use crate::explain::cut;
use api::selector::{ParseSelectorError, Selector};
use api::{AssignmentMode, Cidr, IpVersion, Pool, Use};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Who asks, and for what.
#[derive(Clone, Copy, Debug)]
pub struct PoolRequest<'a> {
    /// Family wanted.
    pub version: IpVersion,
    /// Pools asked for, by CIDR. Empty: any eligible. Asked for, they are used whatever their selectors say.
    pub requested: &'a [Cidr],
    /// Name of the node, for messages.
    pub node: &'a str,
    /// Labels of the node.
    pub node_labels: &'a BTreeMap<String, String>,
    /// Labels of the pod's namespace; empty where there is none.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// What the addresses are for.
    pub intended_use: Use,
    /// Longest prefix that a block may have: 32 or 128 unless a host reserves ordinals in each block.
    pub max_prefix: u8,
}

/// What became of one pool in a selection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// Addresses may be taken from it.
    Usable,
    /// It holds addresses of the other family.
    OtherFamily,
    /// `disabled` is set.
    Disabled,
    /// It is being deleted.
    Deleting,
    /// Its condition `Allocatable` is False.
    Unallocatable,
    /// Its blocks are smaller than the ordinals that the host keeps for itself.
    BlocksTooSmall,
    /// Other pools were asked for.
    NotRequested,
    /// Its assignment mode is Manual and it was not asked for.
    ManualOnly,
    /// Its node selector does not match the node.
    NodeSelector(String),
    /// Its namespace selector does not match the namespace.
    NamespaceSelector(String),
    /// One of its selectors cannot be read.
    BadSelector,
    /// Its `allowedUses` lack the use.
    OtherUse(&'static str),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("usable"),
            Self::OtherFamily => f.write_str("of the other IP version"),
            Self::Disabled => f.write_str("disabled"),
            Self::Deleting => f.write_str("being deleted"),
            Self::Unallocatable => f.write_str("not allocatable"),
            Self::BlocksTooSmall => f.write_str("cut into too small blocks"),
            Self::NotRequested => f.write_str("not asked for"),
            Self::ManualOnly => f.write_str("for requests that name it only"),
            Self::NodeSelector(selector) => write!(f, "not for this node ({selector})"),
            Self::NamespaceSelector(selector) => write!(f, "not for this namespace ({selector})"),
            Self::BadSelector => f.write_str("without a selector that can be read"),
            Self::OtherUse(wanted) => write!(f, "not for {wanted} use"),
        }
    }
}

/// One pool with its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// Name.
    pub pool: String,
    /// Addresses.
    #[serde(serialize_with = "crate::explain::as_text")]
    pub cidr: Cidr,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Outcome of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Pools that would do but for their use: a node keeps its blocks in these (algorithm §7.3).
    pub selecting: Vec<Pool>,
    /// Pools to take addresses from, in order.
    pub usable: Vec<Pool>,
    /// Every pool of the family, with its verdict, in pool order.
    pub considered: Vec<Considered>,
}

/// Why there is no pool to take from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// A pool asked for is not there, or not enabled.
    #[error("the given pool ({cidr}) does not exist, or is not enabled: ask for another, or enable it")]
    NoSuchPool {
        /// CIDR asked for.
        cidr: Cidr,
        /// What was looked at.
        considered: Vec<Considered>,
    },
    /// A pool asked for is of the other family.
    #[error("the given pool ({cidr}) is not an {version} pool: ask for it as the other IP version")]
    WrongFamily {
        /// CIDR asked for.
        cidr: Cidr,
        /// Family wanted.
        version: IpVersion,
        /// What was looked at.
        considered: Vec<Considered>,
    },
    /// No enabled pool has blocks that are large enough.
    #[error("there is no enabled {version} pool{}: create one or enable one", reasons(.considered))]
    NoQualifiedPool {
        /// Family wanted.
        version: IpVersion,
        /// What was looked at.
        considered: Vec<Considered>,
    },
    /// No pool is for this node and namespace.
    #[error("no configured Calico pools for node {node}{}: change a selector or add a pool", reasons(.considered))]
    NoPoolForNode {
        /// The node.
        node: String,
        /// What was looked at.
        considered: Vec<Considered>,
    },
    /// No pool is for this use.
    #[error("no configured Calico pool of node {node} may be used for {intended_use}{}: add it to a pool's allowedUses", reasons(.considered))]
    NoPoolForUse {
        /// The node.
        node: String,
        /// The use.
        intended_use: &'static str,
        /// What was looked at.
        considered: Vec<Considered>,
    },
    /// A selector does not parse.
    #[error("pool {pool} has a selector that cannot be read: correct it")]
    BadSelector {
        /// The pool.
        pool: String,
        /// What is wrong with it.
        #[source]
        source: ParseSelectorError,
        /// What was looked at.
        considered: Vec<Considered>,
    },
}

impl SelectError {
    /// The pools looked at, each with what became of it as far as the selection got.
    pub fn considered(&self) -> &[Considered] {
        match self {
            Self::NoQualifiedPool { considered, .. }
            | Self::NoPoolForNode { considered, .. }
            | Self::NoPoolForUse { considered, .. }
            | Self::NoSuchPool { considered, .. }
            | Self::WrongFamily { considered, .. }
            | Self::BadSelector { considered, .. } => considered,
        }
    }
}

fn reasons(considered: &[Considered]) -> String {
    /// More would not fit an event.
    const SHOWN: usize = 5;
    /// Of each: names are users' texts, and so are selectors, of a thousand characters and more.
    const ENTRY: usize = 140;
    if considered.is_empty() {
        return String::new();
    }
    let mut shown: Vec<String> = considered
        .iter()
        .take(SHOWN)
        .map(|entry| cut(&format!("{} {} is {}", entry.pool, entry.cidr, entry.verdict), ENTRY))
        .collect();
    if considered.len() > SHOWN {
        shown.push(format!("and {} more", considered.len() - SHOWN));
    }
    format!(" ({})", shown.join(", "))
}

/// Why a pool is out before any selector is asked.
fn disqualified(pool: &Pool, request: &PoolRequest<'_>) -> Option<Verdict> {
    if pool.cidr.version() != request.version {
        Some(Verdict::OtherFamily)
    } else if pool.disabled {
        Some(Verdict::Disabled)
    } else if pool.deleting {
        Some(Verdict::Deleting)
    } else if pool.unallocatable {
        Some(Verdict::Unallocatable)
    } else if pool.block_size > request.max_prefix {
        Some(Verdict::BlocksTooSmall)
    } else {
        None
    }
}

/// What became of the pools around one address that is asked for: selectors are not asked then. `None`: for any use.
pub fn considered_around<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    address: IpAddr,
    intended_use: Option<Use>,
) -> Vec<Considered> {
    let around = pools.into_iter().filter(|pool| pool.cidr.contains(address));
    let considered = around.map(|pool| Considered {
        pool: pool.name.clone(),
        cidr: pool.cidr,
        verdict: match intended_use {
            _ if pool.disabled => Verdict::Disabled,
            _ if pool.deleting => Verdict::Deleting,
            _ if pool.unallocatable => Verdict::Unallocatable,
            Some(wanted) if !pool.allowed_uses.contains(&wanted) => Verdict::OtherUse(wanted.as_str()),
            _ => Verdict::Usable,
        },
    });
    considered.collect()
}

/// Whether the pool's node selector matches these labels.
///
/// # Errors
/// [`SelectError::BadSelector`].
pub fn selects_node(pool: &Pool, labels: &BTreeMap<String, String>) -> Result<bool, SelectError> {
    matches(pool, &pool.node_selector, labels)
}

fn matches(pool: &Pool, selector: &str, labels: &BTreeMap<String, String>) -> Result<bool, SelectError> {
    Selector::parse(selector).map(|selector| selector.matches(labels)).map_err(|source| {
        let (pool, considered) = (pool.name.clone(), Vec::new());
        SelectError::BadSelector { pool, source, considered }
    })
}

/// The error of a selector with the pools that were looked at by then.
fn with_considered(error: SelectError, so_far: &[Considered]) -> SelectError {
    match error {
        SelectError::BadSelector { pool, source, .. } => {
            let mut considered = so_far.to_vec();
            for entry in considered.iter_mut().filter(|entry| entry.pool == pool) {
                entry.verdict = Verdict::BadSelector;
            }
            SelectError::BadSelector { pool, source, considered }
        }
        other => other,
    }
}

/// Selects among `pools`, which come in pool order (by name).
///
/// # Errors
/// See [`SelectError`]. On an error nothing may be taken at all: one bad entry among requested pools fails the request.
pub fn select<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    request: &PoolRequest<'_>,
) -> Result<Selection, SelectError> {
    let mut considered = Vec::new();
    let mut qualified = Vec::new();
    for pool in pools {
        let verdict = disqualified(pool, request);
        if verdict == Some(Verdict::OtherFamily) {
            continue;
        }
        if verdict.is_none() {
            qualified.push(pool);
        }
        considered.push(Considered {
            pool: pool.name.clone(),
            cidr: pool.cidr,
            verdict: verdict.unwrap_or(Verdict::Usable),
        });
    }
    let set = |considered: &mut Vec<Considered>, pool: &Pool, verdict: Verdict| {
        if let Some(entry) = considered.iter_mut().find(|entry| entry.pool == pool.name) {
            entry.verdict = verdict;
        }
    };
    if let Some(cidr) = request.requested.iter().find(|cidr| cidr.version() != request.version) {
        return Err(SelectError::WrongFamily { cidr: *cidr, version: request.version, considered });
    }
    if qualified.is_empty() {
        return Err(SelectError::NoQualifiedPool { version: request.version, considered });
    }
    let mut selecting: Vec<Pool> = Vec::new();
    if request.requested.is_empty() {
        for pool in qualified {
            let namespace_selector = pool.namespace_selector.as_deref().unwrap_or_default();
            let verdict = if pool.assignment_mode == AssignmentMode::Manual {
                Verdict::ManualOnly
            } else if !selects_node(pool, request.node_labels)
                .map_err(|error| with_considered(error, &considered))?
            {
                Verdict::NodeSelector(pool.node_selector.clone())
            } else if !matches(pool, namespace_selector, request.namespace_labels)
                .map_err(|error| with_considered(error, &considered))?
            {
                Verdict::NamespaceSelector(namespace_selector.to_owned())
            } else {
                selecting.push(pool.clone());
                continue;
            };
            set(&mut considered, pool, verdict);
        }
    } else {
        for cidr in request.requested {
            let found = qualified.iter().find(|pool| pool.cidr == *cidr);
            let Some(pool) = found.copied() else {
                return Err(SelectError::NoSuchPool { cidr: *cidr, considered });
            };
            if !selecting.iter().any(|chosen| chosen.name == pool.name) {
                selecting.push(pool.clone());
            }
        }
        for pool in qualified.iter().filter(|pool| !request.requested.contains(&pool.cidr)) {
            set(&mut considered, pool, Verdict::NotRequested);
        }
    }
    if selecting.is_empty() {
        return Err(SelectError::NoPoolForNode { node: request.node.to_owned(), considered });
    }
    let intended_use = request.intended_use;
    let (usable, others): (Vec<Pool>, Vec<Pool>) =
        selecting.iter().cloned().partition(|pool| pool.allowed_uses.contains(&intended_use));
    for pool in &others {
        set(&mut considered, pool, Verdict::OtherUse(intended_use.as_str()));
    }
    if usable.is_empty() {
        return Err(SelectError::NoPoolForUse {
            node: request.node.to_owned(),
            intended_use: intended_use.as_str(),
            considered,
        });
    }
    Ok(Selection { selecting, usable, considered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, cidr: &str) -> Pool {
        Pool::with_defaults(name, cidr.parse().unwrap())
    }

    fn request<'a>(requested: &'a [Cidr], labels: &'a BTreeMap<String, String>) -> PoolRequest<'a> {
        PoolRequest {
            version: IpVersion::V4,
            requested,
            node: "n1",
            node_labels: labels,
            namespace_labels: labels,
            intended_use: Use::Workload,
            max_prefix: 32,
        }
    }

    fn names(pools: &[Pool]) -> Vec<&str> {
        pools.iter().map(|pool| pool.name.as_str()).collect()
    }

    #[test]
    fn only_enabled_automatic_and_selected_pools_are_used() {
        let mut pools: Vec<Pool> =
            (0..8).map(|i| pool(&format!("p{i}"), &format!("10.{i}.0.0/16"))).collect();
        pools[1].disabled = true;
        pools[2].deleting = true;
        pools[3].unallocatable = true;
        pools[4].assignment_mode = AssignmentMode::Manual;
        pools[5].node_selector = "zone == 'a'".to_owned();
        pools[6].namespace_selector = Some("team == 'x'".to_owned());
        pools[7].allowed_uses = vec![Use::Tunnel];
        let labels = BTreeMap::new();
        let selection = select(&pools, &request(&[], &labels)).unwrap();
        assert_eq!(names(&selection.usable), ["p0"]);
        assert_eq!(names(&selection.selecting), ["p0", "p7"]);
        let verdicts: Vec<String> =
            selection.considered.iter().map(|entry| entry.verdict.to_string()).collect();
        assert_eq!(
            verdicts,
            [
                "usable",
                "disabled",
                "being deleted",
                "not allocatable",
                "for requests that name it only",
                "not for this node (zone == 'a')",
                "not for this namespace (team == 'x')",
                "not for Workload use"
            ]
        );
    }

    #[test]
    fn a_pool_asked_for_is_used_whatever_its_selectors_say() {
        let mut pools = [pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16")];
        pools[1].node_selector = "has(nothing)".to_owned();
        pools[1].assignment_mode = AssignmentMode::Manual;
        let labels = BTreeMap::new();
        let requested = ["10.1.0.0/16".parse().unwrap(), "10.0.0.0/16".parse().unwrap()];
        assert_eq!(names(&select(&pools, &request(&requested, &labels)).unwrap().usable), ["b", "a"]);
        let requested = ["10.0.0.0/16".parse().unwrap(), "10.9.0.0/16".parse().unwrap()];
        assert!(matches!(select(&pools, &request(&requested, &labels)), Err(SelectError::NoSuchPool { .. })));
    }

    #[test]
    fn the_error_says_why_each_pool_is_out() {
        let mut only = pool("only", "10.0.0.0/16");
        only.node_selector = "has(gpu)".to_owned();
        let labels = BTreeMap::new();
        let error = select(&[only.clone()], &request(&[], &labels)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no configured Calico pools for node n1 (only 10.0.0.0/16 is not for this node (has(gpu))): \
             change a selector or add a pool"
        );
        only.disabled = true;
        assert!(matches!(
            select(&[only.clone()], &request(&[], &labels)),
            Err(SelectError::NoQualifiedPool { .. })
        ));
        only.disabled = false;
        only.node_selector = "==".to_owned();
        assert!(matches!(select(&[only], &request(&[], &labels)), Err(SelectError::BadSelector { .. })));
    }

    #[test]
    fn every_error_has_the_pools_that_were_looked_at() {
        let mut pools = [pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16")];
        let labels = BTreeMap::new();
        let requested = |text: &str| [text.parse().unwrap()];
        for asked in [requested("10.9.0.0/16"), requested("fd00::/64")] {
            let error = select(&pools, &request(&asked, &labels)).unwrap_err();
            assert_eq!(error.considered().len(), 2, "{error}");
        }
        pools[1].node_selector = "==".to_owned();
        let error = select(&pools, &request(&[], &labels)).unwrap_err();
        let verdicts: Vec<&Verdict> = error.considered().iter().map(|entry| &entry.verdict).collect();
        assert_eq!(verdicts, [&Verdict::Usable, &Verdict::BadSelector], "{error}");
        pools[1].disabled = true;
        let around = considered_around(&pools, "10.1.0.1".parse().unwrap(), None);
        assert_eq!(around.iter().map(|entry| &entry.verdict).collect::<Vec<_>>(), [&Verdict::Disabled]);
    }

    #[test]
    fn the_text_of_an_error_fits_an_event_however_long_names_and_selectors_are() {
        let long = |number: u8| {
            let mut pool = pool(&"p".repeat(253), &format!("10.{number}.0.0/16"));
            pool.node_selector = format!("zone == '{}'", "z".repeat(900));
            pool
        };
        let pools: Vec<Pool> = (0..9).map(long).collect();
        let labels = BTreeMap::new();
        let error = select(&pools, &request(&[], &labels)).unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 900, "{text}");
        assert!(text.ends_with("and 4 more): change a selector or add a pool"), "{text}");
    }
}
