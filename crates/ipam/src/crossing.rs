//! Blocks that lie across each other, as only a hand can make them: what two of them hold is given to nobody (invariants 1, 4).
//!
//! Which of two such blocks is right nobody but an operator can say. What is held in either stays held and can be given
//! back there; the addresses that both have wait until one of the blocks is gone.

use crate::reservations::ReservationSet;
use crate::seen::AllBlocks;
use api::Cidr;

/// Two blocks of which one lies in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crossing {
    /// The smaller: all of its addresses are in the other too.
    pub block: Cidr,
    /// The smallest of those around it.
    pub other: Cidr,
}

/// Every block among `cidrs` that lies in another, each once, in ascending order.
pub fn crossings(cidrs: impl IntoIterator<Item = Cidr>) -> Vec<Crossing> {
    let mut cidrs: Vec<Cidr> = cidrs.into_iter().collect();
    // The larger of two that begin at the same address comes first.
    cidrs.sort_unstable();
    cidrs.dedup();
    let mut around: Vec<Cidr> = Vec::new();
    let mut found = Vec::new();
    for block in cidrs {
        while around.last().is_some_and(|other| !other.contains_cidr(block)) {
            around.pop();
        }
        found.extend(around.last().map(|other| Crossing { block, other: *other }));
        around.push(block);
    }
    found
}

/// Every address that two of all blocks have, those that cannot be understood included: they may hold any of theirs.
pub(crate) fn shared(all: &AllBlocks) -> ReservationSet {
    let blocks = all.blocks.iter().map(|seen| seen.value.cidr);
    let found = crossings(blocks.chain(all.unreadable.iter().copied()));
    ReservationSet::of_cidrs(found.iter().map(|crossing| crossing.block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_told_with_the_smallest_that_is_around_it() {
        let texts = [
            "10.0.0.12/30",
            "fd00::/122",
            "10.0.0.0/28",
            "10.0.0.4/30",
            "10.0.0.0/29",
            "10.0.0.4/30",
            "10.0.0.16/28",
            "10.0.0.32/27",
        ];
        let found = crossings(texts.map(|text| text.parse().unwrap()));
        let told: Vec<String> =
            found.iter().map(|crossing| format!("{} in {}", crossing.block, crossing.other)).collect();
        assert_eq!(
            told,
            ["10.0.0.0/29 in 10.0.0.0/28", "10.0.0.4/30 in 10.0.0.0/29", "10.0.0.12/30 in 10.0.0.0/28"]
        );
    }

    #[test]
    fn blocks_side_by_side_share_nothing() {
        let texts = ["10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/29", "::/122", "0.0.0.0/32"];
        assert_eq!(crossings(texts.map(|text| text.parse().unwrap())), []);
    }
}
