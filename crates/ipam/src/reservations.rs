//! The union of all IPReservations, asked by address and by CIDR (algorithm §3).

use api::{Cidr, IpVersion, Reservation};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// First and last reserved address of a run, as numbers.
type Run = (u128, u128);

/// What is reserved, as disjoint runs of addresses per family.
///
/// Entries may be nested, repeated or adjacent: the set is their union.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationSet {
    v4: Vec<Run>,
    v6: Vec<Run>,
}

impl ReservationSet {
    /// Nothing reserved.
    pub const fn none() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }

    /// The union of these reservations.
    pub fn new<'a>(reservations: impl IntoIterator<Item = &'a Reservation>) -> Self {
        Self::of_cidrs(reservations.into_iter().flat_map(|reservation| &reservation.cidrs).copied())
    }

    /// The union of these networks.
    pub fn of_cidrs(cidrs: impl IntoIterator<Item = Cidr>) -> Self {
        let mut set = Self::default();
        for cidr in cidrs {
            set.runs_mut(cidr.version()).push(run(cidr));
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }

    /// The union of this and `other`.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.v4.extend(&other.v4);
        self.v6.extend(&other.v6);
        merge(&mut self.v4);
        merge(&mut self.v6);
        self
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether this address is reserved.
    pub fn covers_address(&self, address: IpAddr) -> bool {
        self.covered_until(Cidr::from(address)).is_some()
    }

    /// Whether any address of `cidr` is reserved.
    pub fn touches(&self, cidr: Cidr) -> bool {
        self.overlapping(cidr).next().is_some()
    }

    /// Whether every address of `cidr` is reserved.
    pub fn covers(&self, cidr: Cidr) -> bool {
        // Runs are disjoint and not adjacent, so one run must hold it all.
        self.covered_until(cidr).is_some()
    }

    /// Last address, as a number, of the run of reserved addresses that holds all of `cidr`, if one does.
    pub(crate) fn covered_until(&self, cidr: Cidr) -> Option<u128> {
        let (from, to) = run(cidr);
        let runs = self.runs(cidr.version());
        let at = runs.partition_point(|(first, _)| *first <= from).checked_sub(1)?;
        runs.get(at).map(|(_, last)| *last).filter(|last| to <= *last)
    }

    /// Last address of the run of reserved addresses that holds all of `cidr`, if one does.
    pub fn last_around(&self, cidr: Cidr) -> Option<IpAddr> {
        let last = self.covered_until(cidr)?;
        Some(match cidr.version() {
            // A run of IPv4 addresses has no bits above 32.
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(last).unwrap_or(u32::MAX))),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::from_bits(last)),
        })
    }

    /// How many addresses of `cidr` are reserved; saturates at `u128::MAX`.
    pub fn count_in(&self, cidr: Cidr) -> u128 {
        let (from, to) = run(cidr);
        self.overlapping(cidr)
            .map(|(first, last)| ((*last).min(to) - (*first).max(from)).saturating_add(1))
            .fold(0, u128::saturating_add)
    }

    /// Runs that share an address with `cidr`; found by halving, since there may be thousands.
    fn overlapping(&self, cidr: Cidr) -> impl Iterator<Item = &Run> {
        let (from, to) = run(cidr);
        let runs = self.runs(cidr.version());
        let start = runs.partition_point(|(_, last)| *last < from);
        runs.iter().skip(start).take_while(move |(first, _)| *first <= to)
    }

    fn runs(&self, version: IpVersion) -> &[Run] {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }

    fn runs_mut(&mut self, version: IpVersion) -> &mut Vec<Run> {
        match version {
            IpVersion::V4 => &mut self.v4,
            IpVersion::V6 => &mut self.v6,
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn run(cidr: Cidr) -> Run {
    (bits(cidr.network()), bits(cidr.last()))
}

/// Sorts runs and joins those that overlap or follow each other.
fn merge(runs: &mut Vec<Run>) {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for (first, last) in runs.drain(..) {
        match joined.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    *runs = joined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(cidrs: &[&str]) -> ReservationSet {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        ReservationSet::new(&[Reservation { name: "r".to_owned(), cidrs }])
    }

    #[test]
    fn adjacent_entries_together_cover_what_neither_covers() {
        let set = set(&["10.0.0.0/27", "10.0.0.32/27", "10.0.0.8/29"]);
        assert!(set.covers("10.0.0.0/26".parse().unwrap()));
        assert!(!set.covers("10.0.0.0/25".parse().unwrap()));
        assert!(set.touches("10.0.0.0/25".parse().unwrap()));
        assert_eq!(set.count_in("10.0.0.0/24".parse().unwrap()), 64);
    }

    #[test]
    fn families_do_not_mix() {
        let set = set(&["::a00:0/120"]);
        assert!(!set.touches("10.0.0.0/24".parse().unwrap()));
        assert!(set.covers_address("::a00:7".parse().unwrap()));
    }

    #[test]
    fn a_whole_family_can_be_reserved() {
        let set = set(&["::/0"]);
        assert_eq!(set.count_in("::/0".parse().unwrap()), u128::MAX);
        assert!(set.covers("fd00::/64".parse().unwrap()));
    }

    proptest! {
        /// The model is the set of single addresses.
        #[test]
        fn the_union_answers_as_a_set_of_addresses(
            entries in proptest::collection::vec((0_u8..=63, 26_u8..=32), 0..6),
            asked in (0_u8..=63, 26_u8..=32),
        ) {
            let cidr = |(low, prefix): (u8, u8)| {
                Cidr::containing(IpAddr::from([10, 0, 0, low]), prefix).unwrap()
            };
            let cidrs: Vec<Cidr> = entries.into_iter().map(cidr).collect();
            let asked = cidr(asked);
            let model: BTreeSet<u8> =
                (0..=63).filter(|low| cidrs.iter().any(|cidr| cidr.contains(IpAddr::from([10, 0, 0, *low])))).collect();
            let inside: Vec<u8> = (0..=63).filter(|low| asked.contains(IpAddr::from([10, 0, 0, *low]))).collect();
            let set = ReservationSet::new(&[Reservation { name: String::new(), cidrs }]);
            let reserved = inside.iter().filter(|low| model.contains(low)).count();
            prop_assert_eq!(set.count_in(asked), u128::try_from(reserved).unwrap());
            prop_assert_eq!(set.touches(asked), reserved > 0);
            prop_assert_eq!(set.covers(asked), reserved == inside.len());
            let end = set.last_around(asked).map(|last| if let IpAddr::V4(last) = last { last.octets()[3] } else { 0 });
            let run_on = inside.last().map(|last| (*last..=63).take_while(|low| model.contains(low)).last());
            prop_assert_eq!(end, run_on.flatten().filter(|_| reserved == inside.len()));
            for low in 0..=63 {
                prop_assert_eq!(set.covers_address(IpAddr::from([10, 0, 0, low])), model.contains(&low));
            }
        }
    }
}
