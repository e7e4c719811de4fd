//! Why a request got what it got: which pools and blocks were tried, and what would free addresses.
//!
//! Pure code does not log. It returns an [`Explain`], which the caller logs, puts into an event, or shows.

use crate::pools::Considered;
use api::{Cidr, IpVersion, Pool};
use serde::{Serialize, Serializer};
use std::fmt;

/// Longest one-line text: what a Kubernetes event holds, with room for the caller's own words.
const MAX_LINE: usize = 900;

/// Writes anything as its text.
pub(crate) fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What came of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockOutcome {
    /// Addresses were taken from it.
    Took,
    /// Claimed for this request, and addresses taken.
    Claimed,
    /// Taken from it although it is not the node's own.
    Borrowed,
    /// It has no address that is free and not reserved.
    Full,
    /// Another node was quicker.
    LostRace,
    /// It could not be read or written.
    Failed,
}

/// One block that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockTried {
    /// The block.
    #[serde(serialize_with = "as_text")]
    pub block: Cidr,
    /// What came of it.
    pub outcome: BlockOutcome,
}

/// How full a pool is, for the sentence about an exhausted one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolFill {
    /// Name.
    pub pool: String,
    /// Addresses.
    #[serde(serialize_with = "as_text")]
    pub cidr: Cidr,
    /// Blocks that fit, saturated.
    pub blocks: u64,
    /// Blocks that exist.
    pub claimed: u64,
    /// Blocks of the asking node.
    pub own: u64,
}

impl PoolFill {
    /// The fill of `pool`, of which blocks `existing` are there; `own` says which are the node's.
    pub fn of<'a>(pool: &Pool, existing: impl IntoIterator<Item = (&'a Cidr, bool)>) -> Self {
        let (mut claimed, mut own) = (0, 0);
        for (_, is_own) in existing.into_iter().filter(|(block, _)| pool.cidr.contains_cidr(**block)) {
            claimed += 1;
            own += u64::from(is_own);
        }
        let blocks = u64::try_from(pool.cidr.block_count(pool.block_size)).unwrap_or(u64::MAX);
        Self { pool: pool.name.clone(), cidr: pool.cidr, blocks, claimed, own }
    }
}

/// Why fewer addresses were found than wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Shortage {
    /// No address is free in any usable pool.
    PoolsFull {
        /// The pools.
        pools: Vec<PoolFill>,
    },
    /// Every block exists, the node's own are full, and strict affinity forbids the others.
    StrictAffinity {
        /// The pools.
        pools: Vec<PoolFill>,
    },
    /// The node has as many blocks as it may.
    BlockLimit {
        /// How many that is.
        limit: u32,
        /// How many it has.
        owned: u32,
    },
    /// Nodes may not claim blocks.
    AutoAllocateOff,
    /// Everything that is free is reserved.
    Reserved {
        /// The pools.
        pools: Vec<PoolFill>,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoolsFull { pools } => {
                write!(f, "no address is free in {}", fills(pools))?;
                f.write_str(
                    "; to free addresses delete pods, or release leaked ones (calicoctl ipam check, \
                     calicoctl ipam release --ip ADDRESS), or add a pool",
                )
            }
            Self::StrictAffinity { pools } => {
                write!(f, "no block is left in {}", fills(pools))?;
                f.write_str(
                    " and strict affinity keeps this node from the blocks of others; to free addresses delete pods of \
                     this node, add a pool, or run calicoctl ipam configure --strictaffinity=false",
                )
            }
            Self::BlockLimit { limit, owned } => write!(
                f,
                "this node has {owned} blocks and may have {limit}; delete pods of this node or raise the limit with \
                 calicoctl ipam configure --max-blocks-per-host"
            ),
            Self::AutoAllocateOff => f.write_str(
                "this node's blocks are full and nodes may not claim blocks; set autoAllocateBlocks in the IPAM \
                 configuration, or delete pods of this node",
            ),
            Self::Reserved { pools } => {
                write!(f, "every free address in {} is reserved", fills(pools))?;
                f.write_str("; narrow an IPReservation, delete pods, or add a pool")
            }
        }
    }
}

