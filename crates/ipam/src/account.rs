//! What a release, a DEL or a claim on command came to, block by block. What [`crate::explain`] is for requests of addresses,
//! this is for what gives blocks and addresses back or takes whole blocks.
//!
//! ```
//! use ipam::account::{Account, BlockEnd};
//!
//! let mut account = Account::of("release of net.c1");
//! account.block("10.0.0.64/26".parse()?, BlockEnd::Released { addresses: 2 });
//! assert_eq!(account.to_string(), "release of net.c1: block 10.0.0.64/26 gave back 2 addresses");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::explain::{Few, as_text, cut};
use api::{Cidr, Owner};
use serde::Serialize;
use std::fmt;

/// Longest one-line text in bytes, as that of an [`crate::explain::Explain`].
const MAX_LINE: usize = 900;

/// Longest text of a request or a reason that is kept.
const MAX_REASON: usize = 200;

/// What came of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum BlockEnd {
    /// So many addresses were given back; none, where a handle counted some that the block did not show.
    Released {
        /// How many.
        addresses: usize,
    },
    /// It is empty and its pool no longer for its node, so that it was to be given up too.
    Deselected,
    /// It became the owner's.
    Claimed,
    /// It is the owner's and was before.
    Had,
    /// It is another's, or nobody's with addresses in use.
    Taken {
        /// Who has it.
        #[serde(serialize_with = "owner_as_text")]
        owner: Option<Owner>,
    },
    /// It would lie across another block.
    Across,
    /// There is no such block. What counts on it is left to the collector, which waits whether it is still made.
    Gone,
    /// It was not touched.
    Failed {
        /// Why, cut to a sentence.
        reason: String,
    },
}

fn owner_as_text<S: serde::Serializer>(owner: &Option<Owner>, serializer: S) -> Result<S::Ok, S::Error> {
    match owner {
        Some(owner) => serializer.collect_str(owner),
        None => serializer.serialize_none(),
    }
}

impl BlockEnd {
    /// An error as reason.
    pub fn failed(error: &impl fmt::Display) -> Self {
        Self::Failed { reason: cut(&error.to_string(), MAX_REASON) }
    }

    /// Whether it is what somebody would look for who asks why something was not done.
    fn is_odd(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Across | Self::Gone | Self::Failed { .. })
    }
}

impl fmt::Display for BlockEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released { addresses: 1 } => f.write_str("gave back 1 address"),
            Self::Released { addresses } => write!(f, "gave back {addresses} addresses"),
            Self::Deselected => f.write_str("is empty and in a pool that is no longer for its node"),
            Self::Claimed => f.write_str("was claimed"),
            Self::Had => f.write_str("was the owner's before"),
            Self::Taken { owner: Some(owner) } => write!(f, "is of {owner}"),
            Self::Taken { owner: None } => f.write_str("is nobody's and in use"),
            Self::Across => f.write_str("lies across another block"),
            Self::Gone => f.write_str("does not exist"),
            Self::Failed { reason } => write!(f, "was left alone: {reason}"),
        }
    }
}

/// One block and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockAccount {
    /// The block.
    #[serde(serialize_with = "as_text")]
    pub block: Cidr,
    /// What came of it.
    pub end: BlockEnd,
}

/// The account of one operation on blocks.
///
/// Its lists and texts are cut, as those of an [`crate::explain::Explain`]: less than four kilobytes as JSON, at most 900
/// bytes as a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// What was asked for.
    pub request: String,
    /// Addresses given back.
    pub addresses: usize,
    /// Blocks, in order; those of which something is to be said come first.
    pub blocks: Few<BlockAccount>,
    /// Blocks left alone, taken by others, or missing.
    pub odd: Few<BlockAccount>,
    /// Records that somebody else changed between the reading and the writing, so that both were repeated.
    pub conflicts: Few<String>,
}

impl Account {
    /// An account of `request` with nothing in it yet.
    pub fn of(request: impl AsRef<str>) -> Self {
        Self { request: cut(request.as_ref(), MAX_REASON), ..Self::default() }
    }

    /// Notes what came of a block.
    pub fn block(&mut self, block: Cidr, end: BlockEnd) {
        if let BlockEnd::Released { addresses } = &end {
            self.addresses = self.addresses.saturating_add(*addresses);
        }
        let list = if end.is_odd() { &mut self.odd } else { &mut self.blocks };
        list.push(BlockAccount { block, end });
    }

    /// Notes a record that was changed by somebody else meanwhile.
    pub fn conflict(&mut self, record: &impl fmt::Display) {
        self.conflicts.push(cut(&record.to_string(), MAX_REASON));
    }
}

impl fmt::Display for Account {
    /// One line of at most 900 bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        for list in [&self.odd, &self.blocks] {
            parts.extend(list.listed().iter().map(|one| format!("block {} {}", one.block, one.end)));
            let more = list.total() - list.listed().len();
            if more > 0 {
                parts.push(format!("{more} more blocks"));
            }
        }
        if parts.is_empty() {
            parts.push("nothing was to be done".to_owned());
        }
        if self.conflicts.total() > 0 {
            parts.push(format!("tried again {} times because records changed", self.conflicts.total()));
        }
        let line = format!("{}: {}", self.request, parts.join("; "));
        f.write_str(&cut(&line.replace(['\n', '\r'], " "), MAX_LINE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_does_not_grow_with_what_it_is_of() {
        let mut account = Account::of("x".repeat(5_000));
        let pool: Cidr = "10.0.0.0/8".parse().unwrap();
        for number in 0..1_000 {
            let block = pool.nth_block(26, number).unwrap();
            account.block(block, BlockEnd::Released { addresses: 3 });
            account.block(block, BlockEnd::failed(&"why ".repeat(500)));
            account.conflict(&format!("handle {}", "h".repeat(250)));
        }
        assert_eq!(account.addresses, 3_000);
        let json = serde_json::to_string(&account).unwrap();
        assert!(json.len() < 4_000, "{} bytes", json.len());
        assert!(account.to_string().len() <= 900);
    }

    #[test]
    fn what_was_not_done_is_said_first() {
        let mut account = Account::of("release of h");
        assert_eq!(account.to_string(), "release of h: nothing was to be done");
        account.block("10.0.0.0/30".parse().unwrap(), BlockEnd::Released { addresses: 1 });
        account.block("10.0.0.4/30".parse().unwrap(), BlockEnd::Taken { owner: Some(Owner::host("n2")) });
        account.block("10.0.0.8/30".parse().unwrap(), BlockEnd::Gone);
        account.conflict(&"block 10.0.0.0/30");
        assert_eq!(
            account.to_string(),
            "release of h: block 10.0.0.4/30 is of host:n2; block 10.0.0.8/30 does not exist; block 10.0.0.0/30 gave back \
             1 address; tried again 1 times because records changed"
        );
        let value = serde_json::to_value(&account).unwrap();
        assert_eq!(
            value["odd"]["listed"][0]["end"],
            serde_json::json!({"kind": "taken", "owner": "host:n2"})
        );
    }
}
