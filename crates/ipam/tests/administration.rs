//! Affinities claimed and given up on command, and what is done for a node as a whole: outcomes, calls, lost answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use api::{
    Affinity, AffinityNaming, AffinityState, Block, Cidr, IpVersion, IpamConfig, Node, Owner, Pool,
    Reservation,
};
use datastore::memory::Memory;
use datastore::{Datastore, Kind, Record, Scope, Write};
use futures::executor::block_on;
use ipam::administration::{
    AffinityRequestError, claim_affinity, release_affinities_in, release_affinities_of,
    release_affinities_within, release_block_affinity,
};
use ipam::affinity::{ReleaseAffinityError, ReleaseTerms};
use ipam::assign::{AssignRequest, EnsureBlockError, assign, ensure_block};
use ipam::block;
use ipam::clock::FixedClock;
use ipam::explain::BlockOutcome;
use ipam::host::{remove_host, upgrade_host};
use ipam::host_reserved::HostReserved;
use ipam::plan::Want;
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use std::collections::BTreeMap;
use support::{Calls, Counting, losses};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const LATER: FixedClock = FixedClock(Timestamp::constant(100, 0));

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

async fn create(store: &Memory, record: Record) {
    store.commit(&[], &[Write::Create(record)]).await.unwrap();
}

/// A pool of four blocks of four addresses, and two nodes.
async fn lab() -> Memory {
    let store = Memory::new().with_clock(|| Timestamp::UNIX_EPOCH);
    let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
    pool.block_size = 30;
    create(&store, Record::Pool(pool)).await;
    for name in ["a", "b"] {
        create(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() })).await;
    }
    store
}

async fn own(store: &Memory, node: &str, blocks: &str) {
    let claimed = claim_affinity(store, &CLOCK, cidr(blocks), &Owner::host(node)).await.unwrap();
    assert!(claimed.failed.is_empty());
}

/// One address of the block of `node`, which has one only.
async fn use_one(store: &Memory, node: &str) {
    let want = Want { count: 1, handle: Some(format!("h-{node}")), attributes: BTreeMap::new() };
    let request = AssignRequest::new(Owner::host(node), IpVersion::V4, api::Use::Workload, want);
    assert_eq!(assign(store, &CLOCK, &request).await.unwrap().taken.len(), 1);
}

async fn owner_of(store: &Memory, block: &str) -> Option<String> {
    let found = seen::block(store, cidr(block)).await.unwrap()?;
    Some(found.value.affinity.map_or_else(|| "nobody".to_owned(), |owner| owner.name))
}

async fn state_of(store: &Memory, node: &str, block: &str) -> Option<AffinityState> {
    let found = seen::affinity(store, &Owner::host(node), cidr(block)).await.unwrap();
    found.filter(|found| found.value.owner == Owner::host(node)).map(|found| found.value.state)
}

fn texts(cidrs: &[Cidr]) -> Vec<String> {
    cidrs.iter().map(Cidr::to_string).collect()
}

#[test]
fn a_claim_takes_what_is_free_and_says_what_is_not() {
    block_on(async {
        let store = lab().await;
        own(&store, "b", "10.0.0.4/30").await;
        own(&store, "a", "10.0.0.8/30").await;
        let claimed = claim_affinity(&store, &CLOCK, cidr("10.0.0.0/28"), &Owner::host("a")).await.unwrap();
        assert_eq!(texts(&claimed.claimed), ["10.0.0.0/30", "10.0.0.8/30", "10.0.0.12/30"]);
        assert_eq!(texts(&claimed.failed), ["10.0.0.4/30"]);
        for block in claimed.claimed {
            assert_eq!(state_of(&store, "a", &block.to_string()).await, Some(AffinityState::Confirmed));
        }
    });
}

