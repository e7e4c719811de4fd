//! Runs of addresses: what is covered by blocks, so that the next gap is found without looking at the blocks.

use api::{Cidr, IpVersion};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Disjoint runs of addresses of one family, by first address; neighbours are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<u128, u128>);

/// First and last address as numbers.
fn bounds(cidr: Cidr) -> (u128, u128) {
    (number(cidr.network()), number(cidr.last()))
}

/// An address as a number.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Runs {
    pub(super) fn add(&mut self, cidr: Cidr) {
        let (mut first, mut last) = bounds(cidr);
        while let Some((from, to)) = self.before(last.saturating_add(1)) {
            if to.saturating_add(1) < first {
                break;
            }
            self.0.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.0.insert(first, last);
    }

    pub(super) fn remove(&mut self, cidr: Cidr) {
        let (first, last) = bounds(cidr);
        while let Some((from, to)) = self.before(last) {
            if to < first {
                break;
            }
            self.0.remove(&from);
            if to > last {
                self.0.insert(last + 1, to);
            }
            if from < first {
                self.0.insert(from, first - 1);
            }
        }
    }

    /// Last address of the last run that shares an address with `cidr`.
    pub(super) fn end_of_run_in(&self, cidr: Cidr) -> Option<IpAddr> {
        let (first, last) = bounds(cidr);
        let (_, end) = self.before(last).filter(|(_, to)| *to >= first)?;
        Some(match cidr.version() {
            // A run of IPv4 addresses has no bits above 32.
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(end).unwrap_or(u32::MAX))),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::from_bits(end)),
        })
    }

    /// The last run that starts at `at` or before.
    fn before(&self, at: u128) -> Option<(u128, u128)> {
        self.0.range(..=at).next_back().map(|(from, to)| (*from, *to))
    }
}

/// Runs of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Covered {
    v4: Runs,
    v6: Runs,
}

impl Covered {
    pub(super) fn of(&self, version: IpVersion) -> &Runs {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }

    pub(super) fn of_mut(&mut self, version: IpVersion) -> &mut Runs {
        match version {
            IpVersion::V4 => &mut self.v4,
            IpVersion::V6 => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn cidr((low, prefix): (u8, u8)) -> Cidr {
        Cidr::containing(IpAddr::from([10, 0, 0, low]), prefix).unwrap()
    }

    fn addresses(cidr: Cidr) -> impl Iterator<Item = u128> {
        let (first, last) = bounds(cidr);
        first..=last
    }

    proptest! {
        /// The model is the set of single addresses.
        #[test]
        fn runs_are_the_set_of_what_was_added_and_not_removed(
            changes in proptest::collection::vec((any::<bool>(), (0_u8..=63, 26_u8..=32)), 0..40),
            asked in (0_u8..=63, 26_u8..=32),
        ) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (adds, change) in changes {
                let change = cidr(change);
                if adds {
                    runs.add(change);
                    model.extend(addresses(change));
                } else {
                    runs.remove(change);
                    model.retain(|at| !addresses(change).any(|gone| gone == *at));
                }
            }
            let inside: Vec<u128> = runs.0.iter().flat_map(|(from, to)| *from..=*to).collect();
            prop_assert_eq!(&inside, &model.iter().copied().collect::<Vec<_>>());
            let last_inside = addresses(cidr(asked)).filter(|at| model.contains(at)).last();
            let end = last_inside.map(|mut at| {
                while model.contains(&(at + 1)) {
                    at += 1;
                }
                at
            });
            prop_assert_eq!(runs.end_of_run_in(cidr(asked)).map(number), end);
        }
    }

    #[test]
    fn whole_family_is_one_run() {
        let all: Cidr = "::/0".parse().unwrap();
        let mut runs = Runs::default();
        runs.add(all);
        runs.add("ff00::/8".parse().unwrap());
        assert_eq!(runs.end_of_run_in(all), Some(all.last()));
        runs.remove(all);
        assert_eq!(runs, Runs::default());
    }
}
