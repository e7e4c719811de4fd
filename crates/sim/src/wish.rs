//! What attachments ask for: in most worlds one address of one family, in broad ones more than that.

use crate::rng::Rng;
use api::{AssignmentMode, Cidr, IpVersion, Ordinal, Pool};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What some attachments of a broad world ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breadth {
    /// An address of each family, or none of either.
    Both,
    /// Two or three addresses of one family.
    Several,
    /// One particular address.
    Exact,
    /// Addresses of a pool that they name; one pool serves nobody else.
    Pools,
    /// A pool is for namespaces of one team.
    Teams,
    /// A pool is for nodes of one zone, and nodes change theirs.
    Zones,
    /// Two interfaces of one container, by one handle. Agents tell them apart.
    Interfaces,
    /// Virtual machines, whose pods share one address that moves between them.
    Machines,
    /// Every other node keeps addresses of its blocks for itself.
    Kept,
}

impl Breadth {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Both,
        Self::Several,
        Self::Exact,
        Self::Pools,
        Self::Teams,
        Self::Zones,
        Self::Interfaces,
        Self::Machines,
        Self::Kept,
    ];
}

/// The label of a namespace that says whose it is.
pub const TEAM: &str = "team";
/// The team that a pool is for.
pub const RED: &str = "red";
/// The other team.
const BLUE: &str = "blue";
/// The label of a node that says where it stands.
pub const ZONE: &str = "zone";
/// Where nodes may stand; a pool is for the first.
pub const ZONES: [&str; 2] = ["a", "b"];

/// What one attachment asks for, each time it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The families, one address for each mention.
    pub versions: Vec<IpVersion>,
    /// One particular address.
    pub address: Option<IpAddr>,
    /// Pools that the addresses are to be of; empty: any that may be used.
    pub pools: Vec<Cidr>,
    /// The team of its namespace, where that matters.
    pub team: Option<&'static str>,
    /// How many addresses its handle may hold; 0: any number.
    pub cap: u32,
    /// Its interface, where the container has two.
    pub interface: Option<&'static str>,
}

impl Wish {
    /// One address of a family.
    pub fn one(version: IpVersion) -> Self {
        Self { versions: vec![version], ..Self::default() }
    }

    /// A wish of a broad world, where `version` is the family that one address would be of.
    pub fn draw(rng: &mut Rng, breadth: &[Breadth], pools: &[Pool], version: IpVersion) -> Self {
        let mut wish = Self::one(version);
        if breadth.contains(&Breadth::Teams) {
            wish.team = rng.pick(&[RED, BLUE]);
        }
        if rng.chance(1, 6) {
            return wish;
        }
        match rng.pick(breadth) {
            Some(Breadth::Both) if rng.chance(1, 4) => wish.versions = vec![IpVersion::V6, IpVersion::V4],
            Some(Breadth::Both) => wish.versions = vec![IpVersion::V4, IpVersion::V6],
            Some(Breadth::Several) => wish.versions = vec![version; 2 + rng.below(2)],
            Some(Breadth::Exact) => {
                let range = rng.pick(&ranges(pools, |_| true));
                let ordinal = Ordinal(rng.between(0, 7));
                wish.address = range.and_then(|range| range.address(ordinal));
                wish.versions = wish.address.map(IpVersion::of).into_iter().collect();
            }
            Some(Breadth::Pools) => {
                // Mostly the pool that must be named.
                let named = if rng.chance(2, 3) { ranges(pools, is_manual) } else { ranges(pools, |_| true) };
                wish.pools.extend(rng.pick(&named));
                wish.versions = wish.pools.iter().map(|pool| pool.version()).collect();
            }
            Some(Breadth::Machines) => wish.cap = 1,
            Some(Breadth::Teams | Breadth::Zones | Breadth::Interfaces | Breadth::Kept) | None => {}
        }
        wish
    }

    /// The family asked for first.
    pub fn version(&self) -> IpVersion {
        self.versions.first().copied().unwrap_or(IpVersion::V4)
    }

    /// How many addresses of a family are wanted.
    pub fn count(&self, version: IpVersion) -> usize {
        self.versions.iter().filter(|wanted| **wanted == version).count()
    }