#[test]
fn a_claim_never_crosses_a_block_of_another_size() {
    block_on(async {
        let store = lab().await;
        let stray = block::new_block(cidr("10.0.0.0/29"), &Owner::host("b"), CLOCK.0);
        create(&store, Record::Block(stray)).await;
        let claimed = claim_affinity(&store, &CLOCK, cidr("10.0.0.0/28"), &Owner::host("a")).await.unwrap();
        assert_eq!(texts(&claimed.failed), ["10.0.0.0/30", "10.0.0.4/30"]);
        assert_eq!(claimed.claimed.len(), 2);
    });
}

#[test]
fn absurd_claims_are_refused_before_anything_is_written() {
    block_on(async {
        let store = lab().await;
        let mut wide = Pool::with_defaults("wide", cidr("11.0.0.0/8"));
        wide.block_size = 32;
        create(&store, Record::Pool(wide)).await;
        let mut off = Pool::with_defaults("off", cidr("12.0.0.0/24"));
        off.disabled = true;
        create(&store, Record::Pool(off)).await;
        let before = store.revision();
        let refused =
            async |text| claim_affinity(&store, &CLOCK, cidr(text), &Owner::host("a")).await.unwrap_err();
        assert!(matches!(refused("11.0.0.0/8").await, AffinityRequestError::TooLarge { .. }));
        assert!(matches!(refused("10.0.0.0/20").await, AffinityRequestError::TooLarge { .. }));
        assert!(matches!(refused("12.0.0.0/24").await, AffinityRequestError::NoPool { .. }));
        assert_eq!(
            refused("10.0.0.4/31").await.to_string(),
            "10.0.0.4/31 is smaller than the minimum, a block of 30 bits: name whole blocks"
        );
        assert_eq!(store.revision(), before);
    });
}

#[test]
fn given_up_blocks_are_deleted_when_empty_and_left_without_owner_when_used() {
    block_on(async {
        let store = lab().await;
        own(&store, "a", "10.0.0.0/30").await;
        use_one(&store, "a").await;
        own(&store, "a", "10.0.0.4/30").await;
        own(&store, "b", "10.0.0.8/30").await;
        let within = async |must_be_empty| {
            release_affinities_within(&store, &CLOCK, cidr("10.0.0.0/28"), &Owner::host("a"), must_be_empty)
                .await
        };
        let refused = within(true).await.unwrap_err();
        assert!(matches!(refused, AffinityRequestError::NotReleased(ReleaseAffinityError::NotEmpty { .. })));
        assert_eq!(within(false).await, Ok(2));
        assert_eq!(within(false).await, Ok(0));
        assert_eq!(owner_of(&store, "10.0.0.0/30").await.as_deref(), Some("nobody"));
        assert_eq!(owner_of(&store, "10.0.0.4/30").await, None);
        assert_eq!(owner_of(&store, "10.0.0.8/30").await.as_deref(), Some("b"));
        assert_eq!(state_of(&store, "a", "10.0.0.0/30").await, None);
    });
}

#[test]
fn a_block_is_given_up_by_whom_it_names() {
    block_on(async {
        let store = lab().await;
        own(&store, "a", "10.0.0.0/30").await;
        let seen = seen::block(&store, cidr("10.0.0.0/30")).await.unwrap().unwrap().value;
        assert_eq!(release_block_affinity(&store, &CLOCK, &seen, true).await, Ok(true));
        assert_eq!(release_block_affinity(&store, &CLOCK, &seen, true).await, Ok(false));
        let nobodys = Block { affinity: None, ..seen };
        let counting = Counting::new(store);
        assert_eq!(release_block_affinity(&counting, &CLOCK, &nobodys, true).await, Ok(false));
        assert_eq!(counting.calls(), Calls::default());
    });
}

#[test]
fn the_blocks_of_a_pool_are_given_up_whoever_has_them() {
    block_on(async {
        let store = lab().await;
        own(&store, "a", "10.0.0.0/30").await;
        own(&store, "b", "10.0.0.4/30").await;
        use_one(&store, "b").await;
        // An affinity that lost its race long ago goes too.
        let lost = Affinity {
            owner: Owner::host("a"),
            cidr: cidr("10.0.0.4/30"),
            state: AffinityState::Pending,
            deleted: false,
        };
        create(&store, Record::Affinity(lost)).await;
        assert_eq!(release_affinities_in(&store, &CLOCK, cidr("10.0.0.0/28")).await, Ok(2));
        assert_eq!(owner_of(&store, "10.0.0.4/30").await.as_deref(), Some("nobody"));
        assert_eq!(state_of(&store, "a", "10.0.0.4/30").await, None);
        assert_eq!(state_of(&store, "b", "10.0.0.4/30").await, None);
    });
}

