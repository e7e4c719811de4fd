//! What to write to give addresses back: the block first, then its handles (invariant I23).

use crate::block::{self, ReleaseError, Released};
use crate::plan::{BlockPlan, Handles, handle_writes};
use crate::seen::Seen;
use api::{Block, Cidr, Handle};
use datastore::{Record, Write};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// One commit that gives back what a handle holds in some blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasePlan {
    /// Writes in order: blocks, then the handle.
    pub writes: Vec<Write>,
    /// For each block write, in their order, how many addresses it gives back.
    pub counts: Vec<(Cidr, usize)>,
    /// Blocks that are empty afterwards and have an owner.
    pub emptied: Vec<Block>,
}

/// Plans the release of everything that a handle holds in these blocks, as read after the handle, and takes them off it.
///
/// A block that holds nothing of the handle loses its entry all the same (quirk Q9), and is then written too, unchanged:
/// where a handle is written before its block, somebody may be about to write this block with an address for it, and
/// fails. An empty block without owner is deleted.
pub fn plan_release_of_handle(
    handle: &Seen<Handle>,
    blocks: &[Seen<Block>],
    cooldown_seconds: u32,
    now: Timestamp,
) -> ReleasePlan {
    let mut plan = ReleasePlan::default();
    let mut left = handle.value.clone();
    for seen in blocks {
        let mut block = seen.value.clone();
        left.blocks.remove(&block.cidr);
        let freed = block::release_by_handle(&mut block, &left.id, None, cooldown_seconds, now).len();
        let (write, after) = block_write(seen, block);
        plan.writes.push(write);
        plan.counts.push((seen.value.cidr, freed));
        let is_emptied = |block: &Block| freed > 0 && block.affinity.is_some() && block::is_empty(block);
        plan.emptied.extend(after.filter(is_emptied));
    }
    plan.writes.push(if left.blocks.is_empty() {
        // As it was seen, so that a commit that has to be undone can make it again.
        Write::Delete(Record::Handle(handle.value.clone()), handle.version.clone())
    } else {
        Write::Update(Record::Handle(left), handle.version.clone())
    });
    plan
}

/// Plans the release of particular addresses of a block as read.
///
/// `handles` may lack handles that are only known once this has answered: [`BlockPlan::writes`] then leaves them alone.
///
/// # Errors
/// [`ReleaseError`]: nothing of this block is released.
pub fn plan_release(
    seen: &Seen<Block>,
    releases: &[block::Release],
    handles: &Handles,
    cooldown_seconds: u32,
    now: Timestamp,
) -> Result<(BlockPlan, Released), ReleaseError> {
    plan_release_again(seen, releases, &BTreeSet::new(), handles, cooldown_seconds, now)
}

/// As [`plan_release`], after an attempt that may have given addresses back and not taken them off the handles `owing`:
/// their counts become what the block says. The block is then written in any case, as in [`plan_release_of_handle`].
pub(crate) fn plan_release_again(
    seen: &Seen<Block>,
    releases: &[block::Release],
    owing: &BTreeSet<String>,
    handles: &Handles,
    cooldown_seconds: u32,
    now: Timestamp,
) -> Result<(BlockPlan, Released), ReleaseError> {
    let mut block = seen.value.clone();
    let outcome = block::release(&mut block, releases, cooldown_seconds, now)?;
    if outcome.ordinals.is_empty() && owing.is_empty() {
        return Ok((BlockPlan { block: Some(block), writes: Vec::new(), taken: Vec::new() }, outcome));
    }
    let ids: BTreeSet<&str> = outcome.by_handle.keys().chain(owing).map(String::as_str).collect();
    let of_handles = handle_writes(ids, handles, &block);
    let (write, after) = block_write(seen, block);
    let mut writes = vec![write];
    writes.extend(of_handles);
    Ok((BlockPlan { block: after, writes, taken: Vec::new() }, outcome))
}

