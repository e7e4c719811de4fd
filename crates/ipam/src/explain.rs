//! Why a request got what it got: which pools and blocks were tried, and what would free addresses.
//!
//! Pure code does not log. It returns an [`Explain`], which the caller logs, puts into an event, or shows.

use crate::pools::{Considered, Verdict};
use api::{Cidr, IpVersion, Pool};
use serde::{Serialize, Serializer};
use std::fmt;

/// Longest one-line text in bytes: what a Kubernetes event holds, with room for the caller's own words.
const MAX_LINE: usize = 900;

/// Longest name of a record: a handle's may be of any length.
pub(crate) const MAX_RECORD: usize = 200;

/// The first few of a list and how many more there were, so that no account grows with the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Few<T> {
    /// The first of them, at most [`Few::MOST`].
    listed: Vec<T>,
    /// How many are left out.
    left_out: usize,
}

impl<T> Few<T> {
    /// How many are listed at most.
    pub const MOST: usize = 6;

    /// Adds one, or counts it where enough are listed.
    pub fn push(&mut self, item: T) {
        if self.listed.len() < Self::MOST {
            self.listed.push(item);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// Those that are listed.
    pub fn listed(&self) -> &[T] {
        &self.listed
    }

    /// How many there were in all.
    pub fn total(&self) -> usize {
        self.listed.len().saturating_add(self.left_out)
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { listed: Vec::new(), left_out: 0 }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut few = Self::default();
        items.into_iter().for_each(|item| few.push(item));
        few
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(items: Vec<T>) -> Self {
        items.into_iter().collect()
    }
}

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
    /// What it has free is in another block too.
    Crossed,
    /// Another node was quicker.
    LostRace,
    /// It could not be read or written.
    Failed,
    /// It is another owner's, or nobody's, and only own blocks may be used.
    NotOurs,
    /// It does not exist any more.
    Gone,
}

impl fmt::Display for BlockOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Took => "gave addresses",
            Self::Claimed => "was claimed",
            Self::Borrowed => "was borrowed from",
            Self::Full => "is full",
            Self::Crossed => "lies across another block",
            Self::LostRace => "went to another node",
            Self::Failed => "could not be read or written",
            Self::NotOurs => "is another's",
            Self::Gone => "is gone",
        })
    }
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
        pools: Few<PoolFill>,
    },
    /// Every block exists, the node's own are full, and strict affinity forbids the others.
    StrictAffinity {
        /// The pools.
        pools: Few<PoolFill>,
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
        pools: Few<PoolFill>,
    },
    /// The request was refused for a reason that no block could mend.
    Refused {
        /// In words, cut to what fits an event.
        reason: String,
    },
    /// The handle may not hold that many, and holds fewer than are wanted.
    HandleLimit {
        /// Addresses of the family that it may hold.
        limit: u32,
        /// Addresses that it holds.
        held: usize,
    },
}

/// Addresses of the usable pools that are neither free nor held, and what keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Relief {
    /// Released, and cooling down: free again by themselves.
    pub cooling: u64,
    /// Free in existing blocks, and reserved.
    pub reserved: u64,
    /// Free in blocks of other owners, which strict affinity or the block limit keeps from this node.
    pub elsewhere: u64,
    /// Empty blocks of other nodes, which may be had a minute after they were claimed.
    pub empty_blocks: u64,
}

impl fmt::Display for Relief {
    /// Empty, or clauses that each begin with a semicolon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.cooling, "released addresses are cooling down and will be free by themselves"),
            (self.reserved, "free addresses are reserved"),
            (self.elsewhere, "addresses are free in blocks of other owners"),
            (self.empty_blocks, "empty blocks of other nodes may be had a minute after they were claimed"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl Shortage {
    /// A refusal in these words.
    pub fn refused(reason: &str) -> Self {
        Self::Refused { reason: cut(reason, MAX_LINE) }
    }
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
            Self::Refused { reason } => f.write_str(reason),
            Self::HandleLimit { limit, held } => write!(
                f,
                "the handle holds {held} addresses and may hold {limit}; ask for fewer, or release what the handle holds"
            ),
        }
    }
}

fn fills(pools: &Few<PoolFill>) -> String {
    /// More would not fit an event.
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = pools
        .listed()
        .iter()
        .take(SHOWN)
        .map(|fill| {
            format!(
                "pool {} {} ({} of {} blocks exist, {} of this node)",
                fill.pool, fill.cidr, fill.claimed, fill.blocks, fill.own
            )
        })
        .collect();
    if pools.total() > SHOWN {
        parts.push(format!("{} more pools", pools.total() - SHOWN));
    }
    parts.join(" and ")
}

/// The account of one request for addresses of one family.
///
/// Its lists and the selectors in them are cut: its text fits an event, as JSON it is less than nine kilobytes however
/// long the names are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
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
    pub pools: Few<Considered>,
    /// Blocks tried, in order.
    pub blocks: Few<BlockTried>,
    /// Records that somebody else changed between the reading and the writing, so that both were repeated.
    pub conflicts: Few<String>,
    /// Why it was not enough; `None` if it was.
    pub shortage: Option<Shortage>,
    /// What else there is in the usable pools that could come free; told where there is a shortage.
    pub relief: Relief,
}

impl Explain {
    /// An account with nothing in it yet.
    pub fn new(node: impl Into<String>, version: IpVersion, wanted: usize) -> Self {
        Self {
            node: node.into(),
            version,
            wanted,
            assigned: 0,
            pools: Few::default(),
            blocks: Few::default(),
            conflicts: Few::default(),
            shortage: None,
            relief: Relief::default(),
        }
    }