#[test]
fn a_node_that_is_removed_leaves_no_affinity_and_no_block_in_its_name() {
    block_on(async {
        for naming in [AffinityNaming::PerNode, AffinityNaming::PerBlock] {
            let store = lab().await.with_naming(naming);
            own(&store, "a", "10.0.0.0/30").await;
            use_one(&store, "a").await;
            own(&store, "a", "10.0.0.4/30").await;
            own(&store, "b", "10.0.0.12/30").await;
            // Affinities in every state without a block, and a block whose affinity somebody deleted by hand.
            let stray = block::new_block(cidr("10.0.0.8/30"), &Owner::host("a"), CLOCK.0);
            create(&store, Record::Block(stray)).await;
            for (block, state) in [
                ("10.0.1.0/30", AffinityState::Pending),
                ("10.0.2.0/30", AffinityState::Confirmed),
                ("10.0.3.0/30", AffinityState::PendingDeletion),
            ] {
                let affinity = Affinity { owner: Owner::host("a"), cidr: cidr(block), state, deleted: false };
                create(&store, Record::Affinity(affinity)).await;
            }
            assert_eq!(remove_host(&store, &CLOCK, "a").await, Ok(3));
            let affinities: Vec<Seen<Affinity>> =
                seen::list(&store, &Scope::All(Kind::Affinity)).await.unwrap();
            assert_eq!(affinities.len(), 1, "{affinities:?}");
            let blocks = seen::blocks(&store).await.unwrap();
            let owners: Vec<_> = blocks
                .iter()
                .map(|seen| seen.value.affinity.as_ref().map(|owner| owner.name.as_str()))
                .collect();
            assert_eq!(owners, [None, Some("b")]);
            assert_eq!(remove_host(&store, &CLOCK, "a").await, Ok(0));
        }
    });
}

#[test]
fn an_affinity_without_block_outlives_a_release_only_while_its_claim_may_be_under_way() {
    block_on(async {
        for (state, left) in [
            (AffinityState::Pending, true),
            (AffinityState::Confirmed, true),
            (AffinityState::PendingDeletion, false),
        ] {
            let store = lab().await;
            let affinity =
                Affinity { owner: Owner::host("a"), cidr: cidr("10.0.0.0/30"), state, deleted: false };
            create(&store, Record::Affinity(affinity)).await;
            let released =
                release_affinities_of(&store, &CLOCK, &Owner::host("a"), ReleaseTerms::default()).await;
            assert_eq!(released, Ok(0));
            assert_eq!(state_of(&store, "a", "10.0.0.0/30").await.is_some(), left, "{state:?}");
        }
    });
}

#[test]
fn a_node_gets_one_block_with_what_it_keeps_and_no_second() {
    block_on(async {
        let store = lab().await;
        let kept = HostReserved { start: 1, end: 1, ..HostReserved::windows() };
        let ensured = ensure_block(&store, &CLOCK, "a", IpVersion::V4, &kept).await.unwrap();
        assert_eq!(ensured.explain.blocks.listed()[0].outcome, BlockOutcome::Claimed);
        let ensured = ensured.block;
        let made = seen::block(&store, ensured).await.unwrap().unwrap().value;
        assert_eq!(made.unallocated, [1, 2]);
        assert!(block::is_empty(&made));
        assert_eq!(state_of(&store, "a", &ensured.to_string()).await, Some(AffinityState::Confirmed));
        let again = ensure_block(&store, &CLOCK, "a", IpVersion::V4, &kept).await.unwrap();
        assert_eq!((again.block, again.explain.blocks.listed()[0].outcome), (ensured, BlockOutcome::Took));
        assert_eq!(seen::blocks(&store).await.unwrap().len(), 1);
    });
}

