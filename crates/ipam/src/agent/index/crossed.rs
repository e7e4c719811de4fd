//! Which blocks of the index lie across each other (see [`crate::crossing`]), kept as they come and go.

use super::Index;
use crate::crossing::Crossing;
use api::Cidr;
use std::collections::BTreeMap;
use std::net::IpAddr;

impl Index {
    /// Notes which blocks lie in `cidr`, which is new, and which it lies in.
    pub(super) fn cross(&mut self, cidr: Cidr) {
        for block in self.overlapping(cidr).into_iter().filter(|other| cidr.contains_cidr(*other)) {
            self.cross_in(block);
        }
    }

    /// Notes the smallest block around this one, if there is any.
    pub(super) fn cross_in(&mut self, block: Cidr) {
        let mut around =
            (0..block.prefix()).rev().filter_map(|prefix| Cidr::containing(block.network(), prefix));
        match around.find(|wider| self.entries.contains_key(wider)) {
            Some(other) if self.crossed.insert(block, other) == Some(other) => {}
            Some(other) => self.untold.push(Crossing { block, other }),
            None => {
                self.crossed.remove(&block);
            }
        }
    }

    /// Blocks that lie in another one: every address of theirs is in two.
    pub(in crate::agent) fn crossed(&self) -> &BTreeMap<Cidr, Cidr> {
        &self.crossed
    }

    /// What came to lie across each other since this was asked last.
    pub(in crate::agent) fn newly_crossed(&mut self) -> Vec<Crossing> {
        std::mem::take(&mut self.untold)
    }

    /// Two blocks that both have `address`, if there are such.
    pub(in crate::agent) fn crossing_at(&self, address: IpAddr) -> Option<Crossing> {
        if self.crossed.is_empty() {
            return None;
        }
        let block = self.holding(address)?;
        self.crossed.get(&block).map(|other| Crossing { block, other: *other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Entry;
    use crate::crossing::crossings;
    use api::Owner;
    use datastore::Revision;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn cidr((low, prefix): (u8, u8)) -> Cidr {
        Cidr::containing(IpAddr::from([10, 0, 0, low]), prefix).unwrap()
    }

    proptest! {
        /// The model looks at all blocks anew.
        #[test]
        fn crossings_are_those_of_the_blocks_that_are_there(
            changes in proptest::collection::vec((any::<bool>(), (0_u8..=31, 27_u8..=31)), 0..30),
            asked in 0_u8..=31,
        ) {
            let (mut index, mut model) = (Index::new(Owner::host("n")), BTreeSet::new());
            for (puts, change) in changes {
                let block = cidr(change);
                if puts {
                    index.put(block, Entry::unreadable(Revision(1), "a hand's"));
                    model.insert(block);
                } else {
                    index.remove(block);
                    model.remove(&block);
                }
                let kept: Vec<Crossing> =
                    index.crossed().iter().map(|(block, other)| Crossing { block: *block, other: *other }).collect();
                prop_assert_eq!(kept, crossings(model.iter().copied()));
            }
            let address = IpAddr::from([10, 0, 0, asked]);
            let holders = model.iter().filter(|block| block.contains(address)).count();
            prop_assert_eq!(index.crossing_at(address).is_some(), holders > 1);
        }
    }

    #[test]
    fn each_crossing_is_told_once() {
        let mut index = Index::new(Owner::host("n"));
        let blocks = [(0, 28), (4, 30)].map(cidr);
        let put = |index: &mut Index, block| index.put(block, Entry::unreadable(Revision(1), "a hand's"));
        put(&mut index, blocks[1]);
        assert_eq!(index.newly_crossed(), []);
        put(&mut index, blocks[0]);
        let crossing = Crossing { block: blocks[1], other: blocks[0] };
        assert_eq!((index.newly_crossed(), index.newly_crossed()), (vec![crossing], Vec::new()));
        put(&mut index, blocks[0]);
        assert_eq!(index.newly_crossed(), []);
        index.remove(blocks[0]);
        put(&mut index, blocks[0]);
        assert_eq!(index.newly_crossed(), [crossing], "it is there again");
    }
}