    /// Notes what came of a block.
    pub fn tried(&mut self, block: Cidr, outcome: BlockOutcome) {
        self.blocks.push(BlockTried { block, outcome });
    }

    /// Notes a record that was changed by somebody else meanwhile.
    pub fn conflict(&mut self, record: &impl fmt::Display) {
        self.conflicts.push(cut(&record.to_string(), MAX_RECORD));
    }

    /// Notes what became of the pools; those that were simply not asked for come last.
    pub fn considered(&mut self, mut pools: Vec<Considered>) {
        /// A selector is a user's text of any length.
        const SELECTOR: usize = 120;
        pools.sort_by_key(|pool| matches!(pool.verdict, Verdict::NotRequested));
        for pool in &mut pools {
            if let Verdict::NodeSelector(selector) | Verdict::NamespaceSelector(selector) = &mut pool.verdict
            {
                *selector = cut(selector, SELECTOR);
            }
        }
        self.pools = pools.into();
    }
}

impl fmt::Display for Explain {
    /// One line of at most 900 bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Pools and blocks named one by one: the sentence about the shortage must keep its room.
        const SHOWN: usize = 3;
        let mut line = if self.wanted == 0 {
            format!("Looked for a block of {} addresses", self.version)
        } else {
            format!("Assigned {} out of {} requested {} addresses", self.assigned, self.wanted, self.version)
        };
        if let Some(shortage) = &self.shortage {
            line.push_str(&format!(" on node {}: {shortage}{}", self.node, self.relief));
            let passed_over: Vec<&Considered> =
                self.pools.listed().iter().filter(|pool| pool.verdict != Verdict::Usable).collect();
            for pool in passed_over.iter().take(SHOWN) {
                line.push_str(&format!("; pool {} {} is {}", pool.pool, pool.cidr, pool.verdict));
            }
            // That blocks of a full pool are full goes without saying.
            let odd = |tried: &&BlockTried| {
                use BlockOutcome::{Crossed, Failed, Gone, LostRace, NotOurs};
                matches!(tried.outcome, Crossed | LostRace | Failed | NotOurs | Gone)
            };
            let odd = self.blocks.listed().iter().filter(odd).take(SHOWN);
            line.extend(odd.map(|tried| format!("; block {} {}", tried.block, tried.outcome)));
        }
        if self.conflicts.total() > 0 {
            line.push_str(&format!("; tried again {} times because records changed", self.conflicts.total()));
        }
        f.write_str(&cut(&line.replace(['\n', '\r'], " "), MAX_LINE))
    }
}

/// The text, or as much of it as fits `most` bytes with an ellipsis.
pub(crate) fn cut(text: &str, most: usize) -> String {
    const ELLIPSIS: char = '…';
    if text.len() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(ELLIPSIS.len_utf8());
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{ELLIPSIS}", &text[..end])
}

/// An error with the account of how it came to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained<E, A = Explain> {
    /// What went wrong.
    pub error: E,
    /// What was considered before.
    pub explain: A,
}

impl<E: fmt::Display, A> fmt::Display for Explained<E, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<E: std::error::Error, A: fmt::Debug> std::error::Error for Explained<E, A> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
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
        explain.shortage = Some(Shortage::PoolsFull { pools: vec![fill; count].into() });
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
        assert_eq!(line.len(), 900);
        assert!(line.ends_with('…'));
        assert!(full(50, "p").to_string().len() < 900);
        assert_eq!(cut("äöü", 5), "ä…");
    }

    fn crowded(name: &str) -> Explain {
        let mut explain = full(1000, name);
        let considered =
            |verdict| Considered { pool: name.to_owned(), cidr: "192.168.0.0/28".parse().unwrap(), verdict };
        explain.considered(vec![considered(Verdict::NodeSelector(name.repeat(100))); 1000]);
        for index in 0..1000 {
            let blocks: Cidr = "10.0.0.0/8".parse().unwrap();
            let block = blocks.nth_block(26, index).unwrap();
            explain.tried(block, BlockOutcome::Full);
            explain.conflict(&format!(
                "block {block} of {}",
                if name.len() > 9 { "h".repeat(100_000) } else { String::new() }
            ));
        }
        explain
    }

    #[test]
    fn the_account_does_not_grow_with_pools_and_blocks() {
        let explain = crowded("pool");
        assert!(explain.to_string().len() <= 900);
        assert_eq!((explain.blocks.listed().len(), explain.blocks.total()), (6, 1000));
        let value = serde_json::to_value(&explain).unwrap();
        assert_eq!(value["blocks"]["leftOut"], 994);
        assert_eq!(value["pools"]["leftOut"], 994);
        assert_eq!(value["conflicts"]["leftOut"], 994);
        assert!(serde_json::to_string(&explain).unwrap().len() < 3000);
        let long = crowded(&"p".repeat(253));
        assert_eq!(long.to_string().len(), 900);
        assert!(serde_json::to_string(&long).unwrap().len() < 9000);
    }

    #[test]
    fn what_would_come_free_is_said() {
        let mut explain = full(1, "p");
        explain.relief = Relief { cooling: 3, ..Relief::default() };
        let line = explain.to_string();
        assert!(
            line.contains("; 3 released addresses are cooling down and will be free by themselves"),
            "{line}"
        );
    }

    #[test]
    fn the_account_is_plain_data() {
        let mut explain = full(1, "p");
        explain.tried("192.168.0.0/29".parse().unwrap(), BlockOutcome::Full);
        let value = serde_json::to_value(&explain).unwrap();
        assert_eq!(value["blocks"]["listed"][0]["block"], "192.168.0.0/29");
        assert_eq!(value["shortage"]["kind"], "poolsFull");
        assert_eq!(value["shortage"]["pools"]["listed"][0]["claimed"], 2);
    }
}