#[test]
fn a_node_is_not_given_a_block_of_which_it_would_keep_all_that_is_not_reserved() {
    block_on(async {
        let store = lab().await;
        let middles =
            ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.5/32", "10.0.0.6/32", "10.0.0.13/32", "10.0.0.14/32"];
        let cidrs = middles.into_iter().map(cidr).collect();
        create(&store, Record::Reservation(Reservation { name: "r".to_owned(), cidrs })).await;
        let kept = HostReserved { start: 1, end: 1, ..HostReserved::windows() };
        for node in ["a", "b"] {
            let ensured = ensure_block(&store, &CLOCK, node, IpVersion::V4, &kept).await;
            let left = (node == "a").then(|| cidr("10.0.0.8/30"));
            assert_eq!(
                ensured.ok().map(|ensured| ensured.block),
                left,
                "{node}: one block leaves something, for one of them"
            );
        }
    });
}

#[test]
fn a_node_without_a_free_block_is_told_why() {
    block_on(async {
        let store = lab().await;
        let ensure = async |node, kept: &HostReserved| {
            let ensured = ensure_block(&store, &LATER, node, IpVersion::V4, kept).await;
            ensured.map(|ensured| ensured.block).map_err(|failure| failure.error)
        };
        let kept = HostReserved { start: 1, end: 1, ..HostReserved::windows() };
        assert!(matches!(ensure("c", &kept).await, Err(EnsureBlockError::NoSuchNode { .. })));
        let windows = ensure("a", &HostReserved::windows()).await;
        assert!(
            matches!(windows, Err(EnsureBlockError::Pools(_))),
            "a /30 has four addresses and Windows keeps four"
        );
        let nothing = ensure("a", &HostReserved { start: 0, end: 0, ..kept.clone() }).await;
        assert!(matches!(nothing, Err(EnsureBlockError::Reserved(_))));
        own(&store, "b", "10.0.0.0/28").await;
        use_one(&store, "b").await;
        let reclaimed = ensure("a", &kept).await.unwrap();
        assert_eq!(owner_of(&store, &reclaimed.to_string()).await.as_deref(), Some("a"));
        let off = IpamConfig { strict_affinity: true, auto_allocate_blocks: false, ..IpamConfig::default() };
        create(&store, Record::Config(off)).await;
        assert_eq!(ensure("a", &kept).await, Ok(reclaimed), "what it has it keeps");
        remove_host(&store, &CLOCK, "a").await.unwrap();
        assert!(matches!(ensure("a", &kept).await, Err(EnsureBlockError::AutoAllocateOff { .. })));
    });
}

#[test]
fn a_full_cluster_has_no_block_for_another_node() {
    block_on(async {
        let store = lab().await;
        own(&store, "b", "10.0.0.0/28").await;
        let kept = HostReserved { start: 1, end: 0, ..HostReserved::windows() };
        let refused = ensure_block(&store, &CLOCK, "a", IpVersion::V4, &kept).await.unwrap_err();
        assert!(matches!(refused.error, EnsureBlockError::NoFreeBlock { .. }), "b claimed them just now");
        assert_eq!(refused.explain.relief.empty_blocks, 4);
        let line = refused.explain.to_string();
        assert!(line.contains("4 empty blocks of other nodes may be had"), "{line}");
        let scope = Scope::AffinitiesOf(Owner::host("a"));
        assert!(seen::list::<Affinity, _>(&store, &scope).await.unwrap().is_empty());
    });
}