fn fills(pools: &[PoolFill]) -> String {
    /// More would not fit an event.
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = pools
        .iter()
        .take(SHOWN)
        .map(|fill| {
            format!(
                "pool {} {} ({} of {} blocks exist, {} of this node)",
                fill.pool, fill.cidr, fill.claimed, fill.blocks, fill.own
            )
        })
        .collect();
    if pools.len() > SHOWN {
        parts.push(format!("{} more pools", pools.len() - SHOWN));
    }
    parts.join(" and ")
}

/// The account of one request for addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explain {
    /// The node that asked.
    pub node: String,
    /// Family.
    #[serde(serialize_with = "as_text")]
    pub version: IpVersion,
    /// Addresses wanted.
    pub wanted: usize,
    /// Addresses found.
    pub assigned: usize,
    /// Pools of the family and what became of each.
    pub pools: Vec<Considered>,
    /// Blocks tried, in order.
    pub blocks: Vec<BlockTried>,
    /// Why it was not enough; `None` if it was.
    pub shortage: Option<Shortage>,
}

impl Explain {
    /// An account with nothing in it yet.
    pub fn new(node: impl Into<String>, version: IpVersion, wanted: usize) -> Self {
        Self {
            node: node.into(),
            version,
            wanted,
            assigned: 0,
            pools: Vec::new(),
            blocks: Vec::new(),
            shortage: None,
        }
    }

    /// Notes what came of a block.
    pub fn tried(&mut self, block: Cidr, outcome: BlockOutcome) {
        self.blocks.push(BlockTried { block, outcome });
    }
}

impl fmt::Display for Explain {
    /// One line of at most 900 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line =
            format!("Assigned {} out of {} requested {} addresses", self.assigned, self.wanted, self.version);
        if let Some(shortage) = &self.shortage {
            line.push_str(&format!(" on node {}: {shortage}", self.node));
        }
        let line = line.replace(['\n', '\r'], " ");
        match line.char_indices().nth(MAX_LINE - 1) {
            Some((cut, _)) if line.chars().count() > MAX_LINE => write!(f, "{}…", &line[..cut]),
            _ => f.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(count: usize, name: &str) -> Explain {
        let mut pool = Pool::with_defaults(name, "192.168.0.0/28".parse().unwrap());
        pool.block_size = 29;
        let blocks: [Cidr; 2] = ["192.168.0.0/29".parse().unwrap(), "192.168.0.8/29".parse().unwrap()];
        let fill = PoolFill::of(&pool, [(&blocks[0], true), (&blocks[1], false)]);
        let mut explain = Explain::new("n1", IpVersion::V4, 1);
        explain.shortage = Some(Shortage::PoolsFull { pools: vec![fill; count] });
        explain
    }

    #[test]
    fn a_full_pool_is_named_with_what_frees_addresses() {
        assert_eq!(
            full(1, "default-ipv4-ippool").to_string(),
            "Assigned 0 out of 1 requested IPv4 addresses on node n1: no address is free in pool default-ipv4-ippool \
             192.168.0.0/28 (2 of 2 blocks exist, 1 of this node); to free addresses delete pods, or release leaked ones \
             (calicoctl ipam check, calicoctl ipam release --ip ADDRESS), or add a pool"
        );
    }

    #[test]
    fn the_line_fits_an_event_however_long_the_names_are() {
        let line = full(50, &"p".repeat(253)).to_string();
        assert_eq!(line.chars().count(), 900);
        assert!(line.ends_with('…'));
        assert!(full(50, "p").to_string().chars().count() < 900);
    }

    #[test]
    fn the_account_is_plain_data() {
        let mut explain = full(1, "p");
        explain.tried("192.168.0.0/29".parse().unwrap(), BlockOutcome::Full);
        let value = serde_json::to_value(&explain).unwrap();
        assert_eq!(value["blocks"][0]["block"], "192.168.0.0/29");
        assert_eq!(value["shortage"]["kind"], "poolsFull");
        assert_eq!(value["shortage"]["pools"][0]["claimed"], 2);
    }
}