/// The write of a changed block, and the block as it will be: gone if nobody owns it and nothing is in it.
fn block_write(seen: &Seen<Block>, mut block: Block) -> (Write, Option<Block>) {
    if block.affinity.is_none() && block::is_empty(&block) {
        // The half-deleted object that a peer may see holds no address any more.
        return (Write::Delete(Record::Block(block), seen.version.clone()), None);
    }
    block::advance(&mut block);
    (Write::Update(Record::Block(block.clone()), seen.version.clone()), Some(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Owner;
    use datastore::{Revision, Version};
    use std::collections::BTreeMap;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn seen<T>(value: T) -> Seen<T> {
        Seen { value, version: Version { revision: Revision(7), uid: None }, created: Some(now()) }
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    /// A block that holds its second address for handle `a`, if so wanted.
    fn block(text: &str, held: bool) -> Block {
        let mut block = block::new_block(cidr(text), &Owner::host("n"), now());
        if held {
            let address = block.cidr.address(api::Ordinal(1)).unwrap();
            block::assign(&mut block, address, Some("a"), &BTreeMap::new(), None).unwrap();
        }
        block
    }

    fn handle(blocks: &[&str]) -> Seen<Handle> {
        let blocks = blocks.iter().map(|text| (cidr(text), 1)).collect();
        seen(Handle { id: "a".to_owned(), blocks, deleted: false })
    }

    fn keys(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|write| write.key().to_string()).collect()
    }

    fn plan(handle: &Seen<Handle>, blocks: Vec<Block>) -> ReleasePlan {
        let blocks: Vec<_> = blocks.into_iter().map(seen).collect();
        plan_release_of_handle(handle, &blocks, 0, now())
    }

    #[test]
    fn blocks_are_written_first_and_the_handle_that_holds_nothing_is_deleted() {
        let both = handle(&["10.0.0.0/30", "10.0.0.4/30"]);
        let mut unowned = block("10.0.0.4/30", true);
        unowned.affinity = None;
        let plan = plan(&both, vec![block("10.0.0.0/30", true), unowned]);
        assert_eq!(keys(&plan.writes), ["block 10.0.0.0/30", "block 10.0.0.4/30", "handle a"]);
        assert!(matches!(plan.writes[1], Write::Delete(Record::Block(_), _)));
        // As it was: an undone commit makes it again from this.
        assert!(matches!(&plan.writes[2], Write::Delete(Record::Handle(kept), _) if *kept == both.value));
        assert_eq!(plan.counts, [(cidr("10.0.0.0/30"), 1), (cidr("10.0.0.4/30"), 1)]);
        assert_eq!(plan.emptied.len(), 1);
    }

    #[test]
    fn a_handle_without_addresses_loses_its_entry_and_nobody_gives_it_one_meanwhile() {
        let two = handle(&["10.0.0.0/30", "10.0.0.8/30"]);
        let plan = plan(&two, vec![block("10.0.0.0/30", false)]);
        assert_eq!(keys(&plan.writes), ["block 10.0.0.0/30", "handle a"]);
        let Write::Update(Record::Block(written), _) = &plan.writes[0] else { panic!("{:?}", plan.writes) };
        assert!(written.sequence_number > block("10.0.0.0/30", false).sequence_number);
        let Write::Update(Record::Handle(left), _) = &plan.writes[1] else { panic!("{:?}", plan.writes) };
        assert_eq!(left.blocks.keys().collect::<Vec<_>>(), [&cidr("10.0.0.8/30")]);
        assert_eq!((plan.counts, plan.emptied), (vec![(cidr("10.0.0.0/30"), 0)], Vec::new()));
    }

    #[test]
    fn what_an_attempt_left_on_a_handle_is_taken_off_by_the_next() {
        let handles = Handles::from([("a".to_owned(), handle(&["10.0.0.0/30"]))]);
        let owing = BTreeSet::from(["a".to_owned()]);
        let freed = seen(block("10.0.0.0/30", false));
        let (plan, _) = plan_release_again(&freed, &[], &owing, &handles, 0, now()).unwrap();
        assert_eq!(keys(&plan.writes), ["block 10.0.0.0/30", "handle a"]);
        assert!(matches!(plan.writes[1], Write::Delete(..)));
        let (nothing, _) = plan_release(&freed, &[], &handles, 0, now()).unwrap();
        assert!(nothing.writes.is_empty());
    }
}