#[test]
fn every_lost_answer_of_a_claim_and_of_a_release_is_looked_up() {
    block_on(async {
        for (number, lost) in losses(6) {
            let counting = Counting::losing(lab().await, number, lost);
            let claimed =
                claim_affinity(&counting, &CLOCK, cidr("10.0.0.0/29"), &Owner::host("a")).await.unwrap();
            assert_eq!((claimed.claimed.len(), claimed.failed.len()), (2, 0), "{number} {lost:?}");
            for block in ["10.0.0.0/30", "10.0.0.4/30"] {
                let state = state_of(&counting.store, "a", block).await;
                assert_eq!(state, Some(AffinityState::Confirmed), "{number} {lost:?}");
            }
        }
        for (number, lost) in losses(4) {
            let store = lab().await;
            own(&store, "a", "10.0.0.0/30").await;
            use_one(&store, "a").await;
            own(&store, "a", "10.0.0.4/30").await;
            let counting = Counting::losing(store, number, lost);
            assert_eq!(remove_host(&counting, &CLOCK, "a").await, Ok(2), "{number} {lost:?}");
            assert_eq!(owner_of(&counting.store, "10.0.0.0/30").await.as_deref(), Some("nobody"));
            assert_eq!(owner_of(&counting.store, "10.0.0.4/30").await, None);
        }
    });
}

#[test]
fn nothing_is_written_for_a_node_whose_affinities_have_their_labels() {
    block_on(async {
        let store = lab().await;
        own(&store, "a", "10.0.0.0/28").await;
        let counting = Counting::new(store);
        assert_eq!(upgrade_host(&counting, "a").await, Ok(0));
        assert_eq!(counting.calls(), Calls { lists: 2, trips: 2, ..Calls::default() });
    });
}

/// Runs `what` of node `a`, which has one block if it is `owned`, and counts the calls.
async fn calls_of(what: &str, owned: bool) -> Calls {
    let store = lab().await;
    if owned {
        own(&store, "a", "10.0.0.0/30").await;
    }
    let seen = seen::block(&store, cidr("10.0.0.0/30")).await.unwrap();
    let counting = Counting::new(store);
    let (a, all) = (Owner::host("a"), cidr("10.0.0.0/28"));
    let terms = ReleaseTerms::default();
    let kept = HostReserved { start: 1, end: 0, ..HostReserved::windows() };
    match what {
        "claim two blocks" => {
            let claimed = claim_affinity(&counting, &CLOCK, cidr("10.0.0.8/29"), &a).await.unwrap();
            assert_eq!(claimed.claimed.len(), 2);
        }
        "release within" => {
            assert_eq!(release_affinities_within(&counting, &CLOCK, all, &a, false).await, Ok(1));
        }
        "release of" => assert_eq!(release_affinities_of(&counting, &CLOCK, &a, terms).await, Ok(1)),
        "release in" => assert_eq!(release_affinities_in(&counting, &CLOCK, all).await, Ok(1)),
        "release block" => {
            let seen = seen.unwrap().value;
            assert_eq!(release_block_affinity(&counting, &CLOCK, &seen, false).await, Ok(true));
        }
        "remove" => assert_eq!(remove_host(&counting, &CLOCK, "a").await, Ok(usize::from(owned))),
        "ensure" => assert!(ensure_block(&counting, &CLOCK, "a", IpVersion::V4, &kept).await.is_ok()),
        _ => assert_eq!(upgrade_host(&counting, "a").await, Ok(0)),
    }
    counting.calls()
}

#[test]
fn calls_are_within_those_of_the_documentation() {
    block_on(async {
        for (what, owned, [gets, lists, commits, trips]) in [
            ("claim two blocks", true, [0, 3, 6, 9]),
            ("release within", true, [3, 2, 2, 7]),
            ("release of", true, [3, 1, 2, 6]),
            ("release in", true, [3, 1, 2, 6]),
            ("release block", true, [3, 0, 2, 5]),
            ("remove", true, [3, 2, 2, 7]),
            ("remove", false, [0, 2, 0, 2]),
            ("ensure", true, [3, 3, 0, 2]),
            ("ensure", false, [2, 4, 3, 5]),
            ("upgrade", true, [0, 2, 0, 2]),
        ] {
            let calls = calls_of(what, owned).await;
            assert!(calls.are_within(Calls { gets, lists, commits, trips }), "{what} ({owned}): {calls:?}");
        }
    });
}
