//! CIDRs in canonical form and positions in them.

use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Bits of an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Position of an address in its block: 0 is the block's first address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u32);

/// A CIDR with its host bits cleared, which is how Calico stores every one (data model §2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

/// A text that is no CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a CIDR: write an address and a prefix length, such as 192.168.0.0/16")]
pub struct ParseCidrError {
    text: String,
}

impl Cidr {
    /// The network of `prefix` bits that holds `address`; host bits are cleared.
    ///
    /// `None` if `prefix` is longer than the family's addresses.
    pub fn containing(address: IpAddr, prefix: u8) -> Option<Self> {
        IpNet::new(address, prefix).ok().map(|net| Self(net.trunc()))
    }

    /// First address.
    pub fn network(self) -> IpAddr {
        self.0.network()
    }

    /// Prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.0.prefix_len()
    }

    /// Family.
    pub fn version(self) -> IpVersion {
        match self.0 {
            IpNet::V4(_) => IpVersion::V4,
            IpNet::V6(_) => IpVersion::V6,
        }
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0.network()) || other.0.contains(&self.0.network())
    }

    /// Whether every address of `other` lies in it.
    pub fn contains_cidr(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Number of its addresses; `::/0` saturates at `u128::MAX`.
    pub fn size(self) -> u128 {
        1_u128.checked_shl(u32::from(self.version().bits() - self.prefix())).unwrap_or(u128::MAX)
    }

    /// Last address.
    pub fn last(self) -> IpAddr {
        self.0.broadcast()
    }

    /// Position of `address`, counted from the first address; `None` outside, or beyond what an ordinal holds
    /// (blocks have at most 4096 addresses, so only asking a pool can run into that).
    pub fn ordinal(self, address: IpAddr) -> Option<Ordinal> {
        if !self.contains(address) {
            return None;
        }
        u32::try_from(address_bits(address) - address_bits(self.network())).ok().map(Ordinal)
    }

    /// The address at `ordinal`; `None` behind the last.
    pub fn address(self, ordinal: Ordinal) -> Option<IpAddr> {
        let offset = u128::from(ordinal.0);
        (offset < self.size()).then(|| self.offset(offset))
    }

    /// How many networks of `prefix` bits it holds; 0 if `prefix` is shorter than its own or longer than an address.
    pub fn block_count(self, prefix: u8) -> u128 {
        if prefix < self.prefix() || prefix > self.version().bits() {
            return 0;
        }
        1_u128.checked_shl(u32::from(prefix - self.prefix())).unwrap_or(u128::MAX)
    }

    /// The `index`-th network of `prefix` bits in it, counted from 0; `None` behind the last.
    pub fn nth_block(self, prefix: u8, index: u128) -> Option<Self> {
        if index >= self.block_count(prefix) {
            return None;
        }
        let width = u32::from(self.version().bits() - prefix);
        // The only block of a whole family starts at offset 0; its width does not fit a shift.
        let offset = index.checked_shl(width).unwrap_or(0);
        Self::containing(self.offset(offset), prefix)
    }

    /// Which network of `prefix` bits in it holds `address`, counted from 0: the inverse of [`Cidr::nth_block`].
    pub fn block_index(self, prefix: u8, address: IpAddr) -> Option<u128> {
        if !self.contains(address) || self.block_count(prefix) == 0 {
            return None;
        }
        let offset = address_bits(address) - address_bits(self.network());
        // A shift by the whole width happens for the one block of a whole family only, which is number 0.
        Some(offset.checked_shr(u32::from(self.version().bits() - prefix)).unwrap_or(0))
    }

    /// The address `offset` places behind the first. The caller has made sure that it lies inside.
    fn offset(self, offset: u128) -> IpAddr {
        let bits = address_bits(self.network()).wrapping_add(offset);
        match self.version() {
            // IPv4 addresses carry no bits above 32, and the offset stays inside the network.
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    /// The name of objects about it: `10-244-7-64-26` (data model §2.3). Lossy: never parsed back.
    pub fn name(self) -> String {
        self.to_string().replacen('.', "-", 3).replacen(':', "-", 7).replacen('/', "-", 1)
    }
}

/// An address as a number, IPv4 in the low 32 bits.
fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl From<IpAddr> for Cidr {
    /// The network that holds this one address.
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }
}

impl IpVersion {
    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl std::str::FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>()
            .map(|net| Self(net.trunc()))
            .map_err(|_| ParseCidrError { text: text.to_owned() })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn object_names_follow_the_table() {
        for (text, name) in [
            ("10.244.7.64/26", "10-244-7-64-26"),
            ("fd00:10:244::1c0/122", "fd00-10-244--1c0-122"),
            ("fd80:24e2:f998:72d6::/122", "fd80-24e2-f998-72d6---122"),
            ("2001:db8:1:2:3:4:5:6/128", "2001-db8-1-2-3-4-5-6-128"),
        ] {
            assert_eq!(cidr(text).name(), name);
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(cidr("10.0.0.77/26").to_string(), "10.0.0.64/26");
        assert_eq!(cidr("FD00:0::1/64").to_string(), "fd00::/64");
    }

    #[test]
    fn whole_families_do_not_overflow() {
        let all = cidr("::/0");
        assert_eq!(all.size(), u128::MAX);
        assert_eq!(all.nth_block(0, 0), Some(all));
        assert_eq!(
            all.nth_block(128, u128::MAX - 1).unwrap().to_string(),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/128"
        );
        assert_eq!(cidr("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(cidr("0.0.0.0/0").ordinal("255.255.255.255".parse().unwrap()), Some(Ordinal(u32::MAX)));
    }

    #[test]
    fn a_prefix_shorter_than_the_pool_has_no_blocks() {
        assert_eq!(cidr("10.0.0.0/26").block_count(24), 0);
        assert_eq!(cidr("10.0.0.0/26").nth_block(24, 0), None);
        assert_eq!(cidr("10.0.0.0/26").block_count(33), 0);
    }

    proptest! {
        /// The model walks the addresses of the pool one by one and cuts a block wherever one begins.
        #[test]
        fn blocks_are_those_met_when_walking_the_pool(base: u32, prefix in 20_u8..=32, longer in 0_u8..=6) {
            let pool = Cidr::containing(IpAddr::V4(Ipv4Addr::from_bits(base)), prefix).unwrap();
            let block_prefix = (prefix + longer).min(32);
            let first = u32::from_be_bytes(match pool.network() { IpAddr::V4(a) => a.octets(), IpAddr::V6(_) => [0; 4] });
            let mut walked: Vec<Cidr> = Vec::new();
            for step in 0..(1_u64 << (32 - prefix)) {
                let address = IpAddr::V4(Ipv4Addr::from_bits(first + u32::try_from(step).unwrap()));
                let block = Cidr::containing(address, block_prefix).unwrap();
                if walked.last() != Some(&block) {
                    walked.push(block);
                }
                let ordinal = block.ordinal(address).unwrap();
                prop_assert_eq!(u64::from(ordinal.0), step % (1_u64 << (32 - block_prefix)));
                prop_assert_eq!(block.address(ordinal), Some(address));
                prop_assert_eq!(pool.block_index(block_prefix, address), u128::try_from(walked.len()).ok().map(|n| n - 1));
            }
            let counted: Vec<Cidr> = (0..pool.block_count(block_prefix)).map(|i| pool.nth_block(block_prefix, i).unwrap()).collect();
            prop_assert_eq!(&counted, &walked);
            prop_assert_eq!(pool.nth_block(block_prefix, pool.block_count(block_prefix)), None);
            prop_assert!(walked.iter().all(|block| pool.contains_cidr(*block)));
        }

        #[test]
        fn an_ordinal_and_its_address_name_each_other_in_ipv6(base: u128, prefix in 116_u8..=128, ordinal in 0_u32..5000) {
            let block = Cidr::containing(IpAddr::V6(Ipv6Addr::from_bits(base)), prefix).unwrap();
            match block.address(Ordinal(ordinal)) {
                Some(address) => {
                    prop_assert!(block.contains(address));
                    prop_assert_eq!(block.ordinal(address), Some(Ordinal(ordinal)));
                }
                None => prop_assert!(u128::from(ordinal) >= block.size()),
            }
        }
    }
}