    /// What an answer has wrong; `None`: it is what was asked for.
    pub fn is_not(&self, given: &[IpAddr]) -> Option<String> {
        let count = |version| given.iter().filter(|address| IpVersion::of(**address) == version).count();
        for version in [IpVersion::V4, IpVersion::V6] {
            if count(version) != self.count(version) {
                return Some(format!("{} {version} addresses of {}", count(version), self.count(version)));
            }
        }
        let different: BTreeSet<&IpAddr> = given.iter().collect();
        if different.len() < given.len() {
            return Some("an address twice".to_owned());
        }
        if let Some(wanted) = self.address.filter(|wanted| !given.contains(wanted)) {
            return Some(format!("{wanted} was asked for"));
        }
        let named = |address: &IpAddr| self.pools.iter().any(|pool| pool.contains(*address));
        let other = given.iter().find(|address| !self.pools.is_empty() && !named(address));
        other.map(|other| format!("{other} is of none of the pools asked for"))
    }

    /// Why an address of this pool is not for whoever has this wish on a node that has only ever stood in `zones`.
    pub fn is_not_for(&self, pool: &Pool, zones: &BTreeSet<&str>) -> Option<&'static str> {
        if self.address.is_some() || !self.pools.is_empty() {
            // Whoever names an address or a pool is not asked for more.
            None
        } else if is_manual(pool) {
            Some("its pool was not named")
        } else if pool.namespace_selector.is_some() && self.team != Some(RED) {
            Some("its pool is for another team")
        } else if pool.node_selector.contains(ZONE) && !zones.contains(ZONES[0]) {
            Some("its pool is for another zone")
        } else {
            None
        }
    }
}

fn is_manual(pool: &Pool) -> bool {
    pool.assignment_mode == AssignmentMode::Manual
}

fn ranges(pools: &[Pool], which: impl Fn(&Pool) -> bool) -> Vec<Cidr> {
    pools.iter().filter(|pool| which(pool)).map(|pool| pool.cidr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_as_many_addresses_of_each_family_as_were_asked_for() {
        let wish = Wish { versions: vec![IpVersion::V4, IpVersion::V6], ..Wish::default() };
        let given = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(wish.is_not(&given(&["10.0.0.1", "fd00::1"])), None);
        assert_eq!(wish.is_not(&given(&["fd00::1", "10.0.0.1"])), None);
        assert_eq!(wish.is_not(&given(&["10.0.0.1"])).as_deref(), Some("0 IPv6 addresses of 1"));
        assert_eq!(wish.is_not(&given(&["10.0.0.1", "10.0.0.2"])).as_deref(), Some("2 IPv4 addresses of 1"));
        let twice = Wish { versions: vec![IpVersion::V4; 2], ..Wish::default() };
        assert_eq!(twice.is_not(&given(&["10.0.0.1", "10.0.0.1"])).as_deref(), Some("an address twice"));
    }

    #[test]
    fn an_answer_is_the_address_and_of_the_pools_that_were_named() {
        let (address, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let exact = Wish { address: Some(address), ..Wish::one(IpVersion::V4) };
        assert_eq!((exact.is_not(&[address]), exact.is_not(&[other]).is_some()), (None, true));
        let named = Wish { pools: vec!["10.1.0.0/29".parse().unwrap()], ..Wish::one(IpVersion::V4) };
        assert!(named.is_not(&[address]).is_some());
        assert_eq!(named.is_not(&["10.1.0.3".parse().unwrap()]), None);
    }

    #[test]
    fn pools_are_for_those_whom_they_select() {
        let mut pool = Pool::with_defaults("p", "10.1.0.0/29".parse().unwrap());
        let (nowhere, there) = (BTreeSet::new(), BTreeSet::from([ZONES[0]]));
        let wish = Wish { team: Some(BLUE), ..Wish::one(IpVersion::V4) };
        assert_eq!(wish.is_not_for(&pool, &nowhere), None);
        pool.node_selector = format!("{ZONE} == '{}'", ZONES[0]);
        assert!(wish.is_not_for(&pool, &nowhere).is_some());
        assert_eq!(wish.is_not_for(&pool, &there), None);
        pool.namespace_selector = Some(format!("{TEAM} == '{RED}'"));
        assert!(wish.is_not_for(&pool, &there).is_some());
        let red = Wish { team: Some(RED), ..wish };
        assert_eq!(red.is_not_for(&pool, &there), None);
        pool.assignment_mode = AssignmentMode::Manual;
        assert!(red.is_not_for(&pool, &there).is_some());
        assert_eq!(Wish { pools: vec![pool.cidr], ..red }.is_not_for(&pool, &nowhere), None);
    }
}
