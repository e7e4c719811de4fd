//! Which node (or virtual owner) a block belongs to, and the state of that claim (data model §6).

use crate::{Cidr, IpVersion};
use sha2::Sha256;
use sha3::{Digest, Sha3_256};
use std::collections::BTreeMap;
use std::fmt;

/// Label with a hash of the owner's name, because names may be longer than a label value (data model §6.2).
pub const LABEL_HOSTNAME_HASH: &str = "projectcalico.org/hostname-hash";
/// Label with the owner's kind.
pub const LABEL_AFFINITY_TYPE: &str = "projectcalico.org/affinity-type";
/// Label with the block's IP version.
pub const LABEL_IP_VERSION: &str = "projectcalico.org/ip-version";

/// What kind of owner a block has: a node, or something that is not a node (the LoadBalancer allocator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// A node, written `host:<name>`.
    Host,
    /// Not a node, written `virtual:<name>`.
    Virtual,
}

impl OwnerKind {
    /// The word of the wire: `host` or `virtual`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Virtual => "virtual",
        }
    }

    /// Reads the word of the wire; an empty one is old data and means a node.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "host" | "" => Some(Self::Host),
            "virtual" => Some(Self::Virtual),
            _ => None,
        }
    }
}

/// Owner of a block: rendered `host:<node>` or `virtual:<name>`. Names are verbatim, never folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Node or virtual.
    pub kind: OwnerKind,
    /// The node's name.
    pub name: String,
}

impl Owner {
    /// The node `name` as owner.
    pub fn host(name: impl Into<String>) -> Self {
        Self { kind: OwnerKind::Host, name: name.into() }
    }

    /// Something that is not a node.
    pub fn virtual_named(name: impl Into<String>) -> Self {
        Self { kind: OwnerKind::Virtual, name: name.into() }
    }

    /// Reads `host:<node>` or `virtual:<name>`; `None` for anything else, an empty name included.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':')?;
        let kind = match kind {
            "host" => OwnerKind::Host,
            "virtual" => OwnerKind::Virtual,
            _ => return None,
        };
        (!name.is_empty()).then(|| Self { kind, name: name.to_owned() })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.name)
    }
}

/// State of an affinity. An empty string on the wire means confirmed (old data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffinityState {
    /// Claimed, the block not yet known to be ours.
    Pending,
    /// The block exists and carries this owner.
    Confirmed,
    /// Being given up; written before the block is touched.
    PendingDeletion,
}

impl AffinityState {
    /// The word of the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::PendingDeletion => "pendingDeletion",
        }
    }

    /// Reads the word of the wire; an empty one is old data and means confirmed.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "pending" => Some(Self::Pending),
            "confirmed" | "" => Some(Self::Confirmed),
            "pendingDeletion" => Some(Self::PendingDeletion),
            _ => None,
        }
    }
}

/// A node's claim on a block: an index and a lock; the block's own `affinity` is the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Who claims.
    pub owner: Owner,
    /// The block claimed.
    pub cidr: Cidr,
    /// How far the claim has got.
    pub state: AffinityState,
    /// First phase of a two-phase delete on Kubernetes (data model §3.3).
    pub deleted: bool,
}

impl Affinity {
    /// The labels that lists for one owner select by; mandatory on every write (data model §6.2).
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = selecting_labels(&self.owner);
        let version = match self.cidr.version() {
            IpVersion::V4 => "4",
            IpVersion::V6 => "6",
        };
        labels.insert(LABEL_IP_VERSION.to_owned(), version.to_owned());
        labels
    }
}

/// The labels by which all affinities of `owner` are listed: hash of its name, and its kind.
pub fn selecting_labels(owner: &Owner) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_HOSTNAME_HASH.to_owned(), hostname_hash(&owner.name)),
        (LABEL_AFFINITY_TYPE.to_owned(), owner.kind.as_str().to_owned()),
    ])
}

/// SHA3-256 of a name in upper-case, unpadded base32: 52 characters.
fn hostname_hash(name: &str) -> String {
    base32(&Sha3_256::digest(name.as_bytes()))
}

