//! What a handle counts and no block holds: taking it off, past whoever may be about to write the block (invariant 5).

use crate::block;
use crate::mistake::{Mistake, made};
use crate::seen::Seen;
use api::{Block, Cidr, Handle};
use datastore::{Record, Write};
use std::collections::BTreeMap;

/// The writes that make a handle count what these blocks hold of it, and nothing in those that are `gone`; its other entries stay.
/// `None`: it counts no more than that.
///
/// The blocks must have been read after the handle. Those that it counts too much in are written first, unchanged but for their
/// number: an ADD that was paused between its handle and its block finds another revision than it planned on, and looks again.
/// For a block that is gone there is no such fence; that is the caller's.
pub(crate) fn plan_lowering(
    handle: &Seen<Handle>,
    blocks: impl IntoIterator<Item = Seen<Block>>,
    gone: &[Cidr],
) -> Option<Vec<Write>> {
    let mut held: BTreeMap<Cidr, u32> = gone.iter().map(|cidr| (*cidr, 0)).collect();
    let mut writes = Vec::new();
    for seen in blocks {
        let Seen { value: mut block, version, .. } = seen;
        let found = block::count_of(&block, &handle.value.id);
        held.insert(block.cidr, found);
        let counted = handle.value.blocks.get(&block.cidr).copied().unwrap_or(0);
        if found < counted && !made(Mistake::HandleCollected) {
            block::advance(&mut block);
            writes.push(Write::Update(Record::Block(block), version));
        }
    }
    let blocks = true_counts(&handle.value, &held);
    if blocks == handle.value.blocks && !blocks.is_empty() {
        return None;
    }
    writes.push(if blocks.is_empty() {
        Write::Delete(Record::Handle(handle.value.clone()), handle.version.clone())
    } else {
        Write::Update(Record::Handle(Handle { blocks, ..handle.value.clone() }), handle.version.clone())
    });
    Some(writes)
}

/// What a handle should count, given some of the blocks that it names as they are now; other entries stay as they are.
fn true_counts(handle: &Handle, held: &BTreeMap<Cidr, u32>) -> BTreeMap<Cidr, u32> {
    handle
        .blocks
        .iter()
        .map(|(cidr, count)| match held.get(cidr) {
            Some(found) => (*cidr, *count.min(found)),
            None => (*cidr, *count),
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Owner;
    use datastore::{Revision, Version};
    use jiff::Timestamp;

    fn seen<T>(value: T) -> Seen<T> {
        Seen { value, version: Version { revision: Revision(7), uid: None }, created: None }
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    /// A block that holds its first address for the handle `h`, if so wanted.
    fn block(text: &str, held: bool) -> Seen<Block> {
        let mut block = block::new_block(cidr(text), &Owner::host("n"), Timestamp::UNIX_EPOCH);
        if held {
            let address = block.cidr.network();
            block::assign(&mut block, address, Some("h"), &BTreeMap::new(), None).unwrap();
        }
        seen(block)
    }

    fn handle(blocks: &[(&str, u32)]) -> Seen<Handle> {
        let blocks = blocks.iter().map(|(text, count)| (cidr(text), *count)).collect();
        seen(Handle { id: "h".to_owned(), blocks, deleted: false })
    }

    fn keys(writes: Option<Vec<Write>>) -> Vec<String> {
        writes.unwrap_or_default().iter().map(|write| write.key().to_string()).collect()
    }

    #[test]
    fn a_block_is_moved_on_before_its_entry_is_taken_off() {
        let counts = handle(&[("10.0.0.0/30", 1), ("10.0.0.4/30", 2)]);
        let blocks = [block("10.0.0.0/30", false), block("10.0.0.4/30", true)];
        let before: Vec<u64> = blocks.iter().map(|seen| seen.value.sequence_number).collect();
        let writes = plan_lowering(&counts, blocks, &[]);
        let all = writes.clone().unwrap();
        assert_eq!(keys(writes), ["block 10.0.0.0/30", "block 10.0.0.4/30", "handle h"]);
        for (write, before) in all.iter().zip(before) {
            let Write::Update(Record::Block(block), _) = write else { panic!("{write:?}") };
            assert_eq!(block.sequence_number, before + 1);
        }
        let Some(Write::Update(Record::Handle(left), _)) = all.last() else { panic!("{all:?}") };
        assert_eq!(left.blocks, BTreeMap::from([(cidr("10.0.0.4/30"), 1)]));
    }

    #[test]
    fn what_is_counted_rightly_or_too_low_is_left_alone() {
        for count in [0, 1] {
            let counts = handle(&[("10.0.0.0/30", count)]);
            assert_eq!(plan_lowering(&counts, [block("10.0.0.0/30", true)], &[]).is_some(), count == 0);
        }
        assert_eq!(plan_lowering(&handle(&[("10.0.0.0/30", 1)]), [], &[]), None);
    }

    #[test]
    fn a_handle_that_holds_nothing_any_more_is_deleted() {
        let counts = handle(&[("10.0.0.0/30", 1)]);
        let writes = plan_lowering(&counts, [], &[cidr("10.0.0.0/30")]).unwrap();
        assert!(matches!(&writes[..], [Write::Delete(Record::Handle(kept), _)] if *kept == counts.value));
        assert!(matches!(&plan_lowering(&handle(&[]), [], &[]).unwrap()[..], [Write::Delete(..)]));
    }
}
