//! CIDRs in canonical form and positions in them.

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

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

    /// The name of objects about it: `10-244-7-64-26` (data model §2.3). Lossy: never parsed back.
    pub fn name(self) -> String {
        self.to_string().replacen('.', "-", 3).replacen(':', "-", 7).replacen('/', "-", 1)
    }
}

impl std::str::FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>().map(|net| Self(net.trunc())).map_err(|_| ParseCidrError { text: text.to_owned() })
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