/// RFC 4648 base32, upper case, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let mut held: u16 = 0;
    let mut bits = 0;
    for byte in bytes {
        held = (held << 8) | u16::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[usize::from((held >> bits) & 31)]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[usize::from((held << (5 - bits)) & 31)]));
    }
    text
}

/// How BlockAffinity objects are named in a Kubernetes datastore (architecture D9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AffinityNaming {
    /// `<node>-192-168-1-64-26`, Calico's way; mandatory where Calico shares the datastore.
    #[default]
    PerNode,
    /// `ipam-block-affinity-192-168-1-64-26`, what a datastore gets that Tortie set up for itself.
    PerBlock,
}

impl AffinityNaming {
    /// What the record of the datastore's set-up calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PerNode => "per-node",
            Self::PerBlock => "per-block",
        }
    }

    /// Reads the record of the datastore's set-up (ConfigMap `kube-system/tortie-datastore`, key `affinityNaming`).
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "per-node" => Some(Self::PerNode),
            "per-block" => Some(Self::PerBlock),
            _ => None,
        }
    }

    /// Name of the object for `owner`'s claim on `cidr` (data model §6.1). Lossy: never parsed back.
    ///
    /// The one place that derives these names. The owner's kind is not part of them: a virtual owner named like a
    /// node collides with it, upstream as here.
    pub fn object_name(self, owner: &Owner, cidr: Cidr) -> String {
        /// Object names are shorter than this.
        const LIMIT: usize = 253;
        /// Hyphen, hyphen and eleven digits of hash.
        const HASH_AND_HYPHENS: usize = 13;

        let block = cidr.name();
        match self {
            Self::PerBlock => format!("ipam-block-affinity-{block}"),
            Self::PerNode => {
                let name = format!("{}-{block}", owner.name);
                if name.len() < LIMIT {
                    return name;
                }
                let digest = Sha256::digest(format!("{}+{block}", owner.name).as_bytes());
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                let room = LIMIT - 1 - HASH_AND_HYPHENS - block.len();
                let kept: String = owner.name.chars().take(room).collect();
                format!("{kept}-{block}-{}", &hex[..11])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_hashes_are_the_known_answers() {
        for (name, hash) in [
            ("node-a", "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA"),
            ("worker-1", "CPU5J3TPSNHFA66J45DG4Z5C3PSJAZ36LD46JZLYEGZSTAWBUCUA"),
            ("load-balancer", "TAU2RK2F2FG7MIS72DPZYC6FJ3U3BIWIDZAMUTQY7ZXMSKQZ5GSQ"),
        ] {
            assert_eq!(hostname_hash(name), hash);
        }
    }

    #[test]
    fn object_names_follow_the_naming_of_the_datastore() {
        let owner = Owner::host("worker-1");
        let v4: Cidr = "10.244.7.64/26".parse().unwrap();
        let v6: Cidr = "fd00:10:244::1c0/122".parse().unwrap();
        assert_eq!(AffinityNaming::PerNode.object_name(&owner, v4), "worker-1-10-244-7-64-26");
        assert_eq!(AffinityNaming::PerNode.object_name(&owner, v6), "worker-1-fd00-10-244--1c0-122");
        assert_eq!(AffinityNaming::PerBlock.object_name(&owner, v4), "ipam-block-affinity-10-244-7-64-26");
    }

    #[test]
    fn long_node_names_are_cut_and_hashed() {
        let name = AffinityNaming::PerNode
            .object_name(&Owner::host("h".repeat(245)), "10.244.7.64/26".parse().unwrap());
        assert_eq!(name, format!("{}-10-244-7-64-26-7c02f246f75", "h".repeat(225)));
        assert_eq!(name.len(), 252);
    }

    #[test]
    fn owners_are_read_as_they_are_written() {
        for owner in [Owner::host("a.b-c"), Owner::virtual_named("load-balancer")] {
            assert_eq!(Owner::parse(&owner.to_string()), Some(owner));
        }
        assert_eq!(Owner::parse("host:"), None);
        assert_eq!(Owner::parse("@:x"), None);
        assert_eq!(Owner::parse("worker"), None);
    }
}
